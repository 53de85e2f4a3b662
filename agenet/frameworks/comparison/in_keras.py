"""The work of a comparison in Keras."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agenet.frameworks.comparison.engine import AGE, OUTPUTS, RATES, Framework, Tensors, Work
from agenet.frameworks.port_out import assign_keras
from agenet.weights.names import keras as names
from scripts.benchmarks.engines import Figures


class Keras(Framework):
    """The networks of Keras applications, and Levi and Hassner's written out."""

    result: Any = None

    def setup(self) -> None:
        work = self.work
        os.environ["KERAS_BACKEND"] = "jax" if "jax" in work.options else "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        self.jax: Any = None
        if "jax" in work.options:
            import jax

            self.jax = jax
        else:
            import tensorflow as tf

            self.tf = tf
            for gpu in tf.config.list_physical_devices("GPU"):
                tf.config.experimental.set_memory_growth(gpu, True)
            tf.config.experimental.enable_tensor_float_32_execution(not work.exact)
        import keras

        self.keras = keras
        if work.dtype == "bfloat16":
            keras.config.set_dtype_policy("mixed_bfloat16")
        self.module = create_keras(work)
        self._begin()

    def _begin(self) -> None:
        keras, rate = self.keras, RATES[self.work.optimizer]
        if self.module.compiled:  # To compile once more would take as long as the first time.
            for variable in self.module.optimizer.variables:
                if "learning_rate" not in variable.path:
                    variable.assign(np.zeros(variable.shape))
            return
        if self.work.optimizer == "sgd":
            tx = keras.optimizers.SGD(rate, momentum=0.9)
        else:
            tx = keras.optimizers.Adam(rate, epsilon=1e-8)
        options = self.work.options
        jit: Any = True if "jit" in options else False if "no_jit" in options else "auto"
        self.module.compile(optimizer=tx, loss=_keras_loss, jit_compile=jit)

    def platform(self) -> str:
        return str(self._device().platform if self.jax else "gpu" if self._device() else "cpu")

    def _device(self) -> Any:
        """JAX's first device, or TensorFlow's GPU, or None."""
        if self.jax:
            return self.jax.devices()[0]
        return next(iter(self.tf.config.list_physical_devices("GPU")), None)

    def describe(self) -> Figures:
        device, backend = self._device(), self.jax or self.tf
        if self.jax:
            name = device.device_kind
        else:
            details = self.tf.config.experimental.get_device_details(device) if device else {}
            name = details.get("device_name", self.platform())
        versions = {"keras": self.keras.__version__, backend.__name__: backend.__version__}
        # What Keras has made of "auto".
        jit = bool(self.module.jit_compile)
        return {"versions": versions, "device": name, "jit_compile": jit}

    def peak(self) -> int:
        if self.work.platform != "gpu":
            return super().peak()
        if self.jax:
            return int((self._device().memory_stats() or {})["peak_bytes_in_use"])
        return int(self.tf.config.experimental.get_memory_info("GPU:0")["peak"])

    def seed(self, seed: int) -> None:
        self.keras.utils.set_random_seed(seed)
        layers = self.keras.layers
        size = self.work.size
        self._augment: Callable[..., Any] = self.keras.Sequential(
            [layers.RandomCrop(size, size), layers.RandomFlip("horizontal")]
        )
        # Layers that are there keep generators of their own.
        states = [v for v in self.module.variables if "seed" in v.path]
        for number, state in enumerate(states):
            state.assign(np.array([seed, number << 16], np.uint32))

    def assign(self, tensors: Tensors) -> None:
        assign_keras(self.module, keras_from_agenet(tensors, self.work.model))
        self._begin()

    def variables(self) -> Tensors:
        return self._ours({v.path: v for v in self._variables()})

    def _variables(self) -> list[Any]:
        return [
            v
            for v in self.module.variables
            if "seed" not in v.path and "normalization" not in v.path
        ]

    def _ours(self, values: Mapping[str, Any]) -> Tensors:
        named = {"/".join(path.split("/")[-2:]): np.asarray(v) for path, v in values.items()}
        return keras_to_agenet(named, self.work.model)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.module.predict_on_batch(images), np.float32)

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        variables = self.module.trainable_variables
        with self.tf.GradientTape() as tape:
            loss = _keras_loss(np.asarray(labels, np.float32), self.module(images, training=True))
        grads = tape.gradient(loss, [v.value for v in variables])
        pairs = zip(variables, grads, strict=True)
        return float(loss), self._ours({v.path: grad for v, grad in pairs})

    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        convert = self.keras.ops.convert_to_tensor
        return convert(images), convert(np.asarray(labels, np.int32))

    def step(self, batch: Any) -> Any:
        return self.module.train_on_batch(*batch)

    def infer(self, batch: Any) -> Any:
        return self.module.predict_on_batch(batch[0])

    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        return np.asarray(self._augment(np.ascontiguousarray(images), training=True))


def _keras_loss(labels: Any, logits: Any) -> Any:
    from keras import ops

    labels = ops.cast(labels, "int32")
    logits = ops.cast(logits, "float32")
    total = 0.0
    for column, part in ((0, logits[:, :AGE]), (1, logits[:, AGE:])):
        truth = labels[:, column]
        known = ops.cast(truth >= 0, "float32")
        losses = ops.sparse_categorical_crossentropy(ops.maximum(truth, 0), part, from_logits=True)
        total += ops.sum(losses * known) / ops.maximum(ops.sum(known), 1.0)
    return total


