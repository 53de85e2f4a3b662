"""Loads a network with pre-trained weights, and prepares images for it."""

from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from agenet.errors import UserError
from agenet.models import create_model
from agenet.models.classifier import Classifier
from agenet.weights.cache import find_file
from agenet.weights.known import KnownWeights, find_init
from agenet.weights.load import load_into, read_weights
from agenet.weights.spec import InputSpec, WeightsSpec

_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}


class Pretrained(NamedTuple):
    """A network, its variables for `model.apply(variables, images)`, and their specification."""

    model: Classifier
    variables: dict[str, Any]
    spec: WeightsSpec


def load_pretrained(
    model: str, init: str = "imagenet", *, flavour: str = "", dtype: DTypeLike = jnp.float32
) -> Pretrained:
    """Returns the network `model` with the weights `init` and the heads published with them.

    Args:
        model: a name of `agenet.models.MODELS`.
        init: "imagenet", "default", a name in `agenet.weights.known.KNOWN`, or a weights file.
        flavour: variant of the network, if there are weights for several.
        dtype: of the computation.

    Raises:
        UserError: there are no such weights, they are not available, or they do not fit.
    """
    found = find_init(init, model, flavour)
    if isinstance(found, KnownWeights):
        weights = read_weights(find_file(found), known=found)
    elif found.is_file():
        weights = read_weights(found, model=model, flavour=flavour)
    else:
        raise UserError(f"{found} is not a weights file")
    spec = weights.spec
    network = create_model(model, spec.classes, flavour=spec.flavour, dtype=dtype)
    images = jnp.zeros((1, spec.input.size, spec.input.size, 3))
    shapes: Any = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = jax.device_put(load_into(shapes, weights, new=()))
    return Pretrained(network, variables, spec)


def prepare_image(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Crops, resizes and normalises an image for a network.

    Takes the central square of `crop_fraction` of the shorter side. Downsizing averages over
    areas, which comes close to resizing with antialiasing.

    Args:
        image: RGB, uint8 [H, W, 3].
        spec: the input that the network expects.

    Returns:
        float32 [size, size, 3].
    """
    height, width = image.shape[:2]
    side = max(round(min(height, width) * spec.crop_fraction), 1)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    method = cv2.INTER_AREA if side > spec.size else _INTERPOLATIONS[spec.interpolation]
    resized = cv2.resize(square, (spec.size, spec.size), interpolation=method)
    mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))
    return (resized.astype(np.float32) - mean) / std
