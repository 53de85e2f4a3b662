"""What a Keras network does to its images before its first convolution.

EfficientNets of Keras applications take images from 0 to 255: a layer divides by 255, one subtracts
a mean and divides by the root of a variance, and since Keras 2.10 a third one divides once more.
The published weights hold ImageNet's deviations in the place of the variance, so that only both
divisions together are by the deviation (github.com/tensorflow/tensorflow/issues/49930). A network
that was fine-tuned before 2.10 has seen images divided by the root alone, 2.1 times smaller values.

The layers are in the configuration of a whole model. Files of weights alone may list them, or the
version of Keras; of others it must be assumed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agenet.errors import UserError, printable
from agenet.weights.spec import RGB

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
_VARIABLE = re.compile(r"(normalization(?:_\d+)?)/(mean|variance|count)")
_FIRST = ("stem_conv", "conv1_conv")
# Classes of layers that do not change the values of images, or only in training.
_NEUTRAL = re.compile(r"InputLayer|ZeroPadding2D|Resizing|CenterCrop|Random\w+|Dropout|Identity")
_MOST_LAYERS = 10_000
_MOST_PIXELS = 10_000


@dataclass(frozen=True)
class KerasInput:
    """The input of a Keras network.

    Attributes:
        mean: R, G, B from 0 to 255; None if the network does not normalise its images itself.
        std: likewise.
        size: side of its images in pixels; None if the file does not say.
        assumed: what the file does not say, in one line; empty if nothing matters.
    """

    mean: RGB | None = None
    std: RGB | None = None
    size: int | None = None
    assumed: str = ""


def find_input(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> KerasInput:
    """Reads the input from the content of a file.

    Args:
        tensors: by names such as "normalization/mean".
        metadata: see `agenet.weights.formats.hdf5`; untrusted.

    Raises:
        UserError: the network normalises its images in a way that is not known.
    """
    layers = _read_config(metadata.get("model_config", ""))
    size = _image_size(layers)
    if "conv1_conv/kernel" in tensors:
        changing = [name for kind, name, _ in layers if not _NEUTRAL.fullmatch(kind)]
        assumed = (
            f"its layers {printable(', '.join(changing))} change the images first; assumed that "
            "together they do what Keras's preprocess_input does: BGR, minus ImageNet's mean"
        )
        return KerasInput(size=size, assumed=assumed if changing else "")
    if layers:
        mean, std, unknown = _compose(layers, tensors)
        assumed = (
            f"its layers {printable(', '.join(unknown))} may change the images; assumed that they "
            "do not"
        )
        return KerasInput(mean, std, size, assumed if unknown else "")
    return _from_weights(tensors, metadata)


def is_normalisation(name: str) -> bool:
    """Whether a tensor belongs to the layer that normalises images."""
    return _VARIABLE.fullmatch(name) is not None


def _from_weights(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> KerasInput:
    """The input of a file without a configuration."""
    layer = {
        part[2]: np.asarray(tensor, np.float64).reshape(-1)
        for name, tensor in tensors.items()
        if (part := _VARIABLE.fullmatch(name))
    }
    if not layer:
        return KerasInput()
    mean, variance = (layer.get(name, np.zeros(0)) for name in ("mean", "variance"))
    # Networks without ImageNet weights hold 0 and 1, and agenet writes the squared deviations.
    known = ((MEAN, STD), (MEAN, STD**2), (np.zeros(3), np.ones(3)))
    if not any(
        np.shape(mean) == np.shape(variance) == (3,)
        and np.allclose(mean, m, atol=1e-6)
        and np.allclose(variance, v, atol=1e-6)
        for m, v in known
    ):
        raise UserError(
            "its layer normalization holds neither ImageNet's mean and deviation nor 0, 1, and the "
            "file does not say what comes after it: give --mean and --std"
        )
    if not np.allclose(variance, STD, atol=1e-6):
        return KerasInput(_times_255(mean), _times_255(np.sqrt(variance)))
    rescalings = _count_rescalings(metadata.get("normalizing_layers", ""))
    version = re.match(r"(\d{1,3})\.(\d{1,3})", metadata.get("keras_version", ""))
    if rescalings:
        twice, seen = rescalings > 1, f"it lists {rescalings} layer rescaling"
    elif version:
        twice = (int(version[1]), int(version[2])) >= (2, 10)
        seen = f"it is of Keras {version[0]}"
    else:
        twice, seen = True, "it does not say how often its network divides"
    std, other = (STD, np.sqrt(STD)) if twice else (np.sqrt(STD), STD)
    what, when = ("", "since") if twice else ("the root of ", "before")
    values = ",".join(f"{value:.3f}" for value in 255 * other)
    assumed = (
        f"{seen}: assumed that images are divided by {what}ImageNet's deviation, as in Keras "
        f"{when} 2.10; if not, port it with --std={values}"
    )
    return KerasInput(_times_255(MEAN), _times_255(std), assumed="" if rescalings > 1 else assumed)


def _count_rescalings(paths: str) -> int:
    """How many layers Rescaling are listed beside the layer Normalization; 0 if unknown."""
    try:
        names = json.loads(paths or "[]")
    except (ValueError, RecursionError):
        return 0
    beside = [name.rpartition("/") for name in names if isinstance(name, str)]
    parents = {parent for parent, _, name in beside if name.startswith("normalization")}
    return sum(name.startswith("rescaling") for parent, _, name in beside if parent in parents)


Layer = tuple[str, str, Mapping[str, Any]]  # class, name and configuration


def _read_config(text: str) -> list[Layer]:
    """The layers up to the first convolution; [] if the configuration does not show it."""
    try:
        layers: list[Layer] = []
        for number, layer in enumerate(_flatten(json.loads(text or "{}"))):
            if layer[1] in _FIRST:
                return layers
            if number >= _MOST_LAYERS:
                break
            layers.append(layer)
    except (ValueError, RecursionError):
        pass
    return []


def _flatten(config: object) -> Iterator[Layer]:
    """Yields the layers of a model and of the models in it, in their order."""
    if not isinstance(config, dict):
        return
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # old Sequential: a list
    if isinstance(layers, list):
        for layer in layers:
            yield from _flatten(layer)
    elif isinstance(inner, dict):
        kind = re.split(r"[.>]", str(config.get("class_name", "")))[-1]
        yield kind, str(inner.get("name", ""))[:100], inner


def _image_size(layers: Sequence[Layer]) -> int | None:
    """The side of the square images that the last input layer takes."""
    for kind, _, config in reversed(layers):
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        if kind == "InputLayer" and isinstance(shape, list) and len(shape) == 4:
            height, width = shape[1:3]
            if type(height) is int and height == width and 0 < height <= _MOST_PIXELS:
                return height
    return None


def _compose(
    layers: Sequence[Layer], tensors: Mapping[str, np.ndarray]
) -> tuple[RGB, RGB, list[str]]:
    """The mean and deviation that all layers together amount to, and layers of other classes."""
    factor, offset, unknown = np.ones(3), np.zeros(3), []
    for kind, name, config in layers:
        if kind == "Rescaling":
            scale = _numbers(config.get("scale"), name)
            factor = factor * scale
            offset = offset * scale + _numbers(config.get("offset", 0.0), name)
        elif kind == "Normalization":
            mean, variance = (
                _variable(what, name, config, tensors) for what in ("mean", "variance")
            )
            if config.get("invert") or not (variance > 0).all():
                raise UserError(f"its layer {printable(name)} does not divide by a deviation")
            factor = factor / np.sqrt(variance)
            offset = (offset - mean) / np.sqrt(variance)
        elif not _NEUTRAL.fullmatch(kind):
            unknown.append(f"{name} ({kind})")
    if not (factor > 0).all():
        raise UserError("its layers multiply images by zero or less")
    return _rgb(0.0 - offset / factor), _rgb(1 / factor), unknown


def _variable(
    what: str, layer: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The mean or variance of a layer Normalization: a variable, or a part of its configuration."""
    named = [n for n in tensors if (part := _VARIABLE.fullmatch(n)) and part[2] == what]
    exact = f"{layer}/{what}"
    name = exact if exact in tensors else named[0] if len(named) == 1 else ""
    return _numbers(tensors[name] if name else config.get(what), layer)


def _numbers(value: Any, layer: str) -> np.ndarray:
    """One or three numbers, as float64 [3]."""
    if isinstance(value, dict) and isinstance(value.get("config"), dict):  # an array of NumPy
        value = value["config"].get("value")
    try:
        array = np.asarray(value, np.float64).reshape(-1)
        if array.size in (1, 3) and np.isfinite(array).all():
            return np.broadcast_to(array, 3)
    except (TypeError, ValueError):
        pass
    raise UserError(f"its layer {printable(layer)} has other values than one or three numbers")


def _times_255(values: np.ndarray) -> RGB:
    return _rgb(255 * values)


def _rgb(values: np.ndarray) -> RGB:
    red, green, blue = map(float, values)
    return red, green, blue
