"""Crops detected faces the way the training images of the bundled weights were cropped.

These are FairFace's with a margin of 0.25: dlib rotated each face upright by its landmarks, scaled
it to one size and left black what lay outside of the photograph. The same square is computed here
from a detector's box and landmarks, with constants measured by `scripts/measure_margins.py`.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from agenet.faces.face import Detection


@dataclass(frozen=True)
class Geometry:
    """How a detector's boxes and landmarks lie in a training image.

    Attributes:
        shift_down: from the centre of the box down to the centre of the image, in box heights.
        size_ratio: side of the image divided by the side of a square with the area of the box.
        landmarks: their mean positions in the image, float [5, 2] as (x, y), fractions of its
            side, in the order of `Detection.landmarks`; None for a detector without landmarks.
    """

    shift_down: float
    size_ratio: float
    landmarks: np.ndarray | None = None


# python scripts/measure_margins.py FAIRFACE_VAL_TAR --count=1000 --seed=0
_YUNET_LANDMARKS = [[0.323, 0.299], [0.677, 0.299], [0.5, 0.511], [0.352, 0.688], [0.648, 0.688]]
GEOMETRIES = {
    "yunet": Geometry(shift_down=0.056, size_ratio=1.098, landmarks=np.array(_YUNET_LANDMARKS)),
    "hog": Geometry(shift_down=0.007, size_ratio=1.214),
}

# Landmarks are ignored if the fitted scale is outside this range, relative to the square's side, or
# if the eyes are closer to each other than this fraction of it: then they give no usable angle.
_PLAUSIBLE_SCALES = (0.5, 2.0)
_MIN_EYE_DISTANCE = 0.08


@dataclass(frozen=True)
class Square:
    """A rotated square region of an image.

    Attributes:
        x: of its centre, in pixels; 0 is the left edge of the first pixel.
        y: likewise, downwards.
        side: in pixels.
        angle: rotation in radians, clockwise as displayed.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0


def crop_face(
    image: np.ndarray,
    detection: Detection,
    size: int,
    *,
    detector_name: str,
    align: bool = True,
) -> np.ndarray:
    """Crops a face to an image uint8 [size, size, 3].

    Pixels outside of the image are black, as they are in the training images.

    Args:
        image: the whole image, RGB uint8 [H, W, 3].
        detection: a face in it.
        size: in pixels.
        detector_name: the detector that found it, a key of `GEOMETRIES`.
        align: rotate the face upright if there are landmarks.

    Raises:
        ValueError: the box is empty or not finite, or the detector is not in `GEOMETRIES`.
    """
    return crop_square(image, face_square(detection, detector_name, align=align), size)


def face_square(detection: Detection, detector_name: str, *, align: bool = True) -> Square:
    """Computes the square that corresponds to a whole training image; arguments as `crop_face`.

    The box gives its size, because in profile faces the box is more stable than the landmarks. The
    landmarks give angle and centre, by the least-squares similarity transform from the mean
    landmarks (S. Umeyama, IEEE PAMI 13, 1991).
    """
    geometry = GEOMETRIES.get(detector_name)
    if geometry is None:
        known = ", ".join(GEOMETRIES)
        raise ValueError(
            f"the margins of {detector_name!r} were not measured, only those of {known}"
        )
    box = detection.box
    if not all(map(math.isfinite, box)) or box.width <= 0 or box.height <= 0:
        raise ValueError(f"{box} is not a box")
    side = geometry.size_ratio * math.sqrt(box.width) * math.sqrt(box.height)
    x, y = box.center
    upright = Square(x, y + geometry.shift_down * box.height, side)
    if not align or detection.landmarks is None or geometry.landmarks is None:
        return upright
    if not np.isfinite(detection.landmarks).all():
        return upright
    # With complex numbers a similarity transform is one product and one sum.
    points = np.asarray(detection.landmarks, np.float64) @ (1, 1j)
    mean = geometry.landmarks @ (1, 1j)
    middle, mean_middle = points.mean(), mean.mean()
    spread = mean - mean_middle
    factor = np.vdot(spread, points - middle) / np.vdot(spread, spread).real
    if not (
        _PLAUSIBLE_SCALES[0] * side < abs(factor) < _PLAUSIBLE_SCALES[1] * side
        and abs(points[1] - points[0]) > _MIN_EYE_DISTANCE * side
        and abs(middle - complex(x, y)) < side
    ):
        return upright
    turn = factor / abs(factor)
    centre = middle + turn * side * (0.5 + 0.5j - mean_middle)
    return Square(float(centre.real), float(centre.imag), side, float(np.angle(turn)))


def crop_square(image: np.ndarray, square: Square, size: int) -> np.ndarray:
    """Crops a square of an RGB image uint8 [H, W, 3] to uint8 [size, size, 3].

    Time and memory depend on `size` and on the part of the image inside the square, not on the
    size of the square itself.
    """
    height, width = image.shape[:2]
    scale = square.side / size
    # Half the diagonal, rounded up, and the reach of interpolation.
    reach = 0.75 * square.side + 2 * max(scale, 1.0)
    left, right = _clip(square.x - reach, square.x + reach, width)
    top, bottom = _clip(square.y - reach, square.y + reach, height)
    if left >= right or top >= bottom:
        return np.zeros((size, size, 3), np.uint8)
    part = np.ascontiguousarray(image[top:bottom, left:right])
    # Downscaling averages over areas to avoid aliasing: first to at least two pixels for each pixel
    # of the crop, then from a crop of twice the size. Upscaling is bilinear, as in dlib.
    if scale > 2:
        reduced = (
            max(round((right - left) * 2 / scale), 1),
            max(round((bottom - top) * 2 / scale), 1),
        )
        part = cv2.resize(part, reduced, interpolation=cv2.INTER_AREA)
    fine = size * 2 if scale > 1 else size
    x_ratio, y_ratio = part.shape[1] / (right - left), part.shape[0] / (bottom - top)
    step = square.side / fine
    cos, sin = step * math.cos(square.angle), step * math.sin(square.angle)
    # From pixel indices of the crop to those of `part`; pixel centres lie half a pixel further.
    turn = np.array([[cos, -sin], [sin, cos]])
    start = (square.x - left, square.y - top) + turn @ (0.5 - fine / 2, 0.5 - fine / 2)
    matrix = np.column_stack([turn, start]) * [[x_ratio], [y_ratio]] - [[0, 0, 0.5]]
    crop = cv2.warpAffine(
        part,
        matrix,
        (fine, fine),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return crop if fine == size else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def _clip(low: float, high: float, length: int) -> tuple[int, int]:
    return math.floor(min(max(low, 0), length)), math.ceil(min(max(high, 0), length))
