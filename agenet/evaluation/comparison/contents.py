"""What a page that compares runs says: from the runs to a document for `agenet.evaluation.page`."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from agenet.evaluation.comparison import figures
from agenet.evaluation.comparison.figures import Point
from agenet.evaluation.comparison.files import views_of
from agenet.evaluation.comparison.runs import FOLDS, Run
from agenet.evaluation.comparison.statistics import differences
from agenet.evaluation.comparison.tables import (
    Group,
    dataset_of,
    features_found,
    headline,
    is_adience,
    main_figures,
    pairs_table,
    reference,
    what_was_run,
)
from agenet.evaluation.figures import MIN_IN_BIN, percent
from agenet.evaluation.metrics import LEVEL, MIN_SUBJECTS, RESAMPLES
from agenet.evaluation.page import Details, Grid, Heading, Listing, Node, Picture, Text
from agenet.evaluation.published import FOLDS_DIFFER, LIMITS, REFERENCE, SOURCES
from agenet.evaluation.report import tested_state

MAX_SHEET = 32 << 20  # bytes of a sheet of faces
SHEET_WIDTH = 1400  # pixels


def compose(runs: Sequence[Run], *, faces: bool) -> tuple[str, list[Node]]:
    """Title and document of a comparison, with runs of different data sets kept apart.

    Args:
        runs: at least one.
        faces: whether the sheets of faces come along.

    Raises:
        UserError: predictions.npz of a run is damaged.
    """
    for run in runs:
        for test in run.tests:
            _ = test.predictions  # Raises for a damaged file before anything is drawn.
    looked = [(run, figures.look(number, run)) for number, run in enumerate(runs)]
    groups: dict[str, Group] = {}
    for run, look in looked:
        groups.setdefault(dataset_of(run), []).append((run, look))
    title = f"Age and gender: {len(runs)} run{'s' * (len(runs) > 1)} compared"
    nodes: list[Node] = [Heading(1, title)]
    if len(groups) > 1:
        names = ", ".join(groups)
        nodes.append(
            Text(
                f"These runs were tested on different data sets ({names}), so they stand in "
                "separate groups: a figure of one group does not compare with one of another.",
                "warning",
            )
        )
    nodes += _warnings(looked)
    for number, (name, group) in enumerate(groups.items()):
        prefix = f"{name}: " if len(groups) > 1 else ""
        nodes += _group(group, prefix, f"g{number}-", faces)
    nodes += [
        Heading(2, "What these networks cannot know", "limits"),
        Text(LIMITS),
        Heading(2, "How to read the figures", "reading"),
        *map(Text, _reading(looked)),
    ]
    if any(is_adience(group) for group in groups.values()):
        nodes += [Heading(3, "Sources"), Listing(SOURCES)]
    return title, nodes


def _warnings(group: Group) -> list[Node]:
    nodes: list[Node] = []
    notices: dict[str, list[str]] = {}
    for run, look in group:
        if notice := run.first["dataset"]["notice"]:
            notices.setdefault(notice, []).append(look.key)
        if run.leaks:
            seen, total = run.seen
            protocol = run.first["dataset"]["protocol"]
            split = " is split over images:" if protocol == "random" else ":"
            nodes.append(
                Text(
                    f"{look.key} ({run.name}){split} {percent(seen / max(total, 1))} % of its test "
                    f"faces ({seen:,} of {total:,}) show a person who was seen in training. Its "
                    "figures say how well the network knows these persons, and do not compare "
                    "with the others.",
                    "warning",
                )
            )
    for notice, keys in notices.items():
        nodes.append(Text(f"{', '.join(keys)}: {notice}", "warning"))
    return nodes


def _group(group: Group, prefix: str, anchor: str, faces: bool) -> list[Node]:
    tasks = [task for task in MAIN_TASKS if any(task in run.tasks for run, _ in group)]
    nodes: list[Node] = [
        Heading(2, f"{prefix}Results at a glance", f"{anchor}results"),
        *_same_test(group),
        headline(group),
        *(Text(text, "note") for text in (_uncertainty(group), features_found(group)) if text),
        _picture(
            f"{anchor}cost",
            figures.cost(group, tasks, _points() if is_adience(group) else {}),
            "Accuracy on the test against the time of training, one panel for each task",
            "Up and to the left is better. Times are of the machines named below: compare them "
            "only where the machine is the same.",
        ),
    ]
    if is_adience(group):
        nodes += [
            Heading(2, "The reference report's final tables", f"{anchor}reference"),
            reference(),
            Text(
                "As the reference report prints them. How it split the data is not documented, "
                "its machine is another one, and its EfficientNet's time covers both heads.",
                "note",
            ),
        ]
    nodes += [Heading(2, f"{prefix}What was run", f"{anchor}runs"), *what_was_run(group)]
    curves = figures.curves(group, tasks)
    if curves:
        picture = _picture(
            f"{anchor}curves",
            curves,
            "Loss and accuracy on validation data over epochs, all runs overlaid",
            "On validation data, which training never sees. A ring: the state that was tested. "
            "Of five folds: each thinly, and their mean.",
        )
        nodes += [Heading(2, f"{prefix}Learning curves", f"{anchor}curves"), picture]
    for task in tasks:
        nodes += _task(group, task, prefix, f"{anchor}{task}", faces)
    return nodes


MAIN_TASKS = ("age", "gender")


def _same_test(group: Group) -> list[Node]:
    """A warning where runs were not tested on the same faces, in as many views."""
    tests: dict[str, list[str]] = {}
    views = [views_of(run.first) for run, _ in group]
    for (run, look), count in zip(group, views, strict=True):
        dataset = run.first["dataset"]
        split = "persons" if dataset["protocol"] == "subject" else "images"
        where = "all five folds" if run.is_folds else f"fold {dataset['test_fold']}"
        what = f"{where}, split over {split}, {dataset['labels']} labels"
        what += f", means over views of a face: {count}" if len({*views}) > 1 else ""
        tests.setdefault(what, []).append(look.key)
    if len(tests) < 2:
        return []
    which = "; ".join(f"{', '.join(keys)}: {what}" for what, keys in tests.items())
    advice = "Part of any difference between them comes from that, not from the networks."
    alike = "Not all runs were tested on the same faces in the same way."
    return [Text(f"{alike} {which}. {advice}", "warning")]


def _uncertainty(group: Group) -> str:
    parts = []
    if any(not run.is_folds for run, _ in group):
        level = f"{100 * LEVEL:.0f} %"
        parts.append(f"Below a figure: its {level} interval, by persons, where the report has one.")
        if is_adience(group):
            parts.append(f"A single fold says little of the others; {FOLDS_DIFFER}")
    if any(run.is_folds for run, _ in group):
        parts.append("±: standard deviation over the five folds (sample, n - 1).")
    return " ".join(parts)


def _points() -> dict[str, list[Point]]:
    points: dict[str, list[Point]] = {"age": [], "gender": []}
    short = ("LH-CNN", "ResNet-50", "EffNet-B0")
    for name, (_, *tasks) in zip(short, REFERENCE, strict=True):
        for task, (accuracy, _, seconds) in zip(points, tasks, strict=True):
            points[task].append(Point(name, seconds, float(accuracy) / 100))
    return points


def _task(group: Group, task: str, prefix: str, anchor: str, faces: bool) -> list[Node]:
    tested = [(run, look) for run, look in group if task in run.tasks]
    name = task.capitalize()
    nodes: list[Node] = [Heading(2, f"{prefix}{name}", anchor), main_figures(tested, task)]
    nodes += _paired(tested, task, anchor)
    matrices = [
        _picture(
            f"{anchor}-confusion-{look.key}",
            figures.matrix(run, look, task),
            f"Confusion matrix of {look.label}, {task}",
        )
        for run, look in tested
    ]
    nodes += [Heading(3, f"{name}: what is taken for what"), Grid(matrices)]
    calibration = figures.calibration(tested, task)
    if calibration:
        picture = _picture(
            f"{anchor}-calibration",
            calibration,
            f"Reliability diagram, {task}: accuracy against the probability of the answer",
            "On the dotted line, of the answers given with 80 % certainty, 80 % are right; below "
            "it a network is too sure of itself. The larger the mark, the more faces; lines leave "
            f"out marks of fewer than {MIN_IN_BIN}.",
        )
        nodes += [Heading(3, f"{name}: can the probabilities be believed?"), picture]
    alt = f"Accuracy in {task} by subgroup, the runs beside each other"
    bars = [
        _picture(f"{anchor}-subgroups-{number}", figure, alt)
        for number, figure in enumerate(figures.bars(tested, task))
    ]
    if bars:
        text = (
            "Lines: 95 % intervals by person, where the report has them. Dots: single folds. Few "
            "faces are behind some bars; the report of each run has the numbers."
        )
        nodes += [Heading(3, f"{name}: who fares worse?"), *bars, Text(text, "note")]
    sheets = _sheets(tested, task, anchor) if faces else []
    if sheets:
        nodes += [
            Heading(3, f"{name}: faces"),
            Text(
                "Pictures of real people may follow: show them only where the terms of the data "
                "set allow it. A page without them: --no-faces.",
                "warning",
            ),
            Details(f"Show the sheets of faces ({len(sheets)})", sheets),
        ]
    return nodes


def _paired(group: Group, task: str, anchor: str) -> list[Node]:
    if len(group) < 2:
        return []
    found, apart = differences([run for run, _ in group], task)
    looks = {id(run): look for run, look in group}
    title = f"{task.capitalize()}: is the difference more than chance?"
    nodes: list[Node] = [Heading(3, title)]
    if found:
        nodes += [
            _picture(
                f"{anchor}-differences",
                figures.forest(found, looks, task),
                f"Difference in {task} accuracy of every two runs tested on the same faces",
                f"Lines: {100 * LEVEL:.0f} % intervals by person. Both runs of a pair answer for "
                "the same faces, and are resampled together: a line that crosses zero is a "
                "difference that other persons might have turned round."
                + " Of folds: over all their faces together, not quite the difference of the means."
                * any(r.is_folds for r, _ in group),
            ),
            pairs_table(found, looks),
        ]
    lacking = [look.key for run, look in group if any(t.predictions is None for t in run.tests)]
    others = [
        f"{looks[id(b)].key} and {looks[id(a)].key}"
        for a, b in apart
        if not {looks[id(a)].key, looks[id(b)].key} & set(lacking)
    ]
    if others:
        text = f"Not compared, tested on other faces or other labels: {', '.join(others)}."
        nodes.append(Text(text, "note"))
    if lacking:
        nodes.append(
            Text(
                f"Not compared face by face for want of predictions.npz: {', '.join(lacking)}. "
                "agenet evaluate --workdir=RUN writes it.",
                "note",
            )
        )
    return nodes


def _sheets(group: Group, task: str, anchor: str) -> list[Node]:
    """What each run has drawn of its faces, smaller; of folds that of the first."""
    nodes: list[Node] = []
    for run, look in group:
        content = _smaller(run.tests[0].workdir / f"faces_{task}.png")
        if content is not None:
            fold = ", fold 0" if run.is_folds else ""
            text = f"{look.label}{fold}: surest mistakes, surest right answers, least sure answers"
            nodes.append(Picture(f"{anchor}-faces-{look.key}.webp", content, text, text))
    return nodes


def _smaller(path: Path) -> bytes | None:
    """A PNG as WebP; None where there is none, or something else."""
    if not path.is_file() or path.stat().st_size > MAX_SHEET:
        return None
    png = path.read_bytes()
    # Signature, length and name of the first part, then width and height: no bomb is decoded.
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


def _picture(name: str, figure: Figure, alt: str, caption: str = "") -> Picture:
    svg, png = figures.to_svg(figure, name), figures.to_png(figure)
    wide = figure.get_figwidth() > 8
    return Picture(f"{name}.png", png, alt, caption, svg, wide)


def _reading(group: Group) -> list[str]:
    states: dict[str, list[str]] = {}
    for run, look in group:
        states.setdefault(tested_state(run.first["training"]), []).append(look.key)
    tested = "; ".join(f"{state} ({', '.join(keys)})" for state, keys in states.items())
    texts = [
        "Accuracy: the share of faces whose most probable class is the true one. 1-off: at most "
        "one age group away. Balanced accuracy: the mean of the recalls of the classes, so that a "
        "rare group counts as much as a common one. Always the largest class: naming the "
        "commonest class of the faces of each test. Loss: mean negative log-likelihood, in nats. "
        "Calibration error: expected distance of accuracy from the probability of the answer. "
        "ROC-AUC: how often, of a female and a male face, the male one has the greater probability "
        "of being male. MAE and CS@5: over faces whose age is known to the year.",
        f"Intervals: percentiles of {RESAMPLES:,} bootstrap resamples of persons, not of pictures, "
        "since the pictures of one person are alike. They say how far a figure could lie off "
        "because other persons might have been tested; what another training run would change is "
        f"not in them. Fewer than {MIN_SUBJECTS} persons give none.",
        f"What was tested: {tested}. A dash: the report of that run, which may be of an older "
        "version, does not have the figure.",
    ]
    if any(run.is_folds for run, _ in group):
        texts.append(
            f"Of {FOLDS} folds, figures are means of the folds' figures, whose standard deviation "
            "stands beside them; confusion matrices, reliability, subgroups and differences of "
            "pairs are pooled: the faces of all folds together."
        )
    return texts
