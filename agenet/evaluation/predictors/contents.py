"""Composes the page of an evaluation: tables, figures, and the faces to browse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agenet.evaluation import bootstrap
from agenet.evaluation.metrics import largest_class_share
from agenet.evaluation.page import (
    NONE,
    Browser,
    Cell,
    Code,
    Facts,
    Grid,
    Heading,
    Image,
    Matrix,
    Node,
    Row,
    Table,
    Text,
)
from agenet.evaluation.predictors.faces import LabelledFaces
from agenet.evaluation.predictors.measures import (
    COMPARED,
    METRICS,
    Difference,
    Estimate,
    Estimates,
    Measured,
)
from agenet.evaluation.published import LIMITS
from agenet.evaluation.summary import percent, signed
from agenet.labels import TASK_CLASSES, UNKNOWN

# Columns of the tables by subgroup, and of that by condition.
OF_TASK = {
    "gender": ("gender_accuracy", "gender_calibration_error"),
    "age": ("age_accuracy", "one_off", "range_error", "inside", "mae", "cs5", "bias", "coverage"),
}
OF_CONDITION = ("gender_accuracy", "age_accuracy", "range_error", "inside", "mae")


@dataclass(frozen=True)
class Evaluation:
    """All that a report shows.

    Attributes:
        faces: the labelled faces.
        measured: each predictor on these.
        differences: of every two predictors.
        conditions: by predictor and condition, the metrics on changed images; often empty.
        notes: what readers must know about the faces.
        command: that made this.
        failed: what went wrong with predictors that are left out, a line for each.
    """

    faces: LabelledFaces
    measured: Sequence[Measured]
    differences: Sequence[Difference]
    conditions: Mapping[str, Mapping[str, Estimates]]
    notes: Sequence[str]
    command: str
    failed: Sequence[str] = ()


def title_of(evaluation: Evaluation) -> str:
    names = ", ".join(each.predictions.name for each in evaluation.measured)
    return f"{names} on {evaluation.faces.name}"


def compose(
    evaluation: Evaluation, images: Mapping[str, Image], browser: Browser | None
) -> list[Node]:
    """The document of an evaluation.

    Args:
        evaluation: the results.
        images: figures by name; any may be missing.
        browser: of some of the faces, for the HTML page.
    """
    faces, measured = evaluation.faces, evaluation.measured
    nodes: list[Node] = [Heading(1, title_of(evaluation))]
    if faces.notice:
        nodes.append(Text(faces.notice, "warning"))
    for each in measured:
        nodes += [
            Text(f"{each.predictions.name}: {note}", "warning") for note in each.predictions.notes
        ]
    nodes += [_about(evaluation), *(Text(note) for note in evaluation.notes)]
    nodes += [Heading(2, "Results", "results"), *_results(evaluation)]
    for task in ("gender", "age"):
        if (faces.label(task) != UNKNOWN).any():
            nodes += _task(task, evaluation, images)
    if evaluation.conditions:
        nodes += [Heading(2, "Changed images", "conditions"), *_conditions(evaluation)]
    if browser is not None:
        nodes += [Heading(2, "Faces", "faces"), *_faces(evaluation, browser)]
    shown = [name for name in METRICS if any(name in each.estimates for each in measured)]
    return [
        *nodes,
        Heading(2, "How this was measured", "definitions"),
        Facts([(METRICS[name].heading, METRICS[name].text) for name in shown]),
        Text(bootstrap.EXPLAINED, "note"),
        Heading(2, "Limits", "limits"),
        Text(LIMITS),
        Heading(2, "Command", "command"),
        Code(evaluation.command, "sh"),
    ]


def show(name: str, estimate: Estimate | None, strong: bool = False) -> Cell:
    """A metric as a table's cell, with its interval."""
    if estimate is None:
        return NONE
    about = METRICS[name]

    def text(value: float) -> str:
        return f"{about.factor * value:.{about.digits}f}"

    ends = estimate.interval
    # An en dash between numbers that may be negative would be misread.
    joint = " to " if name == "bias" else "–"
    return Cell(text(estimate.value), joint.join(map(text, ends)) if ends else "", strong)


def _about(evaluation: Evaluation) -> Facts:
    faces = evaluation.faces
    known = faces.subject != UNKNOWN
    subjects = f"{len(np.unique(faces.subject[known])):,}" if known.any() else "unknown"
    if known.any() and not known.all():
        subjects += f", unknown for {(~known).sum():,} faces"
    exact, ranged = int(faces.is_exact.sum()), int(faces.is_range.sum())
    rows = [
        ("Faces", f"{len(faces):,} of {faces.name}"),
        ("Subjects", subjects),
        ("Gender", f"labelled for {(faces.gender != UNKNOWN).sum():,}"),
        ("Age", f"to the year for {exact:,}, as a range for {ranged:,}"),
    ]
    rows += [(each.predictions.name, each.predictions.source) for each in evaluation.measured]
    return Facts(rows)


