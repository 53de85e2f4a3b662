"""The tables of a page that compares runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agenet.data.records import name_tested
from agenet.evaluation.comparison.panels import RunStyle, Styled, names
from agenet.evaluation.comparison.runs import Run
from agenet.evaluation.comparison.statistics import (
    Difference,
    Estimate,
    estimate,
    largest_class,
    training_mean,
)
from agenet.evaluation.page import NONE, Cell, Details, Node, Row, Table
from agenet.evaluation.published import PUBLISHED, REFERENCE, on_adience
from agenet.evaluation.summary import (
    MAIN_METRICS,
    Report,
    duration,
    epochs,
    percent,
    pretraining_data,
    signed,
    views_of,
)

MAX_SETTINGS = 80  # rows of the table of settings


def headline(runs: Styled) -> Table:
    """The main results of the runs, and below them the published ones on the same data."""
    header = ["System", "Tested on", "Age %", "Age 1-off %", "Age balanced %", "Age loss"]
    header += ["Gender %", "Gender balanced %", "Gender loss", "Training"]
    metrics = [("age", "accuracy"), ("age", "one_off"), ("age", "balanced_accuracy")]
    metrics += [("age", "loss"), ("gender", "accuracy"), ("gender", "balanced_accuracy")]
    metrics.append(("gender", "loss"))
    rows: list[Row] = ["Runs compared here"]
    largest: dict[tuple[str, ...], list[RunStyle]] = {}
    for run, style in runs:
        cells = [_metric(run, task, name, name == "accuracy") for task, name in metrics]
        name = _name(run, style, run.first["model"]["name"])
        rows.append([name, _tested_on(run), *cells, _training(run)])
        shares = (percent(largest_class(run, task)) for task in ("age", "gender"))
        largest.setdefault((_tested_on(run).text, *shares), []).append(style)
    for (where, age, gender), styles in largest.items():
        name = Cell("Always the largest class", f"on the test of {names(styles)}")
        rows.append([name, where, age, *"–––", gender, *"–––"])
    if is_adience(runs):
        rows += _published()
    return Table(header, rows, frozenset({0, 1}))


def _published() -> list[Row]:
    rows: list[Row] = ["The reference report; how it split the data is not documented"]
    of_report = [row for row in PUBLISHED if row[0].startswith("Reference report")]
    for row, (_, of_age, of_gender) in zip(of_report, REFERENCE, strict=True):
        time = duration(of_age[2] + of_gender[2] * (of_age[2] != of_gender[2]))
        age, gender = (of_age[0], "–", "–", of_age[1]), (of_gender[0], "–", of_gender[1])
        system = row[0].removeprefix("Reference report: ")
        rows.append([system, "not documented", *age, *gender, time])
    rows.append("Published, mean of the five official folds, split by subject")
    for system, exact, near, gender_accuracy in PUBLISHED:
        if not system.startswith("Reference report"):
            rows.append([system, "five folds", exact, near, *"––", gender_accuracy, *"–––"])
    return rows


def reference() -> Table:
    """The final tables of the reference report."""
    header = [
        "Network",
        "Age %",
        "Age loss",
        "Age, time",
        "Gender %",
        "Gender loss",
        "Gender, time",
    ]
    rows = []
    for name, *tasks in REFERENCE:
        rows.append([name])
        for accuracy, loss, seconds in tasks:
            rows[-1] += [accuracy, loss, f"{seconds:,.0f} s"]
    return Table(header, rows)


def what_was_run(runs: Styled) -> list[Node]:
    """Networks and training of the runs, and their data."""
    header = ["Run", "Network", "Initial weights", "Parameters", "Trained parameters"]
    header += ["Epochs", "Training", "Images/s", "Machine"]
    data_header = ["Run", "Data set", "Labels", "Split", "Test faces", "Of subjects in training"]
    rows: list[Row] = []
    data_rows: list[Row] = []
    for run, style in runs:
        report, model, dataset = run.first, run.first["model"], run.first["dataset"]
        faces, machine = pretraining_data(report), report.get("machine", {})
        rows.append(
            [
                _name(run, style),
                Cell(model["name"], model.get("flavour", "")),
                Cell(_initial(run), f"trained on faces of {faces}" if faces else ""),
                f"{model['parameters']:,}",
                _trained(report),
                _epochs(run),
                _training(run),
                # Reports of earlier versions have this name, too.
                f"{training_mean(run, 'pictures_per_second'):,.1f}",
                Cell(machine.get("devices", "–"), machine.get("processor", "")),
            ]
        )
        seen, total = run.seen
        split = "by subject" if dataset["protocol"] == "subject" else "⚠ by image"
        where = "five folds" if run.is_folds else f"test fold {dataset['test_fold']}"
        share = f"{'⚠ ' * run.leaks}{percent(seen / max(total, 1))} %"
        extra = _setting(report, "dataset", "extra")
        data_rows.append(
            [
                _name(run, style),
                Cell(name_tested(dataset["name"]), f"also trained on {extra}" if extra else ""),
                dataset["labels"],
                Cell(split, where),
                f"{total:,}",
                Cell(share, f"{seen:,} faces" if seen else ""),
            ]
        )
    return [
        Table(header, rows, frozenset({0, 1, 2, 8})),
        Table(data_header, data_rows, frozenset({0, 1, 2, 3})),
    ]


def settings(runs: Styled, added_fields: Mapping[str, Any]) -> list[Node]:
    """Fields of the configs that differ, except those that say nothing to others.

    Args:
        runs: at least one.
        added_fields: the default of each field that configs of earlier versions lack.
    """
    added = {name: _short(value) for name, value in added_fields.items()}
    fields = [added | _leaves(run.first["config"]) for run, _ in runs]
    names = sorted({name for leaves in fields for name in leaves})
    hidden = {"dataset.data_dir", "dataset.name", "dataset.test_fold", "init"}
    rows = [
        [_short(name), *(leaves.get(name, "–") for leaves in fields)]
        for name in names
        if name not in hidden and len({leaves.get(name) for leaves in fields}) > 1
    ]
    table = Table(["Field", *(style.label for _, style in runs)], rows[:MAX_SETTINGS])
    return [Details("Settings that differ", [table])] if rows else []


def main_metrics(runs: Styled, task: str) -> Table:
    """Every main metric of a task that any run has."""
    names = [n for n in MAIN_METRICS if any(estimate(run, task, n) for run, _ in runs)]
    header = ["Run", "Faces", "Subjects", *(MAIN_METRICS[name][0] for name in names)]
    rows: list[Row] = []
    for run, style in runs:
        tests = [test.tasks[task] for test in run.tests]
        subjects = sum(metrics.get("subjects", 0) for metrics in tests)
        counts = [f"{sum(metrics['count'] for metrics in tests):,}"]
        counts.append(f"{subjects:,}" if subjects else "–")
        cells = [_metric(run, task, name, name == "accuracy") for name in names]
        rows.append([_name(run, style), *counts, *cells])
    return Table(header, rows)


def pairs_table(pairs: Sequence[Difference], styles: Mapping[int, RunStyle]) -> Table:
    """The differences of pairs of runs, whose styles are given by their id()."""
    header = ["Runs", "Faces", "Subjects", "Accuracy, points", "Loss"]
    header += ["Only the first correct", "Only the second correct"]
    rows: list[Row] = []
    for pair in pairs:
        first, second = styles[id(pair.second)], styles[id(pair.first)]
        accuracy, loss = pair.accuracy, pair.loss
        intervals = [_spread(accuracy, 100, 1), _spread(loss, 1, 4)]
        more = [interval or "no interval" for interval in intervals]
        rows.append(
            [
                _name(pair.second, first, f"minus {second.name}"),
                f"{pair.faces:,}",
                f"{pair.subjects:,}",
                Cell(signed(100 * accuracy.value), more[0], strong=True),
                Cell(signed(loss.value, 4), more[1]),
                f"{pair.only_second:,}",
                f"{pair.only_first:,}",
            ]
        )
    return Table(header, rows)


def features_found(runs: Styled) -> str:
    """Which training times lack the computation of features; empty if none does."""
    counts = {style.name: _epochs_found(run) for run, style in runs}
    found = ", ".join(f"{name}: {epochs(count)}" for name, count in counts.items() if count)
    if not found:
        return ""
    return (
        "Features cached: these were computed by an earlier run, whose time is not included. "
        f"{found}."
    )


def dataset_of(run: Run) -> str:
    """The name of the data set without its version."""
    return "/".join(run.first["dataset"]["name"].split("/")[:2])


def is_adience(runs: Styled) -> bool:
    return any(on_adience(run.first["dataset"]) for run, _ in runs)


def _name(run: Run, style: RunStyle, more: str = "") -> Cell:
    return Cell(run.name, more, color=style.color)


def _tested_on(run: Run) -> Cell:
    dataset = run.first["dataset"]
    where = "five folds" if run.is_folds else f"only fold {dataset['test_fold']}"
    views = views_of(run.first)
    more = f", {views} views of a face" if views > 1 else ""
    seen, total = run.seen
    if run.leaks:
        split = "by image" if dataset["protocol"] == "random" else "by subject"
        return Cell(f"⚠ {where}", f"{split}, {percent(seen / max(total, 1))} % seen{more}")
    return Cell(where, f"by subject{more}")


def _training(run: Run) -> Cell:
    more = ["mean of a fold"] * run.is_folds + ["features cached"] * (_epochs_found(run) > 0)
    return Cell(duration(training_mean(run, "seconds")), ",\n".join(more))


def _trained(report: Report) -> Cell:
    """Trained parameters, their share, and what is frozen."""
    trained = report["model"].get("trained")
    if trained is None:
        return NONE
    share = percent(trained / max(report["model"]["parameters"], 1))
    frozen = _setting(report, "freeze")
    return Cell(f"{trained:,}", f"{share} %" + f", frozen: {frozen}" * (frozen not in ("", "none")))


def _epochs(run: Run) -> Cell:
    """The length of the training, and the planned one where it stopped early."""
    training = [test.report["training"] for test in run.tests]
    steps = sum(part["steps"] for part in training)
    total = sum(part.get("total_steps", part["steps"]) for part in training)
    more = f"stopped early, {steps:,} of {total:,} steps" if steps < total else ""
    return Cell(f"{training_mean(run, 'epochs'):.3g}", more)


def _epochs_found(run: Run) -> int:
    return sum(test.report["training"].get("epochs_found", 0) for test in run.tests)


def _metric(run: Run, task: str, name: str, strong: bool = False) -> Cell:
    found = estimate(run, task, name) if task in run.tasks else None
    if found is None:
        return NONE
    _, factor, digits = MAIN_METRICS[name]
    more = [_spread(found, factor, min(digits, 3))]
    if name in ("mae", "cs5"):
        tests = [test.tasks[task] for test in run.tests]
        exact = sum(metrics.get("exact_ages", metrics["count"]) for metrics in tests)
        if exact != sum(metrics["count"] for metrics in tests):
            more.append(f"of {exact:,} faces")
    return Cell(f"{factor * found.value:.{digits}f}", ",\n".join(filter(None, more)), strong)


def _spread(found: Estimate, factor: float, digits: int) -> str:
    if found.deviation is not None:
        return f"± {factor * found.deviation:.{digits}f}"
    if found.interval is None:
        return ""
    low, high = (f"{factor * end:.{digits}f}".replace("-", "−") for end in found.interval)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def _initial(run: Run) -> str:
    """The initial weights; of a folder its end only, as its place says nothing to others."""
    ends = set()
    for test in run.tests:
        initial = test.report["model"].get("initial", "–")
        path = Path(initial)
        folder = path.is_absolute() or path.is_dir()
        ends.add("/".join(path.parts[-2:]) if folder else initial)
    return ends.pop() if len(ends) == 1 else "a different run for each fold"


def _setting(report: Report, *path: str) -> str:
    value: Any = report["config"]
    for key in path:
        value = value.get(key, "") if isinstance(value, dict) else ""
    return _short(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _leaves(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted names of the fields of a config and their values."""
    if not isinstance(config, dict):
        return {prefix: _short(config)}
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found
