"""Performs the task of a comparison in Keras."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agenet.frameworks import keras_networks, keras_weights
from agenet.frameworks.comparison.engine import OUTPUTS, RATES, Framework, Tensors, split_tasks
from agenet.frameworks.timing import Figures


class Keras(Framework):
    """The networks of `keras_networks`."""

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
        self.module = keras_networks.create_keras(work.model, work.size, OUTPUTS, work.regular)
        self._begin()

    def _begin(self) -> None:
        keras, rate = self.keras, RATES[self.work.optimizer]
        if self.module.compiled:  # Compiling again would take as long as the first time.
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
        # What Keras chose for "auto".
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
        # Existing layers have generators of their own.
        states = [v for v in self.module.variables if "seed" in v.path]
        for number, state in enumerate(states):
            state.assign(np.array([seed, number << 16], np.uint32))

    def assign(self, tensors: Tensors) -> None:
        theirs = keras_weights.from_agenet(tensors, self.work.model)
        keras_weights.assign_keras(self.module, theirs)
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
        return keras_weights.to_agenet(named, self.work.model)

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
    for column, part in enumerate(split_tasks(logits).values()):
        truth = labels[:, column]
        known = ops.cast(truth >= 0, "float32")
        losses = ops.sparse_categorical_crossentropy(ops.maximum(truth, 0), part, from_logits=True)
        total += ops.sum(losses * known) / ops.maximum(ops.sum(known), 1.0)
    return total