def _results(evaluation: Evaluation) -> list[Node]:
    faces, measured = evaluation.faces, evaluation.measured
    rows: list[Row] = [
        ["Faces with a prediction", *(f"{len(faces) - m.missing:,}" for m in measured)]
    ]
    if any(m.missing for m in measured):
        rows.append(["Faces without", *(f"{m.missing:,}" for m in measured)])
    for name, about in METRICS.items():
        found = [each.estimates.get(name) for each in measured]
        if any(found):
            main = name in COMPARED
            rows.append([about.heading, *(show(name, estimate, main) for estimate in found)])
        if name in ("gender_accuracy", "age_accuracy") and any(found):
            task = name.removesuffix("_accuracy")
            share = percent(_largest_class(faces.label(task), task))
            what = {"age": "age group", "gender": "gender"}[task]
            rows.append([f"Always the most frequent {what} %", *[share] * len(measured)])
    names = [each.predictions.name for each in measured]
    nodes: list[Node] = [Table(["", *names], rows)]
    if any(each.missing for each in measured):
        text = (
            "Faces without a prediction are left out of that predictor's metrics. If those are "
            "harder than the others, it looks better than it is."
        )
        nodes.append(Text(text, "note"))
    if evaluation.differences:
        text = (
            "Each face is compared with itself, over the faces that both predictors predicted. "
            "Bold: the interval does not hold 0."
        )
        nodes += [Heading(3, "Differences"), _differences(evaluation.differences)]
        nodes.append(Text(text, "note"))
    return nodes


def _largest_class(labels: np.ndarray, task: str) -> float | None:
    known = labels[labels != UNKNOWN]
    return largest_class_share(np.bincount(known, minlength=len(TASK_CLASSES[task])))


def _differences(differences: Sequence[Difference]) -> Table:
    names = [name for name in COMPARED if any(name in each.estimates for each in differences)]
    rows: list[Row] = [
        [
            f"{each.second} − {each.first}",
            *(_show_difference(name, each.estimates.get(name)) for name in names),
        ]
        for each in differences
    ]
    return Table(["", *(METRICS[name].heading.replace(" %", ", points") for name in names)], rows)


def _show_difference(name: str, estimate: Estimate | None) -> Cell:
    """The difference, its interval and the number of faces; bold where the interval is off 0."""
    if estimate is None:
        return NONE
    about, ends = METRICS[name], estimate.interval

    def text(value: float) -> str:
        return signed(about.factor * value, about.digits)

    interval = f"{text(ends[0])} to {text(ends[1])}; " if ends else ""
    is_clear = ends is not None and (ends[0] > 0 or ends[1] < 0)
    return Cell(text(estimate.value), f"{interval}{estimate.faces:,} faces", is_clear)


def _task(task: str, evaluation: Evaluation, images: Mapping[str, Image]) -> list[Node]:
    nodes: list[Node] = [Heading(2, task.capitalize(), task)]
    measured = evaluation.measured
    for index, each in enumerate(measured):
        counts = each.confusion[task]
        if counts.any():
            nodes.append(Heading(3, f"{task.capitalize()}: {each.predictions.name}"))
            nodes.append(Matrix(task, index, TASK_CLASSES[task], counts.tolist()))
            missing = int((evaluation.faces.label(task) != UNKNOWN).sum() - counts.sum())
            if missing:
                nodes.append(Text(f"Labelled faces without a prediction: {missing:,}.", "note"))
        else:
            nodes.append(Text(f"{each.predictions.name} predicts no {task}.", "note"))
    names = (f"calibration_{task}", f"errors_{task}")
    if grid := [images[name] for name in names if name in images]:
        nodes.append(Grid(grid))
    if any(each.confusion[task].any() for each in measured):
        nodes += [Heading(3, f"{task.capitalize()} by subgroup"), *_subgroups(task, measured)]
        nodes += [image for name, image in images.items() if name.startswith(f"groups_{task}_")]
    return nodes


def _subgroups(task: str, measured: Sequence[Measured]) -> list[Node]:
    nodes: list[Node] = []
    for each in measured:
        if not each.confusion[task].any():
            continue
        names = [name for name in OF_TASK[task] if name in each.estimates]
        rows: list[Row] = []
        division = ""
        for group in each.groups:
            if group.division != division:
                division = group.division
                rows.append(division)
            cells = [show(name, group.estimates.get(name)) for name in names]
            rows.append([group.name, f"{group.faces:,}", *cells])
        header = ["Group", "Faces", *(METRICS[name].heading for name in names)]
        if len(measured) > 1:
            nodes.append(Heading(4, each.predictions.name))
        nodes.append(Table(header, rows))
    return nodes


def _conditions(evaluation: Evaluation) -> list[Node]:
    nodes: list[Node] = [
        Text("The same faces, changed as the first column says before they are predicted.")
    ]
    for name, found in evaluation.conditions.items():
        metrics = [m for m in OF_CONDITION if any(m in each for each in found.values())]
        rows: list[Row] = [
            [condition, *(show(metric, each.get(metric)) for metric in metrics)]
            for condition, each in found.items()
        ]
        if len(evaluation.conditions) > 1:
            nodes.append(Heading(3, name))
        nodes.append(Table(["Images", *(METRICS[m].heading for m in metrics)], rows))
    return nodes


def _faces(evaluation: Evaluation, browser: Browser) -> list[Node]:
    shown, total = len(browser.cards), len(evaluation.faces)
    text = (
        f"This page holds {shown:,} of the {total:,} faces: the most confident errors of every "
        "cell of the confusion matrices, and for comparison some correct predictions. A cell of a "
        "confusion matrix above shows its faces here."
        if shown < total
        else "All faces. A cell of a confusion matrix above shows its faces here."
    )
    if shown:
        text += " These are images of people: publish them only where the data's terms allow it."
    return [Text(text), browser]


def summary_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main metrics of every predictor, for the terminal."""
    rows = []
    for name, about in METRICS.items():
        found = [each.estimates.get(name) for each in evaluation.measured]
        if any(found):
            cells = [show(name, estimate) for estimate in found]
            texts = [f"{c.text} ({c.more})" if c.more else c.text for c in cells]
            rows.append([about.heading, *texts])
    missing = [each.missing for each in evaluation.measured]
    if any(missing):
        rows.append(["faces without a prediction", *(f"{count:,}" for count in missing)])
    return ["", *(each.predictions.name for each in evaluation.measured)], rows
