"""Files of a finished evaluation: report.md, report.json and the pictures they show."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agenet.data.records import extra_names, name_tested
from agenet.evaluation.comparison.files import seen_before, views_of
from agenet.evaluation.figures import (
    confusion_matrix,
    face_sheet,
    learning_curves,
    percent,
    reliability_diagram,
    subgroup_bars,
)
from agenet.evaluation.metrics import (
    AGE_MIDPOINTS,
    CALIBRATION_BINS,
    LAST,
    LEVEL,
    MIN_SUBJECTS,
    RESAMPLES,
)
from agenet.evaluation.published import FOLDS_DIFFER, LIMITS, PUBLISHED, SOURCES, on_adience
from agenet.files import write_file, write_json
from agenet.labels import TASK_CLASSES

INTERVALS = f"""\
In brackets: {100 * LEVEL:.0f} % intervals, percentiles of {RESAMPLES:,} bootstrap resamples of \
persons, not of pictures, since the pictures of one person are alike. They say how far the figures \
could lie off because other persons might have been tested; what another training run would \
change is not in them. *No interval*: fewer than {MIN_SUBJECTS} persons, or a figure that too many \
resamples leave undefined, or the calibration error, which resampling misjudges."""
# The main figures of `agenet.evaluation.metrics`: heading, factor, digits.
MAIN_FIGURES = {
    "accuracy": ("Accuracy %", 100, 1),
    "one_off": ("1-off %", 100, 1),
    "range_accuracy": ("Accuracy in the data set's own age ranges %", 100, 1),
    "balanced_accuracy": ("Balanced accuracy %", 100, 1),
    "roc_auc": ("ROC-AUC", 1, 3),
    "calibration_error": ("Calibration error %", 100, 1),
    "loss": ("Loss", 1, 4),
    "mae": ("MAE, years", 1, 2),
    "cs5": ("CS@5 %", 100, 1),
}
EXACT_AGES = "Faces of exact age"


def write_report(
    workdir: Path,
    summary: dict[str, Any],
    history: Sequence[dict[str, Any]],
    predictions: dict[str, np.ndarray],
    faces: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Writes report.md, report.json, predictions.npz and pictures, each at once or not at all.

    The pictures are `learning_curves.png` (unless `history` is empty) and, for each task that has
    a labelled face, `confusion_<task>.png`, `reliability_<task>.png`, `subgroups_<task>.png` and
    `faces_<task>.png`. predictions.npz holds `predictions`. report.json is `summary`; it is
    written last, so where it is, the rest is.

    Args:
        workdir: an existing folder.
        summary: `command`, `config`, `dataset`, `model`, `machine`, `training` and `evaluation`,
            ready for JSON; `evaluation.tasks` has the result of `report_metrics` for each task.
        history: logged rows with `step`, `epoch` and any of the metrics.
        predictions: `index` (rows of the data set) [N], `subject_id` [N], for each task,
            `<task>` (labels) [N] and `<task>_log_probs` [N, C], and whatever else is known.
        faces: from rows of the data set, int [K], to pictures, uint8 RGB [K, S, S, 3].

    Raises:
        OSError: a file cannot be written.
    """
    tasks = summary["evaluation"]["tasks"]
    dataset, notice = summary["dataset"], summary["dataset"]["notice"]
    name = name_tested(dataset["name"])
    subtitle = f"{summary['model']['name']} · {name} · {_split(dataset)}"
    pictures: dict[str, Figure] = {}
    if history:
        curves = learning_curves(history, list(tasks), summary["training"], subtitle, notice)
        pictures["learning_curves.png"] = curves
    for task, metrics in tasks.items():
        if metrics["count"]:
            confusion = confusion_matrix(task, metrics, subtitle, notice)
            pictures[f"confusion_{task}.png"] = confusion
            reliability = reliability_diagram(task, metrics, subtitle, notice)
            pictures[f"reliability_{task}.png"] = reliability
            bars = subgroup_bars(task, metrics, subtitle, notice)
            pictures[f"subgroups_{task}.png"] = bars
            sheet = face_sheet(task, predictions, faces, subtitle, notice)
            pictures[f"faces_{task}.png"] = sheet
    for name, figure in pictures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        write_file(workdir / name, png.getvalue())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **predictions)
    write_file(workdir / "predictions.npz", arrays.getvalue())
    write_file(workdir / "report.md", markdown(summary, set(pictures)).encode())
    write_json(workdir / "report.json", summary)


