"""Reads a run's report.json, and puts numbers of reports into words.

A report is the content of report.json: `command`, `config`, `dataset`, `model`, `machine`,
`initial`, `training` and `evaluation`. Reports of earlier versions lack some of it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agenet.data.records import extra_names, name_tested
from agenet.evaluation.metrics import CALIBRATION_BINS, LAST

Report = Mapping[str, Any]

# The main metrics of `agenet.evaluation.metrics`: table heading, factor, digits.
MAIN_METRICS = {
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
_DEFINITIONS = {
    "accuracy": "Accuracy: share of faces whose most probable class is the true one. Always the "
    "largest class: the accuracy of always predicting the most frequent class of the tested faces.",
    "one_off": "1-off: share of faces at most one age group off.",
    "balanced_accuracy": "Balanced accuracy: mean of the recalls of the classes, so that a rare "
    "group counts as much as a common one.",
    "roc_auc": "ROC-AUC: how often, of a female and a male face, the male one has the greater "
    "probability of being male.",
    "calibration_error": "Calibration error: expected calibration error, the mean distance of "
    "accuracy from the probability of the predicted class over "
    f"{CALIBRATION_BINS} equal bins of that probability.",
    "loss": "Loss: mean negative log-likelihood, in nats.",
    "mae": "MAE and CS@5: mean absolute error, and share at most five years off, over the faces "
    "whose age is known to the year, with or without an age group.",
}


def views_of(report: Report) -> int:
    """How many views of each face the predictions of a report are averaged over."""
    views: int = report["evaluation"].get("views", 1)
    return views


def is_finished(report: Report) -> bool:
    """Whether a report is of a finished run; `agenet evaluate` also works on unfinished ones."""
    training = report["training"]
    finished: bool = training.get("complete", training["steps"] == training.get("total_steps"))
    return finished


def pretraining_data(report: Report) -> str:
    """The face data sets that the initial weights of a run were trained on; empty if none."""
    return " and ".join(report.get("initial", {}).get("data", []))


def tested_state(report: Report) -> str:
    """Which state of the training was tested."""
    if report["training"].get("best_metric") == LAST:
        return "the state at the end of training"
    return "the state that was best on validation data"


def tested_epoch(training: Mapping[str, Any]) -> float:
    """When the tested state was saved, from `training` of a report."""
    epoch: float = training["best_step"] * training["epochs"] / max(training["steps"], 1)
    return epoch


def special_conditions(report: Report) -> str:
    """Sentences, each after a space, about what only few runs do."""
    extra, views = extra_names(report["dataset"]["name"]), views_of(report)
    faces = pretraining_data(report)
    text = f" The initial weights were trained on faces of {faces}." if faces else ""
    text += f" Also trained on {', '.join(extra)}." if extra else ""
    if views > 1:
        text += f" Each prediction is the mean over {views} views of a face."
    return text


def conditions(reports: Sequence[Report]) -> str:
    """Markdown: how runs were tested that differ in nothing but their test fold."""
    first, datasets = reports[0], [report["dataset"] for report in reports]
    dataset = datasets[0]
    weights = ", ".join(
        dict.fromkeys(f"`{report['model'].get('initial', '?')}`" for report in reports)
    )
    folds = ", ".join(str(each["test_fold"]) for each in datasets)
    seen = sum(each["leakage"]["seen_subject"] for each in datasets)
    tested = sum(each["leakage"]["test_faces"] for each in datasets)
    return (
        f"Initial weights {weights}; {tested_state(first)} is tested on "
        f"`{name_tested(dataset['name'])}`, fold{'s' * (len(datasets) > 1)} {folds}, "
        f"{dataset['labels']} labels, protocol `{dataset['protocol']}`: {seen:,} of {tested:,} "
        f"test faces show a subject from training.{special_conditions(first)}"
    )


def definitions(names: Collection[str]) -> str:
    """What the main metrics of these names are."""
    return " ".join(text for name, text in _DEFINITIONS.items() if name in names)


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 in per cent, without the sign; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, which is a minus, not a hyphen."""
    return f"{value:+.{digits}f}".replace("-", "−")


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
