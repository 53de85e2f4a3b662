"""Writes the report of a finished run: report.html, report.md, report.json and their figures."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agenet.data.records import name_tested
from agenet.evaluation.bootstrap import LEVEL, MIN_SUBJECTS, RESAMPLES
from agenet.evaluation.face_sheet import face_gallery, face_sheet
from agenet.evaluation.figure_style import to_image, to_png
from agenet.evaluation.figures import (
    confusion_matrix,
    learning_curves,
    reliability_diagram,
    subgroup_bars,
)
from agenet.evaluation.metrics import AGE_MIDPOINTS, LAST, largest_class_share
from agenet.evaluation.page import (
    NONE,
    Cell,
    Code,
    Details,
    Facts,
    Grid,
    Heading,
    Image,
    Listing,
    Node,
    Table,
    Text,
    to_html,
    to_markdown,
)
from agenet.evaluation.published import FOLDS_DIFFER, LIMITS, PUBLISHED, SOURCES, on_adience
from agenet.evaluation.summary import (
    MAIN_METRICS,
    Report,
    definitions,
    duration,
    epochs,
    exceptions,
    percent,
    tested_epoch,
    tested_state,
)
from agenet.files import write_file, write_json
from agenet.labels import TASK_CLASSES

INTERVALS = (
    f"Intervals: {100 * LEVEL:.0f} % percentiles of {RESAMPLES:,} bootstrap resamples of subjects, "
    "not of images, since the images of one subject are alike. They show how much a result depends "
    "on which subjects were tested, but not how much another training run would change it. No "
    f"interval: fewer than {MIN_SUBJECTS} subjects, or a metric that is undefined in too many "
    "resamples, or the calibration error, which comes out too large for few faces and in resamples."
)
EXACT_AGES = "Faces of exact age"


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
    page = to_html(_title(summary), compose(summary, images, galleries))
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
    return f"{summary['model']['name']} · {name} · {_split(dataset)}", dataset["notice"]


def _title(summary: Report) -> str:
    return f"{summary['model']['name']} on {name_tested(summary['dataset']['name'])}"


def compose(
    summary: Report, images: Mapping[str, Image], faces: Mapping[str, Sequence[Node]]
) -> list[Node]:
    """The document of a run.

    Args:
        summary: the content of report.json.
        images: figures by the names of their files without the ending; any may be missing.
        faces: what shows the faces of each task, if they are to be shown.
    """
    dataset, evaluation = summary["dataset"], summary["evaluation"]
    nodes: list[Node] = [Heading(1, _title(summary))]
    if dataset["notice"]:
        nodes.append(Text(dataset["notice"], "warning"))
    nodes += [_about(summary), _leakage(dataset), Heading(2, "Results", "results")]
    nodes += _results(evaluation["tasks"], summary["config"].get("heads", {}).get("age", ""))
    if on_adience(dataset):
        nodes += _published(summary)
    for task in evaluation["tasks"]:
        nodes += _task(task, summary, images)
        if task in faces:
            text = "These are images of the data set: publish them only where its terms allow it."
            heading = Heading(3, f"{task.capitalize()}: faces")
            nodes += [heading, Text(text, "note"), *faces[task]]
    nodes += [Heading(2, "Training", "training"), *_training(summary)]
    if "learning_curves" in images:
        text = (
            "Training metrics are means over the batches of an epoch while the network learns, "
            "with dropout and random augmentation; validation uses neither."
        )
        nodes += [images["learning_curves"], Text(text, "note")]
    return [
        *nodes,
        Heading(2, "Data", "data"),
        *_counts(dataset["counts"], list(evaluation["tasks"])),
        Heading(2, "Limits", "limits"),
        Text(LIMITS),
        Heading(2, "Command and config", "config"),
        Code(summary["command"], "sh"),
        Details("Full config", [Code(json.dumps(summary["config"], indent=2), "json")]),
    ]


def _split(dataset: Mapping[str, Any]) -> str:
    split = "by subject" if dataset["protocol"] == "subject" else "by image"
    return f"test fold {dataset['test_fold']}, split {split}"


def _about(summary: Report) -> Facts:
    dataset, model, training = summary["dataset"], summary["model"], summary["training"]
    subjects = {
        "subject": "no subject is in two splits",
        "random": "subjects may be in several splits",
    }[dataset["protocol"]]
    evaluation = summary["evaluation"]
    tested = f"{tested_state(summary)}, step {evaluation['step']:,} "
    tested += f"(epoch {tested_epoch(training):.3g}), on the {evaluation['split']} set"
    machine = summary["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rows = [
        ("Data", f"{name_tested(dataset['name'])}, {dataset['labels']} labels"),
        ("Split", f"{_split(dataset)} ({subjects}), seed {dataset['seed']}"),
        ("Model", f"{model['name']}, flavour {model['flavour']}"),
        ("Parameters", f"{model['parameters']:,}, {model['trained']:,} of them trained"),
        ("Initial weights", model["initial"]),
        ("Training time", f"{duration(training['seconds'])}, {training['epochs']:.3g} epochs"),
        ("Tested", tested),
        ("Machine", f"{machine['devices']}, {machine['processor']}"),
        ("Versions", versions),
    ]
    notes = exceptions(summary).strip()
    return Facts([*rows, ("Notes", notes)] if notes else rows)


def _leakage(dataset: Mapping[str, Any]) -> Text:
    seen, total = dataset["leakage"]["seen_subject"], dataset["leakage"]["test_faces"]
    share = percent(seen / total) if seen else "0"
    text = f"{share} % of the test faces ({seen:,} of {total:,}) show a person from training."
    if not seen:
        return Text(text)
    return Text(
        f"Warning: {text} The results show how well the network knows these subjects, not how it "
        "performs on others.",
        "warning",
    )


def _results(tasks: Mapping[str, Mapping[str, Any]], age_head: str) -> list[Node]:
    results = tasks.values()
    # Reports of older versions lack most of this.
    present = {name for metrics in results for name in metrics}
    rows = [[Cell("Faces"), *(_count(m, "count") for m in results)]]
    if "subjects" in present:
        rows.append([Cell("Subjects"), *(_count(m, "subjects") for m in results)])
    for name, (heading, *_) in MAIN_METRICS.items():
        if name == "mae" and name in present:
            rows.append([Cell(EXACT_AGES), *(_count(m, "exact_ages") for m in results)])
        if name in present:
            rows.append([Cell(heading), *(_metric(m, name, name == "accuracy") for m in results)])
        if name == "accuracy":
            baselines = [_largest_class(task, metrics) for task, metrics in tasks.items()]
            rows.append([Cell("Always the largest class %"), *baselines])
    nodes: list[Node] = [
        Table(["", *tasks], rows),
        Text(
            f"Faces without a label for a task are left out of it. {definitions(present)}", "note"
        ),
    ]
    if "mae" in present:
        nodes.append(Text(f"The predicted age is {_predicted_age(age_head)}", "note"))
    return [*nodes, Text(INTERVALS, "note")] if "intervals" in present else nodes


def _largest_class(task: str, metrics: Mapping[str, Any]) -> Cell:
    largest = int(np.argmax(metrics["support"]))
    share = largest_class_share(metrics["support"])
    return NONE if share is None else Cell(percent(share), TASK_CLASSES[task][largest])


def _predicted_age(head: str) -> str:
    if head in ("distribution", "ordinal"):
        return "the mean of the years from 0 to 100 under their probabilities."
    midpoints = ", ".join(f"{years:g}" for years in AGE_MIDPOINTS)
    return (
        f"the mean of the groups' midpoints ({midpoints} years) under their probabilities; 70, not "
        "80, stands for 60-100, in which there are fewer faces the older they are (mean of the "
        "usable rows of IMDb-Wiki's Wikipedia part: 70.3)."
    )


def _count(metrics: Mapping[str, Any], name: str) -> Cell:
    return Cell(f"{metrics[name]:,}") if name in metrics else NONE


def _metric(metrics: Mapping[str, Any], name: str, strong: bool = False) -> Cell:
    """A main metric and, if the report has intervals, its interval."""
    value = metrics.get(name)
    if value is None:
        return NONE
    _, factor, digits = MAIN_METRICS[name]
    more = ""
    if "intervals" in metrics:
        ends = metrics["intervals"].get(name)
        more = "–".join(f"{factor * end:.{digits}f}" for end in ends) if ends else "no interval"
    return Cell(f"{factor * value:.{digits}f}", more, strong)


def _published(summary: Report) -> list[Node]:
    dataset, tasks = summary["dataset"], summary["evaluation"]["tasks"]
    age, gender = tasks.get("age", {}), tasks.get("gender", {})
    shares = (age.get("accuracy"), age.get("one_off"), gender.get("accuracy"))
    run = Cell("This run", f"{_split(dataset)}, {dataset['labels']} labels", strong=True)
    rows = [[run, *(NONE if s is None else Cell(percent(s), strong=True) for s in shares)]]
    rows += [[*map(Cell, row)] for row in PUBLISHED]
    text = (
        "Sources 1 and 2 give averages over the five official folds, which share no subjects. This "
        f"run is one fold only, and {FOLDS_DIFFER}"
    )
    if dataset["protocol"] == "random":
        text += " It is split by image and does not compare with them."
    return [
        Heading(3, "Published results"),
        Table(["System", "Age %", "Age 1-off %", "Gender %"], rows),
        Text(text, "note"),
        Listing(SOURCES),
    ]


def _task(task: str, summary: Report, images: Mapping[str, Image]) -> list[Node]:
    metrics, name = summary["evaluation"]["tasks"][task], task.capitalize()
    split, counts = summary["evaluation"]["split"], summary["dataset"]["counts"]
    nodes: list[Node] = [Heading(2, name, task), _by_class(task, metrics, counts, split)]
    names = (f"{kind}_{task}" for kind in ("confusion", "reliability"))
    if grid := [images[name] for name in names if name in images]:
        nodes.append(Grid(grid))
    if metrics.get("subgroups"):
        nodes += [Heading(3, f"{name} by subgroup"), *_subgroups(task, metrics)]
    if f"subgroups_{task}" in images:
        nodes.append(images[f"subgroups_{task}"])
    return nodes


def _by_class(
    task: str, metrics: Mapping[str, Any], counts: Mapping[str, Any], split: str
) -> Table:
    names, rows = TASK_CLASSES[task], []
    for index, name in enumerate(names):
        errors = np.array(metrics["confusion"][index])
        support = int(errors.sum())
        errors[index] = 0
        other, most = int(errors.argmax()), int(errors.max())
        mistaken = Cell(names[other], f"{percent(most / support)} %") if most else NONE
        cells = [Cell(name), Cell(f"{counts['train'][task][index]:,}"), Cell(f"{support:,}")]
        rows.append([*cells, Cell(percent(metrics["recall"][index])), mistaken])
    header = [task.capitalize(), "Training faces", f"{split.capitalize()} faces", "Recall %"]
    return Table([*header, "Most often mistaken for"], rows)


def _subgroups(task: str, metrics: Mapping[str, Any]) -> list[Node]:
    names = ["accuracy", "one_off" if task == "age" else "roc_auc"]
    names += ["balanced_accuracy", "calibration_error", "loss"]
    years = ["mae", "cs5"] if "mae" in metrics else []
    rows = []
    for division, groups in metrics["subgroups"].items():
        meaningless = {"balanced_accuracy", "calibration_error"} if division == task else set()
        for group in groups:
            row = [Cell(f"{division}: {group['name']}"), _count(group, "count")]
            row.append(_count(group, "subjects"))
            row += [NONE if name in meaningless else _metric(group, name) for name in names]
            row += [_count(group, "exact_ages")] if years else []
            rows.append([*row, *(_metric(group, name) for name in years)])
    header = ["Group", "Faces", "Subjects", *(MAIN_METRICS[name][0] for name in names)]
    header += [EXACT_AGES, *(MAIN_METRICS[name][0] for name in years)] if years else []
    text = (
        "Balanced accuracy and calibration error mean nothing among faces that all have the same "
        f"true {task}."
    )
    return [Table(header, rows), Text(text, "note")]


def _training(summary: Report) -> list[Node]:
    training, step = summary["training"], summary["training"]["best_step"]
    steps, total = training["steps"], training.get("total_steps", training["steps"])
    header = ["Epochs", "Steps", "Time", "Images per second", "Tested step"]
    row = [
        f"{training['epochs']:.3g}",
        f"{steps:,}" if steps == total else f"{steps:,} of {total:,}",
        duration(training["seconds"]),
        f"{training['pictures_per_second']:,.1f}",
        f"{step:,} (epoch {tested_epoch(training):.3g})",
    ]
    if training["best_metric"] != LAST:
        header.append(f"Best {training['best_metric']}")
        row.append(f"{training['best_value']:.4f}")
    header.append("Evaluation time")
    row.append(duration(summary["evaluation"]["seconds"]))
    nodes: list[Node] = [Table(header, [[*map(Cell, row)]], frozenset())]
    if steps < total and training["complete"]:
        text = f"Stopped early: {training['best_metric']} had not improved within the patience."
        nodes.append(Text(text))
    if found := training["epochs_found"]:
        text = f"Features of {epochs(found)} were cached on disk: their time is not included."
        nodes.append(Text(text))
    return nodes


def _counts(counts: Mapping[str, Any], tasks: Sequence[str]) -> list[Node]:
    rows = [
        [Cell(name), Cell(f"{c['faces']:,}"), Cell(f"{c['subjects']:,}")]
        for name, c in counts.items()
    ]
    tables: list[Node] = [Table(["Split", "Faces", "Subjects"], rows)]
    for task in tasks:
        rows = [
            [Cell(name), *(Cell(f"{n:,}") for n in (*c[task], c["faces"] - sum(c[task])))]
            for name, c in counts.items()
        ]
        tables.append(Table([task.capitalize(), *TASK_CLASSES[task], "no label"], rows))
    return tables