def markdown(summary: dict[str, Any], pictures: set[str]) -> str:
    """The report's text in GitHub's markdown, with those pictures embedded that there are."""
    dataset, model = summary["dataset"], summary["model"]
    evaluation, training = summary["evaluation"], summary["training"]

    def picture(name: str, alt: str) -> list[str]:
        return [f"![{alt}]({name})"] if name in pictures else []

    parts = [f"# {model['name']} on {name_tested(dataset['name'])}"]
    if dataset["notice"]:
        parts.append(f"**{dataset['notice']}**")
    parts += [_about(summary), _leakage(dataset), "## Results"]
    parts.append(_results(evaluation["tasks"], summary["config"].get("heads", {}).get("age", "")))
    if on_adience(dataset):
        parts += ["### Beside published results", _published(summary)]
        if dataset["protocol"] == "random":
            parts.append("This run is split over images: it does not compare with sources 1 and 2.")
        parts.append(
            "Sources 1 and 2 give averages over the five official folds, no two of which share a "
            f"person. This run is one fold only, and {FOLDS_DIFFER}"
        )
        parts.append("\n".join(f"{i}. {source}" for i, source in enumerate(SOURCES, 1)))
    for task, metrics in evaluation["tasks"].items():
        parts += [
            f"## {task.capitalize()}",
            _by_class(task, metrics, dataset["counts"], evaluation),
        ]
        parts += picture(f"confusion_{task}.png", f"Confusion matrix, {task}")
        reliability = f"Reliability diagram, {task}"
        parts += picture(f"reliability_{task}.png", reliability)
        if metrics.get("subgroups"):
            parts += [f"### {task.capitalize()} by subgroup", _subgroups(task, metrics)]
            parts += picture(f"subgroups_{task}.png", f"Accuracy by subgroup, {task}")
            parts.append("### Faces")
        parts += picture(f"faces_{task}.png", f"Faces with predicted and true {task}")
    parts += ["## Training", _training(training, evaluation)]
    curves = picture("learning_curves.png", "Loss and accuracy over epochs")
    if curves:
        parts += curves
        parts.append(
            "Training figures are means over batches while the network learns, with dropout and "
            "random crops; validation figures are taken without either."
        )
    parts += ["## Data", _counts(dataset["counts"], list(evaluation["tasks"]))]
    parts += ["## Limits", LIMITS, "## Machine and settings", _machine(summary["machine"])]
    parts.append(f"```sh\n{summary['command']}\n```")
    config = json.dumps(summary["config"], indent=2)
    parts.append(
        f"<details>\n<summary>Full config</summary>\n\n```json\n{config}\n```\n\n</details>"
    )
    return "\n\n".join(parts) + "\n"


def _split(dataset: dict[str, Any]) -> str:
    split = "over persons" if dataset["protocol"] == "subject" else "over images"
    return f"test fold {dataset['test_fold']}, split {split}"


def _about(summary: dict[str, Any]) -> str:
    dataset, model = summary["dataset"], summary["model"]
    protocol = {
        "subject": "split over persons (nobody is in two splits)",
        "random": "split over images, without regard to persons",
    }[dataset["protocol"]]
    return (
        f"Model `{model['name']}` (flavour `{model['flavour']}`) with {model['parameters']:,} "
        f"parameters, {model['trained']:,} of them trained, from weights `{model['initial']}`, "
        f"evaluated at step {summary['evaluation']['step']:,} on the "
        f"{summary['evaluation']['split']} set of `{name_tested(dataset['name'])}`: fold "
        f"{dataset['test_fold']}, protocol `{dataset['protocol']}`, {protocol}, "
        f"{dataset['labels']} labels, seed {dataset['seed']}.{_besides(summary)}"
    )


def _besides(report: Mapping[str, Any]) -> str:
    """Sentences on what few runs have."""
    extra, views = extra_names(report["dataset"]["name"]), views_of(report)
    told = f" The initial weights had seen {seen_before(report)}." if seen_before(report) else ""
    told += f" Trained on {', '.join(f'`{name}`' for name in extra)}, too." if extra else ""
    if views > 1:
        told += f" Every answer is the mean of those for {views} views of a face."
    return told


def tested_state(training: Mapping[str, Any]) -> str:
    """Which state the test is of, from the report's `training`."""
    if training.get("best_metric") == LAST:
        return "the state at the end of training"
    return "the state that was best on validation data"


