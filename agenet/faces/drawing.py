"""Draws boxes, predictions and a status line on images."""

from collections.abc import Sequence

import cv2
import numpy as np

from agenet.faces.face import Box, Face, Prediction

# The colour-blind-safe palette of Okabe and Ito (2008) without the colours too dark for black text.
# Colours distinguish faces; they do not encode predictions.
COLORS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
)
UNCERTAIN_COLOR = (200, 200, 200)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX
# Below these probabilities a label carries a question mark.
MIN_GENDER_PROBABILITY = 0.75
MIN_AGE_GROUP_PROBABILITY = 0.35
MAX_LONG_LABELS = 12  # with more faces, labels are short and small
MAX_LABEL_AREA = 0.08  # fraction of the image that a long label may cover; else it is shortened
MAX_OVERLAP = 0.1  # fraction of another label or face that a label may cover; else it is omitted


def draw_faces(
    image: np.ndarray,
    faces: Sequence[Face],
    *,
    numbers: Sequence[int] | None = None,
    status: str = "",
) -> np.ndarray:
    """Returns a copy of an image with boxes and labels drawn on it.

    Args:
        image: RGB uint8 [H, W, 3].
        faces: the faces to draw.
        numbers: track number of each face in a video, which determines its colour.
        status: text for the upper left corner.
    """
    image = np.array(image, order="C")
    scale = max(0.4, min(image.shape[:2]) / 1000)
    numbers = range(len(faces)) if numbers is None else numbers
    colors = [
        COLORS[number % len(COLORS)] if is_confident(face.prediction) else UNCERTAIN_COLOR
        for number, face in zip(numbers, faces, strict=True)
    ]
    for face, color in zip(faces, colors, strict=True):
        _draw_box(image, face.detection.box, color, scale)
    taken = np.array([face.detection.box for face in faces], float).reshape(-1, 4)
    if status:
        label = Label([status], scale)
        label.draw(image, (0, 0), BLACK, WHITE)
        taken = np.concatenate([taken, [[0, 0, *label.size]]])
    crowd = len(faces) > MAX_LONG_LABELS
    scale = max(0.4, 0.6 * scale) if crowd else scale
    # Ordered by number, not by size: labels must not jump from frame to frame.
    for i in sorted(range(len(faces)), key=lambda i: numbers[i]):
        full, brief = describe(faces[i].prediction), describe_briefly(faces[i].prediction)
        for lines in (brief,) if crowd else (full, brief):
            label = Label(lines, scale)
            if lines is full and np.prod(label.size) > MAX_LABEL_AREA * np.prod(image.shape[:2]):
                continue
            corner = label.find_place(image, i, taken) if lines else None
            if corner:
                label.draw(image, corner, colors[i], BLACK)
                taken = np.concatenate([taken, [[*corner, *np.add(corner, label.size)]]])
                break
    return image


def describe(prediction: Prediction) -> list[str]:
    """Formats a prediction as lines of text.

    >>> describe(Prediction(31.6, "25-32", {"25-32": 0.8}, "female", 0.97))
    ['32 years (25-32: 80%)', 'female 97%']
    >>> describe(Prediction(age_group="25-32", gender="male", gender_probability=0.55))
    ['25-32 years', 'male? 55%']
    """
    lines = []
    mark = "" if _is_age_confident(prediction) else "?"
    group = prediction.age_group
    probability = (prediction.age_probabilities or {}).get(group or "")
    if prediction.age is not None:
        percent = "" if probability is None else f": {_percent(probability)}"
        lines.append(
            f"{prediction.age:.0f}{mark} years" + (f" ({group}{percent})" if group else "")
        )
    elif group:
        percent = "" if probability is None else f" {_percent(probability)}"
        lines.append(f"{group}{mark} years{percent}")
    if prediction.gender is not None:
        mark = "" if _is_gender_confident(prediction) else "?"
        probability = prediction.gender_probability
        percent = "" if probability is None else f" {_percent(probability)}"
        lines.append(f"{prediction.gender}{mark}{percent}")
    return lines


def describe_briefly(prediction: Prediction) -> list[str]:
    """Formats a prediction as one short line; no line if it is empty.

    >>> describe_briefly(Prediction(31.6, "25-32", {"25-32": 0.2}, "female", 0.97))
    ['32? F']
    """
    words = []
    if prediction.age is not None or prediction.age_group:
        age = prediction.age_group if prediction.age is None else f"{prediction.age:.0f}"
        words.append(f"{age}" + ("" if _is_age_confident(prediction) else "?"))
    if prediction.gender is not None:
        words.append(
            prediction.gender[0].upper() + ("" if _is_gender_confident(prediction) else "?")
        )
    return [" ".join(words)] if words else []


