"""Trains and tests one config on each fold of its data set: mean and standard deviation.

agenet folds --config=configs/effnet_adience.py:lite0 --workdir=runs/folds
    [--config.any.field=value ...]

The folds are trained one after the other, each in a process and a folder of its own,
WORKDIR/fold_0 and so on. "{fold}" in a value stands for the fold, such as in
--config.init=runs/frozen/fold_{fold}. The same command again continues what was interrupted.
"""

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from agenet.data.records import find_prepared, name_tested
from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.files import write_file, write_json
from agenet.runs import series
from agenet.runs.series import Run, StoppedError, Train

FOLDS = range(5)  # of a data set that is not prepared yet

Reports = Mapping[int, dict[str, Any]]


def main(arguments: Sequence[str] | None = None, train: Train = series.train_in_child) -> None:
    """Parses the command line, trains the folds and writes folds.md and folds.json.

    Raises:
        UserError: a mistake in the command line, or what ended a fold.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = ArgumentParser(
        prog="agenet folds",
        description="Trains and tests one config on each fold of its data set.",
        epilog="--config.FIELD=VALUE changes a field of the config, for all folds; {fold} in its "
        "value stands for the fold.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="as agenet.main takes it")
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="of all folds")
    args, fields = parser.parse_known_args(arguments)
    series.check_fields(fields, fixed=["dataset.test_fold"])
    numbers = find_folds(_run(args.config, args.workdir, fields, 0).config.dataset)
    folds = [_run(args.config, args.workdir, fields, fold) for fold in numbers]
    command = series.command_line("folds", arguments)
    train_folds(folds, args.workdir, command, train)


def find_folds(dataset: ConfigDict) -> Sequence[int]:
    """The numbers of a data set's folds.

    Raises:
        UserError: it has none.
    """
    try:
        path = find_prepared(dataset.name, dataset.data_dir)
        info = json.loads((path / "dataset_info.json").read_text())
    except (UserError, ValueError):
        return FOLDS  # agenet.main prepares it or says what is wrong.
    splits = [split["name"] for split in info.get("splits", [])]
    folds = [int(name.removeprefix("fold_")) for name in splits if re.fullmatch(r"fold_\d+", name)]
    if not folds:
        raise UserError(
            f"{dataset.name} has no folds ({', '.join(splits)}): train it with agenet.main"
        )
    return sorted(folds)


def _run(config: str, workdir: Path, fields: Sequence[str], fold: int) -> Run:
    own = [field.replace("{fold}", str(fold)) for field in fields]
    flags = (f"--config={config}", *own, f"--config.dataset.test_fold={fold}")
    return Run(f"fold {fold}", workdir / f"fold_{fold}", flags)


def train_folds(folds: Sequence[Run], workdir: Path, command: str, train: Train) -> None:
    """Trains in order; what is there so far is in the tables after every fold.

    A fold that fails ends it all, for the cause is hardly ever the fold.
    """
    reports: dict[int, dict[str, Any]] = {}

    def failed(run: Run, message: str) -> None:
        raise UserError(f"{run.name}: {message}")

    try:
        with series.own_folder(workdir):
            for run, report in series.run_all(folds, train, failed):
                reports[run.config.dataset.test_fold] = report
                write_tables(reports, len(folds), workdir, command)
    except StoppedError as stopped:
        series.end_if_stopped(stopped, folds[len(reports)].name)
    print(markdown(reports, len(folds), command))


def summarize(reports: Reports) -> dict[str, dict[str, dict[str, float | None]]]:
    """Per task and figure the mean and the standard deviation over folds, as `mean`, `sd`.

    The standard deviation is that of a sample, n - 1 in the denominator; None for one fold alone.
    """
    figures = [test_figures(report) for report in reports.values()]
    return {
        task: {
            name: {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
            for name in figures[0][task]
            # A figure may be undefined on one fold: then it has no mean over the folds either.
            if len(values := [f[task][name] for f in figures if name in f[task]]) == len(figures)
        }
        for task in (figures[0] if figures else ())
    }


def test_figures(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """`runs.test_figures`, without errors in years where most faces have no exact age.

    In Adience they would be those of one face in eighty.
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
    """One table for each task, with published figures below where they are known.

    Args:
        reports: of the folds that are finished.
        total: how many folds there are.
        command: what the user typed.
    """
    if not reports:
        return f"No fold is finished yet.\n\n```sh\n{command}\n```\n"
    # Imported here, not above: it brings Matplotlib.
    from agenet.evaluation.published import PUBLISHED, on_adience
    from agenet.evaluation.report import conditions

    first = next(iter(reports.values()))
    dataset, name = first["dataset"], name_tested(first["dataset"]["name"])
    parts = [f"# {first['model']['name']} on {name}, {len(reports)} of {total} folds"]
    parts += [f"**{dataset['notice']}**"] if dataset["notice"] else []
    parts.append(
        f"{conditions([*reports.values()])} ±: standard deviation over folds (sample, n - 1). "
        "Time: by the clock, from the start of a fold's process to its end."
    )
    summary = summarize(reports)
    parts += [_task_table(task, reports, summary[task]) for task in summary]
    if on_adience(dataset):
        means = [_percent(summary, *figure) for figure in _COMPARED]
        rows = [["**These runs**", *means], *map(list, PUBLISHED)]
        header = ["System", "Age %", "Age 1-off %", "Gender %"]
        parts += ["## Beside published results", series.table(header, rows)]
        parts.append(
            "Figures in per cent, of papers the means of the five official folds; how the "
            "reference report split the data is not documented. Sources: report.md of any fold."
        )
        if dataset["protocol"] == "random":
            parts.append("These runs are split over images: they do not compare with the papers.")
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
    from agenet.evaluation.report import MAIN_FIGURES

    shown = {name: figure for name, figure in MAIN_FIGURES.items() if name in summary}
    rows = []
    for fold, report in sorted(reports.items()):
        figures = test_figures(report)[task]
        count = report["evaluation"]["tasks"][task]["count"]
        cells = [f"{figures[name] * k:.{d}f}" for name, (_, k, d) in shown.items()]
        early = series.stopped_early(report["training"])
        time = f"{report['seconds']:,.0f}" + (f" ({early})" if early else "")
        rows.append([f"fold {fold}", f"{count:,}", *cells, time])
    mean = [_with_deviation(summary[name], k, d) for name, (_, k, d) in shown.items()]
    total = sum(report["seconds"] for report in reports.values())
    rows.append(["**mean**", "", *mean, f"{total:,.0f} in all"])
    header = [task.capitalize(), "Faces", *(heading for heading, *_ in shown.values()), "Time, s"]
    return series.table(header, rows)


if __name__ == "__main__":
    with one_line_errors():
        main()
