"""A face cut out as the network's training pictures were.

Those are FairFace's with a margin of 0.25: dlib turned each face upright by its landmarks, scaled
it to one size and left black what lay outside of the photograph. The same square is found here from
what a detector tells, by constants that `scripts/measure_margins.py` measured.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from agenet.faces.face import Detection


@dataclass(frozen=True)
class Geometry:
    """Where a detector finds what it finds of a face in a training picture.

    Attributes:
        down: from the middle of its box down to the middle of the picture, in heights of the box.
        side: of the picture, in sides of the square that has the box's area.
        landmarks: their mean positions in the picture [5, 2] as (x, y), fractions of its side, in
            the order of `Detection.landmarks`; None where it tells none.
    """

    down: float
    side: float
    landmarks: np.ndarray | None = None


# python scripts/measure_margins.py FAIRFACE_VAL_TAR --count=1000 --seed=0
_YUNET_LANDMARKS = [[0.323, 0.299], [0.677, 0.299], [0.5, 0.511], [0.352, 0.688], [0.648, 0.688]]
GEOMETRIES = {
    "yunet": Geometry(down=0.056, side=1.098, landmarks=np.array(_YUNET_LANDMARKS)),
    "hog": Geometry(down=0.037, side=1.2),
}

# Landmarks to which the mean ones fit only at a size outside of these multiples of the square's
# are wrong; and eyes nearer to each other than this part of it do not tell which way is up.
_PLAUSIBLE = (0.5, 2.0)
_EYE_DISTANCE = 0.08


@dataclass(frozen=True)
class Square:
    """The part of a picture that becomes a face picture.

    Attributes:
        x: of its middle, in pixels; 0 is the left edge of the first one.
        y: likewise, downwards.
        side: in pixels.
        angle: by which it is turned clockwise as seen, in radians.
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
    """The face as a picture uint8 [size, size, 3].

    What lies outside of the picture is black, as it is in the training pictures.

    Args:
        image: the whole picture, RGB uint8 [H, W, 3].
        detection: a face in it.
        size: in pixels.
        detector_name: whose detection it is, a key of `GEOMETRIES`.
        align: turn the face upright, where there are landmarks.

    Raises:
        ValueError: the box is empty or not finite, or nothing is known of the detector.
    """
    return crop_square(image, face_square(detection, detector_name, align=align), size)


def face_square(detection: Detection, detector_name: str, *, align: bool = True) -> Square:
    """The square which corresponds to a whole training picture; arguments as of `crop_face`.

    The box gives its size, which it tells more steadily than the landmarks when a face is turned
    aside. The landmarks give angle and middle, by the similarity transform that brings the mean
    landmarks nearest to them (least squares: S. Umeyama, IEEE PAMI 13, 1991).
    """
    geometry = GEOMETRIES.get(detector_name)
    if geometry is None:
        known = ", ".join(GEOMETRIES)
        raise ValueError(
            f"the margins of {detector_name!r} were not measured; of {known} they were"
        )
    box = detection.box
    if not all(map(math.isfinite, box)) or box.width <= 0 or box.height <= 0:
        raise ValueError(f"{box} is not a box")
    side = geometry.side * math.sqrt(box.width) * math.sqrt(box.height)
    x, y = box.center
    upright = Square(x, y + geometry.down * box.height, side)
    if not align or detection.landmarks is None or geometry.landmarks is None:
        return upright
    if not np.isfinite(detection.landmarks).all():
        return upright
    # As complex numbers: a similarity transform is a factor and a summand.
    points = np.asarray(detection.landmarks, np.float64) @ (1, 1j)
    mean = geometry.landmarks @ (1, 1j)
    middle, mean_middle = points.mean(), mean.mean()
    spread = mean - mean_middle
    factor = np.vdot(spread, points - middle) / np.vdot(spread, spread).real
    if not (
        _PLAUSIBLE[0] * side < abs(factor) < _PLAUSIBLE[1] * side
        and abs(points[1] - points[0]) > _EYE_DISTANCE * side
        and abs(middle - complex(x, y)) < side
    ):
        return upright
    turn = factor / abs(factor)
    centre = middle + turn * side * (0.5 + 0.5j - mean_middle)
    return Square(float(centre.real), float(centre.imag), side, float(np.angle(turn)))


def crop_square(image: np.ndarray, square: Square, size: int) -> np.ndarray:
    """The square of an RGB picture uint8 [H, W, 3] as one of uint8 [size, size, 3].

    Time and memory depend on `size` and on what of the picture lies in the square, not on the
    square's own size.
    """
    height, width = image.shape[:2]
    scale = square.side / size
    # Half the diagonal, rounded up, and what interpolation reaches beyond.
    reach = 0.75 * square.side + 2 * max(scale, 1.0)
    left, right = _clip(square.x - reach, square.x + reach, width)
    top, bottom = _clip(square.y - reach, square.y + reach, height)
    if left >= right or top >= bottom:
        return np.zeros((size, size, 3), np.uint8)
    part = np.ascontiguousarray(image[top:bottom, left:right])
    # What is made smaller is averaged over areas, lest it alias: first down to at least two
    # pixels for one of the crop, then from a crop of twice the size. What is made larger is
    # interpolated linearly, as dlib does.
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
    # From the index of a pixel of the crop, whose middle is half a pixel further, to one of `part`.
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
