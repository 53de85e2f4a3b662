"""Composes the report of a run: headings, explanations, tables and figures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agenet.data.records import name_tested
from agenet.evaluation import bootstrap
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
    Row,
    Table,
    Text,
)
from agenet.evaluation.published import FOLDS_DIFFER, LIMITS, PUBLISHED, SOURCES, on_adience
from agenet.evaluation.summary import (
    MAIN_METRICS,
    Report,
    definitions,
    duration,
    epochs,
    percent,
    special_conditions,
    tested_epoch,
    tested_state,
)
from agenet.labels import TASK_CLASSES

EXACT_AGES = "Faces of exact age"


def title_of(summary: Report) -> str:
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
    nodes: list[Node] = [Heading(1, title_of(summary))]
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


def describe_split(dataset: Mapping[str, Any]) -> str:
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
        ("Split", f"{describe_split(dataset)} ({subjects}), seed {dataset['seed']}"),
        ("Model", f"{model['name']}, flavour {model['flavour']}"),
        ("Parameters", f"{model['parameters']:,}, {model['trained']:,} of them trained"),
        ("Initial weights", model["initial"]),
        ("Training time", f"{duration(training['seconds'])}, {training['epochs']:.3g} epochs"),
        ("Tested", tested),
        ("Machine", f"{machine['devices']}, {machine['processor']}"),
        ("Versions", versions),
    ]
    notes = special_conditions(summary).strip()
    return Facts([*rows, ("Notes", notes)] if notes else rows)


def _leakage(dataset: Mapping[str, Any]) -> Text:
    seen, total = dataset["leakage"]["seen_subject"], dataset["leakage"]["test_faces"]
    share = percent(seen / total) if seen else "0"
    text = f"{share} % of the test faces ({seen:,} of {total:,}) show a subject from training."
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
    rows: list[Row] = [["Faces", *(_count(m, "count") for m in results)]]
    if "subjects" in present:
        rows.append(["Subjects", *(_count(m, "subjects") for m in results)])
    for name, (heading, *_) in MAIN_METRICS.items():
        if name == "mae" and name in present:
            rows.append([EXACT_AGES, *(_count(m, "exact_ages") for m in results)])
        if name in present:
            rows.append([heading, *(_metric(m, name, name == "accuracy") for m in results)])
        if name == "accuracy":
            baselines = [_largest_class(task, metrics) for task, metrics in tasks.items()]
            rows.append(["Always the largest class %", *baselines])
    nodes: list[Node] = [
        Table(["", *tasks], rows),
        Text(
            f"Faces without a label for a task are left out of it. {definitions(present)}", "note"
        ),
    ]
    if "mae" in present:
        nodes.append(Text(f"The predicted age is {_predicted_age(age_head)}", "note"))
    return [*nodes, Text(bootstrap.EXPLAINED, "note")] if "intervals" in present else nodes


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


def _count(metrics: Mapping[str, Any], name: str) -> Cell | str:
    return f"{metrics[name]:,}" if name in metrics else NONE


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
    run = Cell("This run", f"{describe_split(dataset)}, {dataset['labels']} labels", strong=True)
    first = [run, *(NONE if s is None else Cell(percent(s), strong=True) for s in shares)]
    text = (
        "Sources 1 and 2 give averages over the five official folds, which share no subjects. This "
        f"run is one fold only, and {FOLDS_DIFFER}"
    )
    if dataset["protocol"] == "random":
        text += " It is split by image and does not compare with them."
    return [
        Heading(3, "Published results"),
        Table(["System", "Age %", "Age 1-off %", "Gender %"], [first, *PUBLISHED]),
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
    names = TASK_CLASSES[task]
    rows: list[Row] = []
    for index, name in enumerate(names):
        errors = np.array(metrics["confusion"][index])
        support = int(errors.sum())
        errors[index] = 0
        other, most = int(errors.argmax()), int(errors.max())
        mistaken = Cell(names[other], f"{percent(most / support)} %") if most else NONE
        cells = [name, f"{counts['train'][task][index]:,}", f"{support:,}"]
        rows.append([*cells, percent(metrics["recall"][index]), mistaken])
    header = [task.capitalize(), "Training faces", f"{split.capitalize()} faces", "Recall %"]
    return Table([*header, "Most often mistaken for"], rows)


def _subgroups(task: str, metrics: Mapping[str, Any]) -> list[Node]:
    names = ["accuracy", "one_off" if task == "age" else "roc_auc"]
    names += ["balanced_accuracy", "calibration_error", "loss"]
    years = ["mae", "cs5"] if "mae" in metrics else []
    rows: list[Row] = []
    for division, groups in metrics["subgroups"].items():
        meaningless = {"balanced_accuracy", "calibration_error"} if division == task else set()
        for group in groups:
            row: list[Cell | str] = [f"{division}: {group['name']}"]
            row += [_count(group, name) for name in ("count", "subjects")]
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
    nodes: list[Node] = [Table(header, [row], frozenset())]
    if steps < total and training["complete"]:
        text = f"Stopped early: {training['best_metric']} had not improved within the patience."
        nodes.append(Text(text))
    if found := training["epochs_found"]:
        text = f"Features of {epochs(found)} were cached on disk: their time is not included."
        nodes.append(Text(text))
    return nodes


def _counts(counts: Mapping[str, Any], tasks: Sequence[str]) -> list[Node]:
    rows = [[name, f"{c['faces']:,}", f"{c['subjects']:,}"] for name, c in counts.items()]
    tables: list[Node] = [Table(["Split", "Faces", "Subjects"], rows)]
    for task in tasks:
        rows = [
            [name, *(f"{n:,}" for n in (*c[task], c["faces"] - sum(c[task])))]
            for name, c in counts.items()
        ]
        tables.append(Table([task.capitalize(), *TASK_CLASSES[task], "no label"], rows))
    return tables
