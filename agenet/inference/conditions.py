"""Changes of face images that show how much a predictor depends on their quality."""

from collections.abc import Callable

import cv2
import numpy as np

UNCHANGED = "unchanged"


def _warp(image: np.ndarray, degrees: float, scale: float, border: int) -> np.ndarray:
    """Rotates and scales about the centre of the image."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=border)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


# Each takes an image uint8 [H, W, 3] RGB of one face and returns another.
CONDITIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    UNCHANGED: lambda image: image,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "cropped a third closer": lambda image: _warp(image, 0, 1.33, cv2.BORDER_REPLICATE),
    "cropped a third wider": lambda image: _warp(image, 0, 0.75, cv2.BORDER_REPLICATE),
    "rotated by 15 degrees": lambda image: _warp(image, 15, 1, cv2.BORDER_CONSTANT),
    "grey": lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
    "48 pixels": lambda image: _resize(image, 48),
    "24 pixels": lambda image: _resize(image, 24),
}
