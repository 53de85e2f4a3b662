"""Composes the page that compares runs: headings, explanations, tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agenet.evaluation import bootstrap
from agenet.evaluation.comparison import figures, tables
from agenet.evaluation.comparison.panels import RunStyle, Styled, names, style_of
from agenet.evaluation.comparison.runs import FOLDS, Run
from agenet.evaluation.comparison.statistics import differences
from agenet.evaluation.figure_style import MIN_IN_BIN, to_image
from agenet.evaluation.page import Details, Grid, Heading, Image, Listing, Node, Text
from agenet.evaluation.published import FOLDS_DIFFER, LIMITS, REFERENCE, SOURCES
from agenet.evaluation.summary import MAIN_METRICS, definitions, percent, tested_state, views_of
from agenet.labels import TASK_CLASSES

MAX_SHEET = 32 << 20  # bytes of a sheet of faces
SHEET_WIDTH = 1400  # pixels


def compose(
    runs: Sequence[Run], *, faces: bool, added_fields: Mapping[str, Any]
) -> tuple[str, list[Node]]:
    """Title and document of a comparison; runs of different data sets are kept apart.

    Args:
        runs: at least one.
        faces: whether to include the sheets of faces.
        added_fields: the default of each field that configs of earlier versions lack.

    Raises:
        UserError: predictions.npz of a run is damaged.
    """
    for run in runs:
        for test in run.tests:
            _ = test.predictions  # Raises for a damaged file before anything is drawn.
    styled = [(run, style_of(number, run)) for number, run in enumerate(runs)]
    groups: dict[str, list[tuple[Run, RunStyle]]] = {}
    for run, style in styled:
        groups.setdefault(tables.dataset_of(run), []).append((run, style))
    title = f"Age and gender: {len(runs)} run{'s' * (len(runs) > 1)} compared"
    nodes: list[Node] = [Heading(1, title)]
    if len(groups) > 1:
        text = (
            f"These runs were tested on different data sets ({', '.join(groups)}) and are shown in "
            "separate groups: results of one group do not compare with those of another."
        )
        nodes.append(Text(text, "warning"))
    nodes += _warnings(styled)
    for number, (name, group) in enumerate(groups.items()):
        prefix = f"{name}: " if len(groups) > 1 else ""
        nodes += _group(group, prefix, f"g{number}-", faces, added_fields)
    nodes += [
        Heading(2, "Limits", "limits"),
        Text(LIMITS),
        Heading(2, "How to read the results", "reading"),
        *map(Text, _reading(styled)),
    ]
    if any(tables.is_adience(group) for group in groups.values()):
        nodes += [Heading(3, "Sources"), Listing(SOURCES)]
    return title, nodes


def _warnings(runs: Styled) -> list[Node]:
    nodes: list[Node] = []
    notices: dict[str, list[RunStyle]] = {}
    for run, style in runs:
        if notice := run.first["dataset"]["notice"]:
            notices.setdefault(notice, []).append(style)
        if run.leaks:
            seen, total = run.seen
            by_image = run.first["dataset"]["protocol"] == "random"
            text = (
                f"{style.name}{' is split by image:' if by_image else ':'} "
                f"{percent(seen / max(total, 1))} % of its test faces ({seen:,} of {total:,}) show "
                "a subject from training. Its results show how well the network knows these "
                "subjects, and do not compare with the others."
            )
            nodes.append(Text(text, "warning"))
    for notice, styles in notices.items():
        nodes.append(Text(f"{names(styles)}: {notice}", "warning"))
    return nodes


def _group(
    group: Styled, prefix: str, anchor: str, faces: bool, added_fields: Mapping[str, Any]
) -> list[Node]:
    """The sections on runs that were tested on the same data set."""
    tasks = [task for task in TASK_CLASSES if any(task in run.tasks for run, _ in group)]
    notes = [_uncertainty(group), tables.features_found(group)]
    nodes: list[Node] = [
        Heading(2, f"{prefix}Main results", f"{anchor}results"),
        *_same_test(group),
        tables.headline(group),
        *(Text(text, "note") for text in notes if text),
        to_image(
            figures.cost(group, tasks, _points() if tables.is_adience(group) else {}),
            f"{anchor}cost",
            "Test accuracy against training time, one panel for each task",
            "Up and to the left is better. Times were measured on the machines listed below: "
            "compare them only where the machine is the same.",
        ),
    ]
    if tables.is_adience(group):
        text = (
            "As the reference report prints them. How it split the data is not documented, its "
            "machine is a different one, and the time of its EfficientNet covers both tasks."
        )
        heading = Heading(2, "The reference report's final tables", f"{anchor}reference")
        nodes += [heading, tables.reference(), Text(text, "note")]
    nodes += [Heading(2, f"{prefix}What was run", f"{anchor}runs"), *tables.what_was_run(group)]
    nodes += tables.settings(group, added_fields)
    if curves := figures.curves(group, tasks):
        image = to_image(
            curves,
            f"{anchor}curves",
            "Loss and accuracy on validation data over epochs, all runs overlaid",
            "On validation data, which training never sees. Ring: the state that was tested. Of "
            "five folds: each as a thin line, and their mean.",
        )
        nodes += [Heading(2, f"{prefix}Learning curves", f"{anchor}curves"), image]
    for task in tasks:
        nodes += _task(group, task, prefix, f"{anchor}{task}", faces)
    return nodes


def _same_test(group: Styled) -> list[Node]:
    """A warning if runs were not tested on the same faces, in as many views."""
    tests: dict[str, list[RunStyle]] = {}
    views = [views_of(run.first) for run, _ in group]
    for (run, style), count in zip(group, views, strict=True):
        dataset = run.first["dataset"]
        split = "subject" if dataset["protocol"] == "subject" else "image"
        where = "all five folds" if run.is_folds else f"fold {dataset['test_fold']}"
        what = f"{where}, split by {split}, {dataset['labels']} labels"
        what += f", mean over {count} views of a face" if len({*views}) > 1 else ""
        tests.setdefault(what, []).append(style)
    if len(tests) < 2:
        return []
    text = (
        "Not all runs were tested on the same faces in the same way. "
        f"{'; '.join(f'{names(styles)}: {what}' for what, styles in tests.items())}. "
        "Part of any difference between them comes from that, not from the networks."
    )
    return [Text(text, "warning")]


def _uncertainty(group: Styled) -> str:
    parts = []
    if any(not run.is_folds for run, _ in group):
        level = f"{100 * bootstrap.LEVEL:.0f} %"
        parts.append(f"Below a result: its {level} interval by subject, if the report has one.")
        if tables.is_adience(group):
            parts.append(f"A single fold says little about the others; {FOLDS_DIFFER}")
    if any(run.is_folds for run, _ in group):
        parts.append("±: standard deviation over the five folds (sample, n - 1).")
    return " ".join(parts)


def _points() -> dict[str, list[figures.Point]]:
    """The results of the reference report for each task."""
    names = ("LH-CNN", "ResNet-50", "EffNet-B0")
    points: dict[str, list[figures.Point]] = {task: [] for task in TASK_CLASSES}
    for name, (_, *results) in zip(names, REFERENCE, strict=True):
        for task, (accuracy, _, seconds) in zip(points, results, strict=True):
            points[task].append((name, seconds, float(accuracy) / 100))
    return points


def _task(group: Styled, task: str, prefix: str, anchor: str, faces: bool) -> list[Node]:
    tested = [(run, style) for run, style in group if task in run.tasks]
    name = task.capitalize()
    nodes: list[Node] = [Heading(2, f"{prefix}{name}", anchor), tables.main_metrics(tested, task)]
    nodes += _paired(tested, task, anchor)
    matrices = [
        to_image(
            figures.matrix(run, style, task),
            f"{anchor}-confusion-{number}",
            f"Confusion matrix of {style.name}, {task}",
        )
        for number, (run, style) in enumerate(tested)
    ]
    nodes += [Heading(3, f"{name}: confusion matrices"), Grid(matrices)]
    if calibration := figures.calibration(tested, task):
        image = to_image(
            calibration,
            f"{anchor}-calibration",
            f"Reliability diagram, {task}: accuracy against the predicted probability",
            "On the dotted line, 80 % of the predictions with a probability of 80 % are correct; "
            "below it a network is overconfident. The larger the marker, the more faces; lines "
            f"leave out markers of fewer than {MIN_IN_BIN} faces.",
        )
        nodes += [Heading(3, f"{name}: calibration"), image]
    alt = f"Accuracy in {task} by subgroup, the runs side by side"
    bars = [
        to_image(figure, f"{anchor}-subgroups-{number}", alt)
        for number, figure in enumerate(figures.bars(tested, task))
    ]
    if bars:
        text = (
            "Lines: 95 % intervals by subject, if the report has them. Dots: single folds. Some "
            "bars stand for few faces; the report of each run has the numbers."
        )
        nodes += [Heading(3, f"{name}: accuracy by subgroup"), *bars, Text(text, "note")]
    sheets = _sheets(tested, task, anchor) if faces else []
    if sheets:
        text = (
            "Images of real people may follow: show them only where the terms of the data set "
            "allow it. A page without them: --no-faces."
        )
        details = Details(f"Show the sheets of faces ({len(sheets)})", sheets)
        nodes += [Heading(3, f"{name}: faces"), Text(text, "warning"), details]
    return nodes


def _paired(group: Styled, task: str, anchor: str) -> list[Node]:
    """Differences of every two runs on the same faces."""
    if len(group) < 2:
        return []
    found, apart = differences([run for run, _ in group], task)
    styles = {id(run): style for run, style in group}
    nodes: list[Node] = [Heading(3, f"{task.capitalize()}: are the differences significant?")]
    if found:
        caption = (
            f"Lines: {100 * bootstrap.LEVEL:.0f} % intervals by subject. Both runs of a pair "
            "predict the same faces and are resampled together: where a line crosses zero, the "
            "order of the two may be different for other subjects."
        )
        if any(run.is_folds for run, _ in group):
            caption += (
                " For folds the faces of all folds are pooled, which is not quite the difference "
                "of the means."
            )
        alt = f"Difference in {task} accuracy of every two runs tested on the same faces"
        image = to_image(figures.forest(found, styles, task), f"{anchor}-differences", alt, caption)
        nodes += [image, tables.pairs_table(found, styles)]
    lacking = [s for run, s in group if any(test.predictions is None for test in run.tests)]
    others = [
        f"{styles[id(b)].name} and {styles[id(a)].name}"
        for a, b in apart
        if styles[id(a)] not in lacking and styles[id(b)] not in lacking
    ]
    if others:
        text = f"Not compared, tested on other faces or other labels: {', '.join(others)}."
        nodes.append(Text(text, "note"))
    if lacking:
        text = (
            f"Not compared face by face for lack of predictions.npz: {names(lacking)}. "
            "agenet evaluate --workdir=RUN writes it."
        )
        nodes.append(Text(text, "note"))
    return nodes


def _sheets(group: Styled, task: str, anchor: str) -> list[Node]:
    """The sheets of faces that the runs have drawn, made smaller; for folds that of the first."""
    nodes: list[Node] = []
    for number, (run, style) in enumerate(group):
        content = _smaller(run.tests[0].workdir / f"faces_{task}.png")
        if content is not None:
            text = f"{style.label}{', fold 0' * run.is_folds}: most confident errors, most "
            text += "confident correct predictions, least confident predictions"
            name = f"{anchor}-faces-{number}.webp"
            nodes.append(Image(name, content, text, text, wide=True))
    return nodes


def _smaller(path: Path) -> bytes | None:
    """A PNG as WebP; None if there is none, or if it is something else."""
    if not path.is_file() or path.stat().st_size > MAX_SHEET:
        return None
    png = path.read_bytes()
    # Signature, length and name of the first part, then width and height: checked before decoding,
    # as a small file may stand for a huge image.
    size = [int.from_bytes(png[start : start + 4], "big") for start in (16, 20)]
    if png[:8] != b"\x89PNG\r\n\x1a\n" or not 0 < size[0] * size[1] <= 50_000_000:
        return None
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return None
    if image.shape[1] > SHEET_WIDTH:
        height = round(image.shape[0] * SHEET_WIDTH / image.shape[1])
        image = cv2.resize(image, (SHEET_WIDTH, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 70])[1].tobytes()


def _reading(runs: Styled) -> list[str]:
    states: dict[str, list[RunStyle]] = {}
    for run, style in runs:
        states.setdefault(tested_state(run.first), []).append(style)
    tested = "; ".join(f"{state}: {names(styles)}" for state, styles in states.items())
    texts = [
        definitions(MAIN_METRICS),
        bootstrap.EXPLAINED,
        f"What was tested: {tested}. A dash: the report of that run, which may be of an older "
        "version, does not have the value.",
    ]
    if any(run.is_folds for run, _ in runs):
        texts.append(
            f"For {FOLDS} folds, results are means over the folds with their standard deviation; "
            "confusion matrices, reliability, subgroups and differences of pairs pool the faces of "
            "all folds."
        )
    return texts
