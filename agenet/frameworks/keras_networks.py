"""Networks of agenet in Keras: those of Keras applications, changed where ours differ.

Each has the layers of agenet's network of the same name, so that `keras_weights` only renames and
transposes weights. Levi-Hassner's network is defined here, since no library has it. For this one
and EfficientNet-Lite0 the file needs Keras alone: `agenet port` puts a copy beside their weights.
"""

import os
from typing import Any


def import_keras() -> Any:
    """Imports Keras on TensorFlow, without the log of its start."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    return keras


def create_keras(model: str, size: int, classes: int, regular: bool = False) -> Any:
    """A `keras.Model` from [B, size, size, 3] to logits [B, classes], with initial weights.

    Takes its input as agenet's network does: RGB, normalised. See
    `agenet.frameworks.torch_networks.create_torch` for the arguments and flavours.

    Raises:
        NotImplementedError: the network cannot be composed of Keras applications.
    """
    import keras

    if model == "levi_hassner":
        return _levi_hassner(size, classes, 0.5 * regular)
    shape = (size, size, 3)
    common: Any = {"weights": None, "classes": classes, "classifier_activation": None}
    if model == "resnet50":
        resnet = keras.applications.ResNet50(input_shape=shape, **common)
        resnet = keras.models.clone_model(resnet, clone_function=_as_torchvision)
        if not regular:
            return resnet
        x = keras.layers.Dropout(0.2)(resnet.get_layer("predictions").input)
        return keras.Model(resnet.input, resnet.get_layer("predictions")(x))
    from keras.src.applications import efficientnet

    variant = model.removeprefix("efficientnet_")
    lite = variant.startswith("lite")
    if lite and variant != "lite0":
        raise NotImplementedError(
            "of EfficientNet-Lite only Lite0 can be composed of Keras applications"
        )
    if variant.startswith("v2"):
        raise NotImplementedError("EfficientNetV2 is not composed in Keras: use Keras applications")
    width, depth, input_size = 1.0, 1.0, 224  # of Lite0
    if not lite:
        # Imported here: JAX would count for Keras's start and memory.
        from agenet.models.efficientnet import VARIANTS

        width, depth, input_size, _ = VARIANTS[variant]
    blocks = [
        block | ({"se_ratio": 0.0} if lite else {}) for block in efficientnet.DEFAULT_BLOCKS_ARGS
    ]
    network = efficientnet.EfficientNet(
        width,
        depth,
        input_size,
        dropout_rate=0.2 * regular,
        drop_connect_rate=0.2 * regular,
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

    return keras.models.clone_model(network, clone_function=unscaled)


def _as_torchvision(layer: Any) -> Any:
    """Gives a layer of Keras's ResNet the strides, padding and constants of torchvision's."""
    import keras

    class Padded(keras.layers.Conv2D):
        """Pads every side by one zero."""

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


def _levi_hassner(size: int, classes: int, rate: float) -> Any:
    import keras
    from keras import layers, ops

    def local_response_norm(x: Any) -> Any:
        """Normalises over five channels, like torch.nn.LocalResponseNorm(5).

        Of Keras's own operations, so that a whole model opens without this file.
        """
        squares = ops.pad(ops.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
        total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
        return x / ops.power(1 + 1e-4 / 5 * total, 0.75)

    x = inputs = keras.Input((size, size, 3))
    for number, (features, kernel, stride, padding) in enumerate(
        ((96, 7, 4, 1), (256, 5, 1, 2), (384, 3, 1, 1)), 1
    ):
        x = layers.ZeroPadding2D(padding)(x)
        x = layers.Conv2D(features, kernel, stride, activation="relu", name=f"conv{number}")(x)
        # After a ReLU no value is below zero, so padding with zeros changes no maximum.
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
        x = local_response_norm(x) if number < 3 else x
    x = layers.Flatten()(x)
    for name in ("fc1", "fc2"):
        x = layers.Dropout(rate)(layers.Dense(512, activation="relu", name=name)(x))
    return keras.Model(inputs, layers.Dense(classes, name="predictions")(x))