def create_keras(work: Work, outputs: int = OUTPUTS) -> Any:
    """The model, computing as `flavour_of` says, and taking its input as it is."""
    import keras

    if work.model == "levi_hassner":
        return _keras_levi_hassner(work, outputs)
    shape = (work.size, work.size, 3)
    common: Any = {"weights": None, "classes": outputs, "classifier_activation": None}
    if work.model == "resnet50":
        model = keras.applications.ResNet50(input_shape=shape, **common)
        model = keras.models.clone_model(model, clone_function=_as_torchvision)
        if not work.regular:
            return model
        x = keras.layers.Dropout(0.2)(model.get_layer("predictions").input)
        return keras.Model(model.input, model.get_layer("predictions")(x))
    from keras.src.applications import efficientnet

    # Here, since JAX would count for Keras's start and memory.
    from agenet.models.efficientnet import VARIANTS as SCALES

    variant = work.model.removeprefix("efficientnet_")
    scale, lite = SCALES[variant], variant.startswith("lite")
    if lite and variant != "lite0":
        raise NotImplementedError("of Lite only Lite0 can be put together from Keras applications")
    blocks = [
        block | ({"se_ratio": 0.0} if lite else {}) for block in efficientnet.DEFAULT_BLOCKS_ARGS
    ]
    model = efficientnet.EfficientNet(
        scale.width,
        scale.depth,
        scale.input_size,
        dropout_rate=0.2 * work.regular,
        drop_connect_rate=0.2 * work.regular,
        activation="relu6" if lite else "swish",
        blocks_args=blocks,
        input_shape=shape,
        weights_name=variant,
        **common,
    )

    def unscaled(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Rescaling):
            config["scale"] = 1.0
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=unscaled)


def _as_torchvision(layer: Any) -> Any:
    """A layer of Keras's ResNet with strides, padding, biases and constants as torchvision's."""
    import keras

    class Padded(keras.layers.Conv2D):
        """With a zero on every side."""

        def call(self, x: Any) -> Any:
            return super().call(keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))

        def compute_output_shape(self, shape: Any) -> Any:
            batch, rows, columns, channels = shape
            return super().compute_output_shape((batch, rows + 2, columns + 2, channels))

    config, kind = layer.get_config(), type(layer)
    if isinstance(layer, keras.layers.BatchNormalization):
        config |= {"epsilon": 1e-5, "momentum": 0.9}
    elif isinstance(layer, keras.layers.Conv2D):
        config["use_bias"] = False
        first = layer.name.startswith(("conv3_block1_", "conv4_block1_", "conv5_block1_"))
        if layer.name.endswith("_1_conv"):
            config["strides"] = (1, 1)
        elif layer.name.endswith("_2_conv"):
            kind = Padded
            config |= {"padding": "valid", "strides": (2, 2) if first else (1, 1)}
    return kind.from_config(config)


def _keras_levi_hassner(work: Work, outputs: int) -> Any:
    import keras
    from keras import layers, ops

    class LocalResponseNorm(layers.Layer):
        """Over five channels, as torch.nn.LocalResponseNorm(5)."""

        def call(self, x: Any) -> Any:
            squares = ops.pad(ops.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
            total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
            return x / ops.power(1 + 1e-4 / 5 * total, 0.75)

    rate = 0.5 * work.regular
    x = inputs = keras.Input((work.size, work.size, 3))
    for number, (features, size, stride, padding) in enumerate(
        ((96, 7, 4, 1), (256, 5, 1, 2), (384, 3, 1, 1)), 1
    ):
        x = layers.ZeroPadding2D(padding)(x)
        x = layers.Conv2D(features, size, stride, activation="relu", name=f"conv{number}")(x)
        # Nothing is below zero after a ReLU, so that zeros take no maximum.
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
        x = LocalResponseNorm()(x) if number < 3 else x
    x = layers.Flatten()(x)
    for name in ("fc1", "fc2"):
        x = layers.Dropout(rate)(layers.Dense(512, activation="relu", name=name)(x))
    return keras.Model(inputs, layers.Dense(outputs, name="predictions")(x))


def keras_from_agenet(tensors: Tensors, model: str) -> Tensors:
    """From agenet's names and layout to Keras's."""
    if model != "levi_hassner":
        return _rgb(names.from_agenet(tensors, model))
    return {
        "/".join(n.replace("heads/classes", "predictions").split("/")[-2:]): v
        for n, v in tensors.items()
    }


def keras_to_agenet(tensors: Tensors, model: str) -> Tensors:
    """From Keras's names and layout to agenet's."""
    if model != "levi_hassner":
        return names.to_agenet(_rgb(tensors), model)
    return {
        f"params/{'' if n.startswith('predictions') else 'backbone/'}"
        f"{n.replace('predictions', 'heads/classes')}": v
        for n, v in tensors.items()
    }


def _rgb(tensors: Tensors) -> Tensors:
    """Between a ResNet that takes BGR, as Keras's does, and one that takes RGB."""
    name = "conv1_conv/kernel"
    return tensors | ({name: tensors[name][:, :, ::-1]} if name in tensors else {})
