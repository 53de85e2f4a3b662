"""Test faces with their predictions: the most confident errors first."""

from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
from matplotlib.figure import Figure

from agenet.evaluation.figure_style import (
    CORRECT,
    INK,
    MARGIN,
    WRONG,
    add_axes,
    titled_figure,
    write,
)
from agenet.evaluation.page import Grid, Heading, Image, Node
from agenet.evaluation.summary import percent
from agenet.labels import TASK_CLASSES, UNKNOWN

FACES_PER_ROW = 8
FACE_SIZE = 160  # pixels, in an HTML page

# Title of a group of faces, and their positions [K].
Group = tuple[str, np.ndarray]
Predictions = Mapping[str, np.ndarray]
Faces = Callable[[np.ndarray], np.ndarray]


def choose_faces(
    log_probs: np.ndarray, labels: np.ndarray, subjects: np.ndarray
) -> tuple[Group, ...]:
    """The most confident errors and correct predictions, and the least confident predictions.

    A group has at most one face of a subject: the images of one subject are often so alike that
    one error would fill the sheet.

    Args:
        log_probs: [N, C].
        labels: [N]; faces without a label are left out.
        subjects: identifier of the subject [N]; each `UNKNOWN` counts as a subject of its own.
    """
    known = np.flatnonzero(labels != UNKNOWN)
    order = known[np.argsort(-log_probs[known].max(axis=1), kind="stable")]
    is_correct = log_probs[order].argmax(axis=1) == labels[order]

    def one_each(candidates: np.ndarray, rows: int) -> np.ndarray:
        chosen: list[int] = []
        seen: set[int] = set()
        for position in candidates.tolist():
            subject = int(subjects[position])
            if len(chosen) < rows * FACES_PER_ROW and subject not in seen - {UNKNOWN}:
                chosen.append(position)
                seen.add(subject)
        return np.array(chosen, dtype=np.int64)

    errors, correct = order[~is_correct], order[is_correct]
    return (
        (f"Most confident errors, of {len(errors):,}", one_each(errors, 2)),
        (f"Most confident correct predictions, of {len(correct):,}", one_each(correct, 1)),
        (f"Least confident predictions, of {len(order):,}", one_each(order[::-1], 1)),
    )


def face_sheet(
    task: str, predictions: Predictions, faces: Faces, subtitle: str, notice: str
) -> Figure:
    """A figure of the chosen faces with prediction, its probability and the true class.

    Args:
        task: "age" or "gender".
        predictions: `index` [N], `subject_id` [N], `<task>` [N], `<task>_log_probs` [N, C].
        faces: from rows of the data set, int [K], to images, uint8 RGB [K, S, S, 3].
        subtitle: model and data set.
        notice: what readers must know about the data, or "".
    """
    groups = list(_described(task, predictions, faces))
    tile, face, heading, caption = 1.32, 1.18, 0.42, 0.44
    lines = [-(-len(shown) // FACES_PER_ROW) for _, shown in groups]
    width = 2 * MARGIN + FACES_PER_ROW * tile - (tile - face)
    body = len(groups) * heading + sum(lines) * (face + caption) + 0.1
    title = f"{task.capitalize()}: predictions and true classes"
    subtitle = f"{subtitle}; at most one face of a subject per group"
    figure, y = titled_figure(width, body, title, subtitle, notice)
    for (group, shown), count in zip(groups, lines, strict=True):
        write(figure, MARGIN, y + 0.25, group, fontsize=12, weight="bold", color=INK)
        y += heading
        for place, (_, image, prediction, truth) in enumerate(shown):
            x = MARGIN + place % FACES_PER_ROW * tile
            foot = y + place // FACES_PER_ROW * (face + caption) + face
            axes = add_axes(figure, x, figure.get_figheight() - foot, face, face)
            axes.imshow(image)
            axes.set_axis_off()
            color = CORRECT if prediction.startswith("✓") else WRONG
            write(figure, x, foot + 0.16, prediction, fontsize=8.5, weight="bold", color=color)
            write(figure, x, foot + 0.31, truth, fontsize=8.5, color=INK)
        y += count * (face + caption)
    return figure


def face_gallery(task: str, predictions: Predictions, faces: Faces) -> list[Node]:
    """The same for an HTML page: grids of single faces; arguments as for `face_sheet`."""
    nodes: list[Node] = []
    for title, shown in _described(task, predictions, faces):
        grid = [
            Image(f"face_{task}_{at}.webp", _to_webp(image), "Face", f"{prediction}\n{truth}")
            for at, image, prediction, truth in shown
        ]
        nodes += [Heading(4, title), Grid(grid, "faces")]
    return nodes


def _described(
    task: str, predictions: Predictions, faces: Faces
) -> Iterator[tuple[str, list[tuple[int, np.ndarray, str, str]]]]:
    """For each group its title and faces: position, image, prediction and true class."""
    names, labels = TASK_CLASSES[task], predictions[task]
    log_probs = predictions[f"{task}_log_probs"]
    for title, chosen in choose_faces(log_probs, labels, predictions["subject_id"]):
        images = list(faces(predictions["index"][chosen])) if len(chosen) else []
        shown = []
        for at, image in zip(chosen.tolist(), images, strict=True):
            predicted = int(log_probs[at].argmax())
            mark = "✓" if predicted == labels[at] else "✗"
            probability = percent(float(np.exp(log_probs[at].max())), 0)
            prediction = f"{mark} {names[predicted]}, {probability} %"
            shown.append((at, image, prediction, f"true: {names[labels[at]]}"))
        yield title, shown


def _to_webp(image: np.ndarray) -> bytes:
    """An RGB image [S, S, 3], at most `FACE_SIZE` pixels wide."""
    if len(image) > FACE_SIZE:
        image = cv2.resize(image, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
