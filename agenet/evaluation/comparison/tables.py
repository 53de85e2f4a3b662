"""The tables of a page that compares runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agenet.data.records import name_tested
from agenet.evaluation.comparison.figures import Look, signed
from agenet.evaluation.comparison.files import seen_before, views_of
from agenet.evaluation.comparison.runs import Run
from agenet.evaluation.comparison.statistics import (
    Difference,
    Estimate,
    estimate,
    largest_class,
    mean,
)
from agenet.evaluation.figures import percent
from agenet.evaluation.page import Cell, Details, Node, Table
from agenet.evaluation.published import PUBLISHED, REFERENCE, on_adience
from agenet.evaluation.report import MAIN_FIGURES, duration, epochs
from agenet.runs.identity import ADDED_FIELDS

MAX_SETTINGS = 80  # rows of the table of settings
NONE = Cell("–")
Group = list[tuple[Run, Look]]


def headline(group: Group) -> Table:
    header = ["System", "Tested on", "Age %", "Age 1-off %", "Age balanced %", "Age loss"]
    header += ["Gender %", "Gender balanced %", "Gender loss", "Training"]
    figures = [("age", "accuracy"), ("age", "one_off"), ("age", "balanced_accuracy")]
    figures += [("age", "loss"), ("gender", "accuracy"), ("gender", "balanced_accuracy")]
    figures.append(("gender", "loss"))
    rows: list[Sequence[Cell] | str] = ["The runs compared"]
    for run, look in group:
        cells = [_cell(run, task, name, name == "accuracy") for task, name in figures]
        rows.append([_name(run, look), _tested_on(run), *cells, _training(run)])
    largest: dict[tuple[str, ...], list[str]] = {}
    for run, look in group:
        shares = (percent(largest_class(run, task)) for task in ("age", "gender"))
        largest.setdefault((_tested_on(run).text, *shares), []).append(look.key)
    for (where, age, gender), keys in largest.items():
        cells = [Cell(age), NONE, NONE, NONE, Cell(gender), NONE, NONE, NONE]
        rows.append([Cell(f"Always the largest class ({', '.join(keys)})"), Cell(where), *cells])
    if is_adience(group):
        reference = [row for row in PUBLISHED if row[0].startswith("Reference report")]
        rows.append("The reference report; how it split the data is not documented")
        for row, (_, of_age, of_gender) in zip(reference, REFERENCE, strict=True):
            both = of_age[2] + of_gender[2] * (of_age[2] != of_gender[2])
            name = Cell(row[0].removeprefix("Reference report: "))
            cells = [Cell(of_age[0]), NONE, NONE, Cell(of_age[1])]
            cells += [Cell(of_gender[0]), NONE, Cell(of_gender[1]), Cell(duration(both))]
            rows.append([name, Cell("not documented"), *cells])
        rows.append("Published, mean of the five official folds, split over persons")
        for system, exact, near, gender in PUBLISHED:
            if not system.startswith("Reference report"):
                cells = [Cell(exact), Cell(near), NONE, NONE, Cell(gender), NONE, NONE, NONE]
                rows.append([Cell(system), Cell("five folds"), *cells])
    return Table(header, rows, frozenset({0, 1}))


def _name(run: Run, look: Look) -> Cell:
    return Cell(run.name, run.first["model"]["name"], key=look.key, colors=_colors(look))


def _colors(look: Look) -> tuple[str, str]:
    return look.color, look.letter


def _tested_on(run: Run) -> Cell:
    dataset = run.first["dataset"]
    where = "five folds" if run.is_folds else f"only fold {dataset['test_fold']}"
    views = views_of(run.first)
    more = f", {views} views of a face" if views > 1 else ""
    seen, total = run.seen
    if run.leaks:
        share = percent(seen / max(total, 1))
        over = "images" if dataset["protocol"] == "random" else "persons"
        return Cell(f"⚠ {where}", f"over {over}, {share} % seen{more}")
    return Cell(where, f"over persons{more}")


def _training(run: Run) -> Cell:
    """The time of the training."""
    more = ["mean of a fold"] * run.is_folds + ["features found"] * (_epochs_found(run) > 0)
    return Cell(duration(mean(run, "training", "seconds")), ", ".join(more))


def _epochs(run: Run) -> Cell:
    """The length of the training, and what was planned where a patience ended it before."""
    training = [test.report["training"] for test in run.tests]
    steps = sum(part["steps"] for part in training)
    total = sum(part.get("total_steps", part["steps"]) for part in training)
    more = f"stopped early, {steps:,} of {total:,} steps" if steps < total else ""
    return Cell(f"{mean(run, 'training', 'epochs'):.3g}", more)


def _epochs_found(run: Run) -> int:
    return sum(test.report["training"].get("epochs_found", 0) for test in run.tests)


def features_found(group: Group) -> str:
    """Which times of `_training` lack the computation of features; empty if none does."""
    counts = {look.key: _epochs_found(run) for run, look in group}
    found = ", ".join(f"{key}: {epochs(count)}" for key, count in counts.items() if count)
    if not found:
        return ""
    return (
        "Features found: these were on disk already, and the time of computing them is not in that "
        f"of the training. {found}."
    )


def _cell(run: Run, task: str, name: str, strong: bool = False) -> Cell:
    found = estimate(run, task, name) if task in run.tasks else None
    if found is None:
        return NONE
    _, factor, digits = MAIN_FIGURES[name]
    more = [_spread(found, factor, min(digits, 3))]
    if name in ("mae", "cs5"):
        tests = [test.tasks[task] for test in run.tests]
        exact = sum(metrics.get("exact_ages", metrics["count"]) for metrics in tests)
        if exact != sum(metrics["count"] for metrics in tests):
            more.append(f"of {exact:,} faces")
    return Cell(f"{factor * found.value:.{digits}f}", ", ".join(filter(None, more)), strong)


def _spread(found: Estimate, factor: float, digits: int) -> str:
    if found.deviation is not None:
        return f"± {factor * found.deviation:.{digits}f}"
    if found.interval is None:
        return ""
    low, high = (f"{factor * end:.{digits}f}".replace("-", "−") for end in found.interval)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def reference() -> Table:
    header = ["Network", "Age %", "Age loss", "Age, time", "Gender %", "Gender loss"]
    header.append("Gender, time")
    rows = []
    for name, age, gender in REFERENCE:
        cells = []
        for accuracy, loss, seconds in (age, gender):
            cells += [Cell(accuracy), Cell(loss), Cell(f"{seconds:,.0f} s")]
        rows.append([Cell(name), *cells])
    return Table(header, rows)


def what_was_run(group: Group) -> list[Node]:
    header = ["Run", "Network", "Initial weights", "Parameters", "of them trained"]
    header += ["Epochs", "Training", "Pictures/s", "Machine"]
    rows = []
    for run, look in group:
        report, model = run.first, run.first["model"]
        trained = model.get("trained")
        share = percent(trained / max(model["parameters"], 1)) if trained is not None else ""
        frozen = _setting(report, "freeze")
        more = f"{share} %, frozen: {frozen}" if frozen not in ("", "none") else f"{share} %"
        machine = report.get("machine", {})
        rows.append(
            [
                Cell(run.name, key=look.key, colors=_colors(look)),
                Cell(model["name"], model.get("flavour", "")),
                Cell(_initial(run), f"had seen {faces}" if (faces := seen_before(report)) else ""),
                Cell(f"{model['parameters']:,}"),
                Cell(f"{trained:,}", more) if trained is not None else NONE,
                _epochs(run),
                _training(run),
                Cell(f"{mean(run, 'training', 'pictures_per_second'):,.1f}"),
                Cell(machine.get("devices", "–"), machine.get("processor", "")),
            ]
        )
    data_header = ["Run", "Data set", "Labels", "Split", "Test faces", "Seen in training"]
    data_rows = []
    for run, look in group:
        dataset = run.first["dataset"]
        seen, total = run.seen
        split = "over persons" if dataset["protocol"] == "subject" else "⚠ over images"
        where = "five folds" if run.is_folds else f"test fold {dataset['test_fold']}"
        share = f"{percent(seen / max(total, 1))} %"
        extra = _setting(run.first, "dataset", "extra")
        data_rows.append(
            [
                Cell(run.name, key=look.key, colors=_colors(look)),
                Cell(name_tested(dataset["name"]), f"trained on {extra}, too" if extra else ""),
                Cell(dataset["labels"]),
                Cell(split, where),
                Cell(f"{total:,}"),
                Cell(f"⚠ {share}" if run.leaks else share, f"{seen:,} faces" if seen else ""),
            ]
        )
    nodes: list[Node] = [
        Table(header, rows, frozenset({0, 1, 2, 8})),
        Table(data_header, data_rows, frozenset({0, 1, 2, 3})),
    ]
    settings = _settings(group)
    return [*nodes, Details("Settings that differ", [settings])] if settings else nodes


def _initial(run: Run) -> str:
    """Of a folder its end only: where it lies says nothing to others."""
    found = {test.report["model"].get("initial", "–") for test in run.tests}
    ends = set()
    for initial in found:
        path = Path(initial)
        folder = path.is_absolute() or path.is_dir()
        ends.add("/".join(path.parts[-2:]) if folder else initial)
    if len(ends) > 1:
        return "a run of its own for each fold"
    return ends.pop()


def _settings(group: Group) -> Table | None:
    """Fields of the configs that differ, those that say nothing to others left out."""
    # Those of earlier versions lack fields.
    added = {name: _short(value) for name, value in ADDED_FIELDS.items()}
    fields = [added | _leaves(run.first["config"]) for run, _ in group]
    names = sorted({name for leaves in fields for name in leaves})
    hidden = {"dataset.data_dir", "dataset.name", "dataset.test_fold", "init"}
    rows = [
        [Cell(_short(name)), *(Cell(leaves.get(name, "–")) for leaves in fields)]
        for name in names
        if name not in hidden and len({leaves.get(name) for leaves in fields}) > 1
    ]
    header = ["Field", *(look.label for _, look in group)]
    return Table(header, rows[:MAX_SETTINGS]) if rows else None


def main_figures(group: Group, task: str) -> Table:
    names = [n for n in MAIN_FIGURES if any(estimate(run, task, n) for run, _ in group)]
    header = ["Run", "Faces", "Persons", *(MAIN_FIGURES[name][0] for name in names)]
    rows = []
    for run, look in group:
        tests = [test.tasks[task] for test in run.tests]
        persons = sum(metrics.get("subjects", 0) for metrics in tests)
        rows.append(
            [
                Cell(run.name, key=look.key, colors=_colors(look)),
                Cell(f"{sum(metrics['count'] for metrics in tests):,}"),
                Cell(f"{persons:,}") if persons else NONE,
                *(_cell(run, task, name, name == "accuracy") for name in names),
            ]
        )
    return Table(header, rows)


def pairs_table(pairs: Sequence[Difference], looks: dict[int, Look]) -> Table:
    """The differences of pairs of runs, whose looks are given by their id()."""
    header = ["Pair", "Faces", "Persons", "Accuracy, points", "Loss"]
    header += ["Only the former right", "Only the latter right"]
    return Table(header, [[_pair_name(pair, looks), *_pair_cells(pair)] for pair in pairs])


def _pair_name(pair: Difference, looks: dict[int, Look]) -> Cell:
    first, second = looks[id(pair.first)], looks[id(pair.second)]
    return Cell(f"{second.key} over {first.key}", f"{pair.second.name} − {pair.first.name}")


def _pair_cells(pair: Difference) -> list[Cell]:
    accuracy, loss = pair.accuracy, pair.loss
    return [
        Cell(f"{pair.faces:,}"),
        Cell(f"{pair.persons:,}"),
        Cell(signed(accuracy), _spread(accuracy, 100, 1) or "no interval", strong=True),
        Cell(f"{loss.value:+.4f}".replace("-", "−"), _spread(loss, 1, 4) or "no interval"),
        Cell(f"{pair.only_second:,}"),
        Cell(f"{pair.only_first:,}"),
    ]


def dataset_of(run: Run) -> str:
    """Without the version."""
    return "/".join(run.first["dataset"]["name"].split("/")[:2])


def is_adience(group: Group) -> bool:
    return any(on_adience(run.first["dataset"]) for run, _ in group)


def _setting(report: dict[str, Any], *path: str) -> str:
    value: Any = report["config"]
    for key in path:
        value = value.get(key, "") if isinstance(value, dict) else ""
    return _short(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _leaves(config: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, dict):
        return {prefix: _short(config)}
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found
