"""Cross-validation: trains a config on each fold of its data set; tables of mean and deviation."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agenet.data.config import DatasetConfig
from agenet.data.records import find_prepared, name_tested
from agenet.errors import UserError
from agenet.evaluation.published import PUBLISHED, on_adience
from agenet.evaluation.summary import MAIN_METRICS, conditions
from agenet.files import write_file, write_json
from agenet.runs import series
from agenet.runs.series import ReadConfig, Run

FOLDS = range(5)  # of a data set that is not prepared yet

Reports = Mapping[int, dict[str, Any]]


def run_folds(
    config: str,
    workdir: Path,
    fields: Sequence[str],
    *,
    read_config: ReadConfig,
) -> None:
    """Trains the folds and writes folds.md and folds.json.

    Args:
        config: as agenet.main takes it.
        workdir: the folder of all folds.
        fields: `--config.FIELD=VALUE` for all folds; "{fold}" in a value is the fold's number.
        read_config: parses `--config=...` and `--config.FIELD=VALUE`, see `agenet.main`.

    Raises:
        UserError: a mistake in the arguments, or the error that ended a fold.
    """
    series.check_fields(fields, fixed=["dataset.test_fold"])

    def run(fold: int) -> Run:
        own = [field.replace("{fold}", str(fold)) for field in fields]
        flags = (f"--config={config}", *own, f"--config.dataset.test_fold={fold}")
        return Run(f"fold {fold}", workdir / f"fold_{fold}", flags, read_config(flags))

    folds = [run(fold) for fold in find_folds(run(0).config.dataset)]
    arguments = [f"--config={config}", f"--workdir={workdir}", *fields]
    _train_all(folds, workdir, series.command_line("folds", arguments))


def find_folds(dataset: DatasetConfig) -> Sequence[int]:
    """The numbers of a data set's folds.

    Raises:
        UserError: it has none.
    """
    try:
        path = find_prepared(dataset.name, dataset.data_dir)
        info = json.loads((path / "dataset_info.json").read_text())
        splits = [str(split["name"]) for split in info.get("splits", [])]
    except (UserError, *series.UNREADABLE):
        return FOLDS  # The first run prepares it, or reports what is wrong.
    folds = [int(name.removeprefix("fold_")) for name in splits if re.fullmatch(r"fold_\d+", name)]
    if not folds:
        raise UserError(
            f"{dataset.name} has no folds ({', '.join(splits)}): train it with agenet train"
        )
    return sorted(folds)


def _train_all(folds: Sequence[Run], workdir: Path, command: str) -> None:
    """Trains in order and rewrites the tables after every fold.

    A fold that fails ends the series: the cause is hardly ever the fold itself.
    """
    reports: dict[int, dict[str, Any]] = {}

    def failed(run: Run, message: str) -> None:
        raise UserError(f"{run.name}: {message}")

    for run, report in series.run_all(folds, workdir, failed):
        reports[run.config.dataset.test_fold] = report
        write_tables(reports, len(folds), workdir, command)
    print(markdown(reports, len(folds), command))


def summarize(reports: Reports) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and standard deviation over folds of each figure of each task, as `mean` and `sd`.

    The standard deviation is that of a sample (n - 1 in the denominator), None for a single fold.
    """
    figures = [test_figures(report) for report in reports.values()]
    return {
        task: {
            name: {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
            for name in figures[0][task]
            # A figure that is undefined on one fold has no mean over the folds.
            if len(values := [f[task][name] for f in figures if name in f[task]]) == len(figures)
        }
        for task in (figures[0] if figures else ())
    }


def test_figures(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """`series.test_figures`, without errors in years if most faces have no exact age.

    In Adience one face in eighty has one.
    """
    tasks = report["evaluation"]["tasks"]
    return {
        task: {
            name: value
            for name, value in figures.items()
            if name not in ("mae", "cs5") or 2 * tasks[task]["exact_ages"] >= tasks[task]["count"]
        }
        for task, figures in series.test_figures(report).items()
    }


def write_tables(reports: Reports, total: int, workdir: Path, command: str) -> None:
    result = {
        "command": command,
        "complete": len(reports) == total,
        "folds": {
            fold: test_figures(report) | {"seconds": report["seconds"]}
            for fold, report in reports.items()
        },
        "summary": summarize(reports),
    }
    write_json(workdir / "folds.json", result)
    write_file(workdir / "folds.md", markdown(reports, total, command).encode())


def markdown(reports: Reports, total: int, command: str) -> str:
    """One table for each task, followed by published figures if there are any.

    Args:
        reports: of the finished folds.
        total: how many folds there are.
        command: the command to show below the tables.
    """
    if not reports:
        return f"No fold is finished yet.\n\n```sh\n{command}\n```\n"
    first = next(iter(reports.values()))
    dataset, name = first["dataset"], name_tested(first["dataset"]["name"])
    parts = [f"# {first['model']['name']} on {name}, {len(reports)} of {total} folds"]
    parts += [f"**{dataset['notice']}**"] if dataset["notice"] else []
    parts.append(
        f"{conditions([*reports.values()])} ±: standard deviation over folds (sample, n - 1). "
        "Time: wall clock, from the start of a fold's process to its end."
    )
    summary = summarize(reports)
    parts += [_task_table(task, reports, summary[task]) for task in summary]
    if on_adience(dataset):
        means = [_percent(summary, *figure) for figure in _COMPARED]
        rows = [["**These runs**", *means], *map(list, PUBLISHED)]
        header = ["System", "Age %", "Age 1-off %", "Gender %"]
        parts += ["## Comparison with published results", series.table(header, rows)]
        parts.append(
            "Figures in per cent; those of papers are means over the five official folds. How the "
            "reference report split the data is not documented. Sources: report.md of any fold."
        )
        if dataset["protocol"] == "random":
            parts.append("These runs are split over images and do not compare with the papers.")
    parts.append(f"```sh\n{command}\n```")
    return "\n\n".join(parts) + "\n"


_COMPARED = (("age", "accuracy"), ("age", "one_off"), ("gender", "accuracy"))


def _percent(summary: Mapping[str, Any], task: str, name: str) -> str:
    found = summary.get(task, {}).get(name)
    return _with_deviation(found, 100, 2) if found else "–"


def _with_deviation(found: Mapping[str, Any], factor: float, digits: int) -> str:
    mean = f"{found['mean'] * factor:.{digits}f}"
    return mean if found["sd"] is None else f"{mean} ± {found['sd'] * factor:.{digits}f}"


def _task_table(task: str, reports: Reports, summary: Mapping[str, Any]) -> str:
    shown = {name: figure for name, figure in MAIN_METRICS.items() if name in summary}
    rows = []
    for fold, report in sorted(reports.items()):
        figures = test_figures(report)[task]
        count = report["evaluation"]["tasks"][task]["count"]
        cells = [f"{figures[name] * k:.{d}f}" for name, (_, k, d) in shown.items()]
        time = series.time_cell(report["seconds"], series.stopped_early(report["training"]))
        rows.append([f"fold {fold}", f"{count:,}", *cells, time])
    mean = [_with_deviation(summary[name], k, d) for name, (_, k, d) in shown.items()]
    total = sum(report["seconds"] for report in reports.values())
    rows.append(["**mean**", "", *mean, f"{total:,.0f} in all"])
    header = [task.capitalize(), "Faces", *(heading for heading, *_ in shown.values()), "Time, s"]
    return series.table(header, rows)