def conditions(reports: Sequence[Mapping[str, Any]]) -> str:
    """What to know beside the figures of tests that differ in their fold, if in anything."""
    first, datasets = reports[0], [report["dataset"] for report in reports]
    dataset = datasets[0]
    weights = ", ".join(dict.fromkeys(f"`{report['model']['initial']}`" for report in reports))
    folds = ", ".join(str(each["test_fold"]) for each in datasets)
    seen = sum(each["leakage"]["seen_subject"] for each in datasets)
    tested = sum(each["leakage"]["test_faces"] for each in datasets)
    return (
        f"Initial weights {weights}; {tested_state(first['training'])} is tested on "
        f"`{name_tested(dataset['name'])}`, fold{'s' * (len(datasets) > 1)} {folds}, "
        f"{dataset['labels']} labels, protocol `{dataset['protocol']}`: {seen:,} of {tested:,} "
        f"test faces show a person from training.{_besides(first)}"
    )


def _leakage(dataset: dict[str, Any]) -> str:
    seen, total = dataset["leakage"]["seen_subject"], dataset["leakage"]["test_faces"]
    share = percent(seen / total) if seen else "0"
    sentence = f"{share} % of the test faces ({seen:,} of {total:,}) show a person from training."
    if not seen:
        return sentence
    return (
        f"> **Warning: {sentence}** The figures below say how well the network knows "
        "these persons, not how it would do on strangers."
    )


def _results(tasks: dict[str, dict[str, Any]], age_head: str) -> str:
    def baseline(task: str, metrics: dict[str, Any]) -> str:
        if not metrics["count"]:
            return "–"
        largest = int(np.argmax(metrics["support"]))
        share = percent(metrics["support"][largest] / metrics["count"])
        return f"{share} ({TASK_CLASSES[task][largest]})"

    results = tasks.values()
    # Reports of older versions lack most of this.
    present = {name for metrics in results for name in metrics}
    rows = [["Faces", *(f"{m['count']:,}" for m in results)]]
    if "subjects" in present:
        rows.append(["Persons", *(f"{m['subjects']:,}" for m in results)])
    for name, (heading, *_) in MAIN_FIGURES.items():
        if name == "mae" and name in present:
            rows.append([EXACT_AGES, *(_count(m, "exact_ages") for m in results)])
        if name in present:
            rows.append([heading, *(_figure(m, name, name == "accuracy") for m in results)])
        if name == "accuracy":
            rows.append(
                ["Always the largest class %", *(baseline(*item) for item in tasks.items())]
            )
    notes = [
        "Faces without a label for a task are left out of it. 1-off: at most one age group "
        "away. Balanced accuracy: mean of the recalls of the classes. Loss: mean negative "
        "log-likelihood. *Always the largest class* is what naming the commonest class of these "
        "very faces each time would reach."
    ]
    if "calibration_error" in present:
        notes[0] += (
            " Calibration error: expected calibration error, the mean distance of accuracy from "
            f"the probability of the predicted class over {CALIBRATION_BINS} equal bins of that "
            "probability; of few faces it comes out too large, which resampling cannot show."
        )
    if "roc_auc" in present:
        notes[0] += (
            " ROC-AUC: how often, of a female and a male face, the male one has the greater "
            "probability of being male."
        )
    if "mae" in present:
        notes.append(
            "MAE and CS@5: mean absolute error, and share at most five years off, over the faces "
            "whose age is known to the year, which may have no age group. The predicted age is "
            + _predicted_age(age_head)
        )
    if "intervals" in present:
        notes.append(INTERVALS)
    return "\n\n".join([_table(["", *tasks], rows), *notes])


def _predicted_age(head: str) -> str:
    if head in ("distribution", "ordinal"):
        return "the mean of the years from 0 to 100 under their probabilities."
    middles = ", ".join(f"{years:g}" for years in AGE_MIDPOINTS)
    return (
        f"the mean of the groups' middles ({middles} years) under their probabilities; 70, not "
        "80, stands for 60-100, whose ages thin out with the years (mean in the usable rows of "
        "IMDb-Wiki's Wikipedia part: 70.3)."
    )


def _count(metrics: dict[str, Any], name: str) -> str:
    return f"{metrics[name]:,}" if name in metrics else "–"


def _figure(metrics: dict[str, Any], name: str, bold: bool = False) -> str:
    """A main figure and, where the report has any, its interval."""
    value = metrics.get(name)
    if value is None:
        return "–"
    _, factor, digits = MAIN_FIGURES[name]
    text = f"{factor * value:.{digits}f}"
    text = f"**{text}**" if bold else text
    if "intervals" not in metrics:
        return text
    interval = metrics["intervals"].get(name)
    if interval is None:
        return f"{text} (no interval)"
    low, high = (f"{factor * end:.{digits}f}" for end in interval)
    return f"{text} ({low}–{high})"


