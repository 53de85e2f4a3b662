"""Reduces an image to the sizes at which faces are searched, and divides them into tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

# YuNet detects faces of about 10 to 300 px. An image is searched at its own size within these
# bounds, and again at sizes that are smaller by `_STEP` down to the coarse size, for larger faces:
# without that, one in twelve FairFace images upscaled to 640 px is missed, and three in four
# upscaled to 1280 px.
MIN_SIDE = 96
MAX_SIDE = 1280
_COARSE_SIDE = 320
_STEP = 4
# A photo of 12 megapixels (4000 x 3000) is searched at 1280 px, for speed. Larger images lose too
# much at that size (of FairFace's faces with 53 px a fifth is left at a reduction of 3.1, a half at
# 2), and are searched at half their own size, in tiles of at most `MAX_SIDE`.
LARGE_SIDE = 4096
LARGE_REDUCTION = 2
# Tiles overlap by the largest face that only this level is sure to find, and its surroundings. One
# of 160 px is found in the next level, too, where it has 40 px.
OVERLAP = 192
# The shorter side below which a level cannot show a face.
_MIN_SHORT_SIDE = 8


@dataclass(frozen=True)
class Level:
    """An image at one of the sizes at which it is searched.

    Attributes:
        image: RGB uint8 [H, W, 3].
        scale: pixels of the original image per pixel of this one, horizontally and vertically.
    """

    image: np.ndarray
    scale: tuple[float, float]


def levels(image: np.ndarray) -> Iterator[Level]:
    """Yields an RGB image uint8 [H, W, 3] at the sizes at which it is searched, largest first."""
    longer = max(image.shape[:2])
    level = Level(np.ascontiguousarray(image), (1.0, 1.0))
    side: float = min(max(longer, MIN_SIDE), MAX_SIDE)
    if longer > LARGE_SIDE:
        side = longer / LARGE_REDUCTION
    while True:
        level = _resized(level, side / longer, image.shape)
        if min(level.image.shape[:2]) < _MIN_SHORT_SIDE:
            return
        yield level
        if side <= _COARSE_SIDE:
            return
        side = max(side / _STEP, _COARSE_SIDE)


def tiles(image: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Divides an image [H, W, 3] into overlapping tiles: their left, their top and their pixels."""
    height, width = image.shape[:2]
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            yield left, top, image[top:bottom, left:right]


def _spans(length: int) -> list[tuple[int, int]]:
    """Begin and end of tiles along one side, all of one length."""
    count = max(-(-(length - OVERLAP) // (MAX_SIDE - OVERLAP)), 1)
    size = -(-(length + (count - 1) * OVERLAP) // count)
    starts = np.linspace(0, length - size, count).round().astype(int).tolist()
    return [(start, start + size) for start in starts]


def _resized(level: Level, factor: float, shape: tuple[int, ...]) -> Level:
    """A level of `factor` times the size of the original image, whose shape is [H, W, ...]."""
    size = max(round(shape[1] * factor), 1), max(round(shape[0] * factor), 1)
    image, scale = reduce_image(level.image, size)
    return Level(image, (level.scale[0] * scale[0], level.scale[1] * scale[1]))


def reduce_image(
    image: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Resizes an image uint8 [H, W, 3], at most slightly aliased.

    Averaging over areas of any size takes OpenCV ten times as long as averaging over 2 x 2 pixels,
    so an image of more than `MAX_SIDE` is halved as often as possible, and then interpolated.

    Returns:
        The image of the given width and height, and how many pixels of the old one a new pixel is
        wide and high.
    """
    small = max(image.shape[:2]) <= MAX_SIDE
    wide = high = 1
    while not small and image.shape[1] >= 2 * size[0] and image.shape[0] >= 2 * size[1]:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        # Without the last column of an odd number, which would make OpenCV take the slow way.
        image = cv2.resize(
            image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA
        )
        wide, high = 2 * wide, 2 * high
    scale = wide * image.shape[1] / size[0], high * image.shape[0] / size[1]
    method = cv2.INTER_AREA if small and size[0] < image.shape[1] else cv2.INTER_LINEAR
    if size != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, size, interpolation=method)
    return image, scale
