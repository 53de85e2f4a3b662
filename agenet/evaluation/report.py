"""Writes the report of a finished run: report.html, report.md, report.json and their figures."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agenet.data.records import name_tested
from agenet.evaluation.document import compose, describe_split, title_of
from agenet.evaluation.face_sheet import face_gallery, face_sheet
from agenet.evaluation.figure_style import to_image, to_png
from agenet.evaluation.figures import (
    confusion_matrix,
    learning_curves,
    reliability_diagram,
    subgroup_bars,
)
from agenet.evaluation.page import Image, Node, to_html, to_markdown
from agenet.evaluation.summary import Report
from agenet.files import write_file, write_json


def write_report(
    workdir: Path,
    summary: dict[str, Any],
    history: Sequence[dict[str, Any]],
    predictions: dict[str, np.ndarray],
    faces: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Writes report.html, report.md, report.json, predictions.npz and figures, each atomically.

    The figures are `learning_curves.png` (unless `history` is empty) and, for each task that has
    a labelled face, `confusion_<task>.png`, `reliability_<task>.png`, `subgroups_<task>.png` and
    `faces_<task>.png`. predictions.npz holds `predictions`. report.json is `summary`; it is
    written last: where it exists, the other files do.

    Args:
        workdir: an existing folder.
        summary: `command`, `config`, `dataset`, `model`, `machine`, `training` and `evaluation`,
            ready for JSON; `evaluation.tasks` has the result of `report_metrics` for each task.
        history: logged rows with `step`, `epoch` and any of the metrics.
        predictions: `index` (rows of the data set) [N], `subject_id` [N], for each task,
            `<task>` (labels) [N] and `<task>_log_probs` [N, C], and whatever else is known.
        faces: from rows of the data set, int [K], to images, uint8 RGB [K, S, S, 3].

    Raises:
        OSError: a file cannot be written.
    """
    images = _draw(summary, history)
    tasks = [task for task, metrics in summary["evaluation"]["tasks"].items() if metrics["count"]]
    sheets: dict[str, Sequence[Node]] = {}
    galleries: dict[str, Sequence[Node]] = {}
    for task in tasks:
        sheet = to_png(face_sheet(task, predictions, faces, *_subtitles(summary)))
        alt = f"Faces with predictions, {task}"
        sheets[task] = [Image(f"faces_{task}.png", sheet, alt)]
        write_file(workdir / f"faces_{task}.png", sheet)
        galleries[task] = face_gallery(task, predictions, faces)
    for image in images.values():
        write_file(workdir / image.name, image.content)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **predictions)
    write_file(workdir / "predictions.npz", arrays.getvalue())
    write_file(workdir / "report.md", to_markdown(compose(summary, images, sheets)).encode())
    page = to_html(title_of(summary), compose(summary, images, galleries))
    write_file(workdir / "report.html", page.encode())
    write_json(workdir / "report.json", summary)


def _draw(summary: Report, history: Sequence[dict[str, Any]]) -> dict[str, Image]:
    """All figures but the faces, by the names of their files without the ending."""
    tasks, about = summary["evaluation"]["tasks"], _subtitles(summary)
    images = {}
    if history:
        figure = learning_curves(history, list(tasks), summary["training"], *about)
        name = "learning_curves"
        images[name] = to_image(figure, name, "Loss and accuracy over epochs")
    for task, metrics in tasks.items():
        for kind, alt, draw in (
            ("confusion", "Confusion matrix", confusion_matrix),
            ("reliability", "Reliability diagram", reliability_diagram),
            ("subgroups", "Accuracy by subgroup", subgroup_bars),
        ):
            if metrics["count"]:
                name = f"{kind}_{task}"
                images[name] = to_image(draw(task, metrics, *about), name, f"{alt}, {task}")
    return images


def _subtitles(summary: Report) -> tuple[str, str]:
    """Subtitle and notice of all figures."""
    dataset = summary["dataset"]
    name = name_tested(dataset["name"])
    return f"{summary['model']['name']} · {name} · {describe_split(dataset)}", dataset["notice"]