def _subgroups(task: str, metrics: dict[str, Any]) -> str:
    names = ["accuracy", "one_off"] if task == "age" else ["accuracy", "roc_auc"]
    names += ["balanced_accuracy", "calibration_error", "loss"]
    years = ["mae", "cs5"] if "mae" in metrics else []
    rows = []
    for division, groups in metrics["subgroups"].items():
        left_out = {"balanced_accuracy", "calibration_error"} if division == task else set()
        for group in groups:
            row = [f"{division}: {group['name']}", f"{group['count']:,}", f"{group['subjects']:,}"]
            row += ["–" if name in left_out else _figure(group, name) for name in names]
            row += [_count(group, "exact_ages")] if years else []
            rows.append(row + [_figure(group, name) for name in years])
    header = ["Group", "Faces", "Persons", *(MAIN_FIGURES[name][0] for name in names)]
    header += [EXACT_AGES, *(MAIN_FIGURES[name][0] for name in years)] if years else []
    note = (
        "Balanced accuracy and calibration error say nothing among faces that all have the same "
        f"true {task}."
    )
    return _table(header, rows) + "\n\n" + note


def _published(summary: dict[str, Any]) -> str:
    dataset, tasks = summary["dataset"], summary["evaluation"]["tasks"]
    age, gender = tasks.get("age", {}), tasks.get("gender", {})
    run = f"**This run**, {_split(dataset)}, {dataset['labels']} labels"
    figures = (age.get("accuracy"), age.get("one_off"), gender.get("accuracy"))
    rows = [[run, *(f"**{percent(f)}**" if f is not None else "–" for f in figures)]]
    rows += [list(row) for row in PUBLISHED]
    return _table(["System", "Age %", "Age 1-off %", "Gender %"], rows)


def _by_class(
    task: str, metrics: dict[str, Any], counts: dict[str, Any], evaluation: dict[str, Any]
) -> str:
    names = TASK_CLASSES[task]
    rows = []
    for index, name in enumerate(names):
        mistakes = np.array(metrics["confusion"][index])
        support = int(mistakes.sum())
        mistakes[index] = 0
        other = int(mistakes.argmax())
        taken_for = "–"
        if mistakes[other]:
            taken_for = f"{names[other]} ({percent(mistakes[other] / support)} %)"
        rows.append(
            [name, f"{counts['train'][task][index]:,}", f"{support:,}"]
            + [percent(metrics["recall"][index]), taken_for]
        )
    faces = f"{evaluation['split'].capitalize()} faces"
    header = [task.capitalize(), "Training faces", faces, "Recall %", "Most often taken for"]
    return _table(header, rows)


def _training(training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    steps, best_step = training["steps"], training["best_step"]
    best_epoch = best_step * training["epochs"] / steps if steps else 0
    header = ["Epochs", "Steps", "Time", "Pictures per second", "Tested step"]
    total = training.get("total_steps", steps)
    run = f"{steps:,}" if steps == total else f"{steps:,} of {total:,}"
    row = [f"{training['epochs']:.3g}", run, duration(training["seconds"])]
    row += [f"{training['pictures_per_second']:,.1f}", f"{best_step:,} (epoch {best_epoch:.3g})"]
    if training["best_metric"] != LAST:
        header.append(f"Best {training['best_metric']}")
        row.append(f"{training['best_value']:.4f}")
    header.append("Time of the evaluation")
    row.append(duration(evaluation["seconds"]))
    parts, found = [_table(header, [row])], training["epochs_found"]
    if steps < total and training["complete"]:
        parts.append(
            f"Stopped early: {training['best_metric']} had not become better within the patience."
        )
    if found:
        parts.append(f"Features of {epochs(found)} were on disk already: their time is not in it.")
    return "\n\n".join(parts)


def _counts(counts: dict[str, Any], tasks: Sequence[str]) -> str:
    tables = [
        _table(
            ["Split", "Faces", "Persons"],
            [[name, f"{c['faces']:,}", f"{c['subjects']:,}"] for name, c in counts.items()],
        )
    ]
    for task in tasks:
        rows = [
            [name, *(f"{n:,}" for n in c[task]), f"{c['faces'] - sum(c[task]):,}"]
            for name, c in counts.items()
        ]
        tables.append(_table([task.capitalize(), *TASK_CLASSES[task], "no label"], rows))
    return "\n\n".join(tables)


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = {"Devices": machine["devices"], "Processor": machine["processor"]}
    return "\n".join(f"- {name}: {text}" for name, text in (lines | {"Versions": versions}).items())


def epochs(count: int) -> str:
    """A number of epochs in words."""
    return f"{count:,} epoch{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(4.25), duration(75), duration(7384)
    ('4.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table: text on the left in the first column, figures on the right in others."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
