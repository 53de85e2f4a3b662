"""Writes the report of an evaluation: HTML, Markdown, JSON, figures and the predictions as CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agenet.evaluation.figure_style import to_image
from agenet.evaluation.page import Browser, Image, to_html, to_markdown
from agenet.evaluation.predictors.contents import Evaluation, compose, title_of
from agenet.evaluation.predictors.faces import LabelledFaces
from agenet.evaluation.predictors.figures import (
    errors_by_age,
    reliability_curves,
    subgroup_dots,
)
from agenet.evaluation.predictors.measures import METRICS, Estimate, Estimates
from agenet.evaluation.predictors.predictions import Predictions
from agenet.files import write_file, write_json
from agenet.labels import AGE_GROUPS, GENDERS, UNKNOWN

PAGE, TEXT, DATA, TABLE = "report.html", "report.md", "report.json", "predictions.csv"
_FIGURE = re.compile(r"(groups|calibration|errors)_[a-z0-9_]+\.png")
_COLUMNS = (
    *("predictor", "row", "path", "subject", "age", "age_low", "age_high", "age_group"),
    *("gender", "gender_probability", "label_age_low", "label_age_high", "label_gender"),
)
# The metric of each task that has a figure by subgroup.
_BY_GROUP = {"gender": ("gender_accuracy",), "age": ("range_error", "age_accuracy")}


def write_evaluation(folder: Path, evaluation: Evaluation, browser: Browser | None) -> None:
    """Writes report.html, report.md, report.json, predictions.csv and figures, each atomically.

    report.json is written last: where it exists, the other files do.

    Args:
        folder: is created.
        evaluation: the results.
        browser: of some of the faces; only the HTML page has it.

    Raises:
        OSError: a file cannot be written.
    """
    images = draw(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    for image in images.values():
        write_file(folder / image.name, image.content)
    for path in folder.iterdir():  # Figures of an earlier evaluation.
        if _FIGURE.fullmatch(path.name) and path.name not in {i.name for i in images.values()}:
            path.unlink()
    page = to_html(title_of(evaluation), compose(evaluation, images, browser))
    write_file(folder / PAGE, page.encode(errors="replace"))
    text = to_markdown(compose(evaluation, images, None))
    write_file(folder / TEXT, text.encode(errors="replace"))
    predictions = [each.predictions for each in evaluation.measured]
    write_file(folder / TABLE, to_csv(evaluation.faces, predictions).encode(errors="replace"))
    write_json(folder / DATA, summarize(evaluation))


def draw(evaluation: Evaluation) -> dict[str, Image]:
    """All figures, by name."""
    faces, measured = evaluation.faces, evaluation.measured
    known = faces.age_low != UNKNOWN
    age = np.where(known, (faces.age_low + faces.age_high) / 2, np.nan)
    about = (faces.name, faces.notice)
    figures: dict[str, tuple[Any, str]] = {
        "calibration_gender": (
            reliability_curves("gender", measured, *about),
            "Reliability diagram, gender",
        ),
        "calibration_age": (
            reliability_curves("age", measured, *about),
            "Reliability diagram, age group",
        ),
        "errors_age": (errors_by_age(age, measured, *about), "Age errors by labelled age"),
    }
    for task, metrics in _BY_GROUP.items():
        for metric in metrics:
            alt = f"{METRICS[metric].heading} by subgroup"
            figures[f"groups_{task}_{metric}"] = subgroup_dots(metric, measured, *about), alt
    return {
        name: to_image(figure, name, alt)
        for name, (figure, alt) in figures.items()
        if figure is not None
    }


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """The content of report.json: shares are from 0 to 1, intervals [low, high] or null."""
    faces = evaluation.faces
    return {
        "command": evaluation.command,
        "faces": {
            "name": faces.name,
            "notice": faces.notice,
            "count": len(faces),
            "gender": int((faces.gender != UNKNOWN).sum()),
            "exact_ages": int(faces.is_exact.sum()),
            "age_ranges": int(faces.is_range.sum()),
            "notes": list(evaluation.notes),
        },
        "predictors": [
            {
                "name": each.predictions.name,
                "source": each.predictions.source,
                "notes": list(each.predictions.notes),
                "missing": each.missing,
                "metrics": _estimates(each.estimates),
                "confusion": {task: counts.tolist() for task, counts in each.confusion.items()},
                "subgroups": [
                    {
                        "division": group.division,
                        "name": group.name,
                        "faces": group.faces,
                        "metrics": _estimates(group.estimates),
                    }
                    for group in each.groups
                ],
                "conditions": {
                    condition: _estimates(found)
                    for condition, found in evaluation.conditions.get(
                        each.predictions.name, {}
                    ).items()
                },
            }
            for each in evaluation.measured
        ],
        "differences": [
            {"first": d.first, "second": d.second, "metrics": _estimates(d.estimates)}
            for d in evaluation.differences
        ],
    }


def to_csv(faces: LabelledFaces, predictors: Sequence[Predictions]) -> str:
    """A row for each face and predictor: what is predicted and what is labelled."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for each in predictors:
        for at in range(len(faces)):
            labelled = faces.age_low[at] != UNKNOWN
            rows.writerow(
                [
                    _text(each.name),
                    faces.row[at],
                    _text(faces.path[at]) if faces.path else "",
                    _class(faces.subject[at]),
                    _number(each.age[at], 2),
                    _number(each.age_low[at]),
                    _number(each.age_high[at]),
                    _class(each.age_group[at], AGE_GROUPS),
                    _class(each.gender[at], GENDERS),
                    _number(each.gender_probability[at], 4),
                    faces.age_low[at] if labelled else "",
                    faces.age_high[at] if labelled else "",
                    _class(faces.gender[at], GENDERS),
                ]
            )
    return text.getvalue()


def _estimates(found: Estimates) -> dict[str, Any]:
    return {name: _estimate(each) for name, each in found.items()}


def _estimate(each: Estimate) -> Mapping[str, Any]:
    interval = list(each.interval) if each.interval else None
    return {
        "value": each.value,
        "interval": interval,
        "faces": each.faces,
        "subjects": each.subjects,
    }


def _text(text: str) -> str:
    """A path without unprintable characters, and not one that spreadsheets read as a formula."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"./{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _number(value: float, digits: int = 0) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _class(index: int, names: Sequence[str] | None = None) -> str:
    if index == UNKNOWN:
        return ""
    return names[index] if names else str(index)
