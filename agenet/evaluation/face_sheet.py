"""Test faces with their predictions: the most confident errors first."""

from collections.abc import Callable, Mapping

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

# Heading of a group on a sheet of faces, and the positions [K] of its faces.
Group = tuple[str, np.ndarray]


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
    task: str,
    predictions: Mapping[str, np.ndarray],
    faces: Callable[[np.ndarray], np.ndarray],
    subtitle: str,
    notice: str,
) -> Figure:
    """Faces with prediction, its probability and the true class.

    Args:
        task: "age" or "gender".
        predictions: `index` [N], `subject_id` [N], `<task>` [N], `<task>_log_probs` [N, C].
        faces: from rows of the data set, int [K], to images, uint8 RGB [K, S, S, 3].
        subtitle: model and data set.
        notice: what readers must know about the data, or "".
    """
    labels, log_probs = predictions[task], predictions[f"{task}_log_probs"]
    groups = choose_faces(log_probs, labels, predictions["subject_id"])
    tile, face, heading, caption = 1.32, 1.18, 0.42, 0.44
    lines = [-(-len(chosen) // FACES_PER_ROW) for _, chosen in groups]
    width = 2 * MARGIN + FACES_PER_ROW * tile - (tile - face)
    body = len(groups) * heading + sum(lines) * (face + caption) + 0.1
    title = f"{task.capitalize()}: predictions and true classes"
    subtitle = f"{subtitle}; at most one face of a subject per group"
    figure, y = titled_figure(width, body, title, subtitle, notice)
    height = figure.get_figheight()
    for (group, chosen), count in zip(groups, lines, strict=True):
        write(figure, MARGIN, y + 0.25, group, fontsize=12, weight="bold", color=INK)
        y += heading
        images = list(faces(predictions["index"][chosen])) if count else []
        for place, (position, image) in enumerate(zip(chosen, images, strict=True)):
            x = MARGIN + place % FACES_PER_ROW * tile
            foot = y + place // FACES_PER_ROW * (face + caption) + face
            axes = add_axes(figure, x, height - foot, face, face)
            axes.imshow(image)
            axes.set_axis_off()
            prediction, truth = _describe(task, log_probs[position], labels[position])
            color = CORRECT if prediction.startswith("✓") else WRONG
            write(figure, x, foot + 0.16, prediction, fontsize=8.5, weight="bold", color=color)
            write(figure, x, foot + 0.31, truth, fontsize=8.5, color=INK)
        y += count * (face + caption)
    return figure


def face_gallery(
    task: str,
    predictions: Mapping[str, np.ndarray],
    faces: Callable[[np.ndarray], np.ndarray],
) -> list[Node]:
    """The same for an HTML page: grids of single faces; arguments as for `face_sheet`."""
    labels, log_probs = predictions[task], predictions[f"{task}_log_probs"]
    nodes: list[Node] = []
    for title, chosen in choose_faces(log_probs, labels, predictions["subject_id"]):
        nodes.append(Heading(4, title))
        images = list(faces(predictions["index"][chosen])) if len(chosen) else []
        grid = []
        for position, image in zip(chosen.tolist(), images, strict=True):
            prediction, truth = _describe(task, log_probs[position], labels[position])
            name = f"face_{task}_{position}.webp"
            grid.append(Image(name, _to_webp(image), "Face", f"{prediction}\n{truth}"))
        nodes.append(Grid(grid, "faces"))
    return nodes


def _describe(task: str, log_probs: np.ndarray, label: int) -> tuple[str, str]:
    """Prediction with its probability, marked as correct or wrong, and the true class."""
    names, predicted = TASK_CLASSES[task], int(log_probs.argmax())
    probability = percent(float(np.exp(log_probs.max())), 0)
    mark = "✓" if predicted == label else "✗"
    return f"{mark} {names[predicted]}, {probability} %", f"true: {names[label]}"


def _to_webp(image: np.ndarray) -> bytes:
    """An RGB image [S, S, 3], at most `FACE_SIZE` pixels wide."""
    if len(image) > FACE_SIZE:
        image = cv2.resize(image, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