def is_confident(prediction: Prediction) -> bool:
    """Whether no part of a prediction is shown with a question mark."""
    return _is_age_confident(prediction) and _is_gender_confident(prediction)


def _is_age_confident(prediction: Prediction) -> bool:
    probabilities = prediction.age_probabilities
    return not probabilities or max(probabilities.values()) >= MIN_AGE_GROUP_PROBABILITY


def _is_gender_confident(prediction: Prediction) -> bool:
    probability = prediction.gender_probability
    return probability is None or probability >= MIN_GENDER_PROBABILITY


def _percent(probability: float) -> str:
    # Never 100 %: no network is that certain.
    return f"{min(99, round(100 * probability))}%"


def _draw_box(image: np.ndarray, box: Box, color: Sequence[int], scale: float) -> None:
    """Draws a box with a dark outline, so that it is visible on any background."""
    left, top, right, bottom = (int(min(max(side, -20000), 20000)) for side in box)
    # Thin lines, so that they do not hide a small face.
    width = max(1, round(min(4 * scale, box.width / 16)))
    for line, ink in ((width + 2, BLACK), (width, color)):
        cv2.rectangle(image, (left, top), (right, bottom), ink, line)


class Label:
    """Lines of text on a filled rectangle; `size` is its width and height in pixels."""

    def __init__(self, lines: Sequence[str], scale: float) -> None:
        self._lines, self._scale = lines, scale
        self._pen = max(1, round(1.6 * scale))
        self._margin = round(8 * scale) + 1
        self._line_height = round(34 * scale)
        widest = max(
            (cv2.getTextSize(line, FONT, scale, self._pen)[0][0] for line in lines), default=0
        )
        self.size = (widest + 2 * self._margin, self._line_height * len(lines) + self._margin)

    def find_place(self, image: np.ndarray, face: int, taken: np.ndarray) -> tuple[int, int] | None:
        """Finds a position beside its face that covers no other face or label.

        The label may cover its own face if there is no other space.

        Args:
            image: uint8 [H, W, 3].
            face: index in `taken` of the face that the label belongs to.
            taken: rectangles of faces and labels, float [N, 4].

        Returns:
            The upper left corner (x, y); None if there is no such position.
        """
        width, height = self.size
        across, down = image.shape[1], image.shape[0]
        left, top, right, bottom = taken[face]
        if right <= 0 or bottom <= 0 or left >= across or top >= down:
            return None
        left, right = max(left, 0), min(right, across)
        corners = np.array(
            [
                (left, top - height - 2),
                (left, bottom + 2),
                (right - width, top - height - 2),
                (right - width, bottom + 2),
                (right + 2, top),
                (left - width - 2, top),
                (right + 2, bottom - height),
                (left - width - 2, bottom - height),
            ]
        )
        corners = corners.clip(0, (max(across - width, 0), max(down - height, 0))).astype(int)
        low, high = corners.min(0), corners.max(0) + self.size
        own = taken[face]
        near = taken[(taken[:, :2] < high).all(1) & (taken[:, 2:] > low).all(1)]
        others = near[(near != own).any(1)]
        covered = _covered(corners, self.size, others)
        best = int(np.argmin(2 * covered.sum(1) + _covered(corners, self.size, own[None])[:, 0]))
        if (covered[best] > MAX_OVERLAP * (others[:, 2:] - others[:, :2]).prod(1)).any():
            return None
        return int(corners[best, 0]), int(corners[best, 1])

    def draw(
        self,
        image: np.ndarray,
        corner: tuple[int, int],
        background: Sequence[int],
        ink: Sequence[int],
    ) -> None:
        end = (corner[0] + self.size[0] - 1, corner[1] + self.size[1] - 1)
        cv2.rectangle(image, corner, end, background, cv2.FILLED)
        for row, line in enumerate(self._lines, start=1):
            baseline = corner[1] + row * self._line_height - round(5 * self._scale)
            at = (corner[0] + self._margin, baseline)
            cv2.putText(image, line, at, FONT, self._scale, ink, self._pen, cv2.LINE_AA)


def _covered(corners: np.ndarray, size: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
    """Area of each box that rectangles of one size at the corners cover, [N, M]."""
    upper_left = np.maximum(boxes[:, :2], corners[:, None])
    lower_right = np.minimum(boxes[:, 2:], (corners + size)[:, None])
    return np.maximum(lower_right - upper_left, 0).prod(-1)
