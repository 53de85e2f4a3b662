"""Sweeps: trains the variants that a file lists; one table for each setting that is varied.

A file that describes a search instead is handed on to `agenet.runs.search`.
"""

import contextlib
import itertools
import re
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agenet.errors import UserError, require_packages
from agenet.evaluation.summary import conditions
from agenet.files import SHIPPED, make_shipped_importable, write_file, write_json
from agenet.runs import series
from agenet.runs.config import RunConfig
from agenet.runs.series import FIGURES, ReadConfig, Run, both


@dataclass(frozen=True)
class Variant:
    """A row of a table: its run, and the reported figures or a remark."""

    name: str
    run: Run
    reported: Mapping[str, float] | str


@dataclass
class Results:
    """Reports, figures and failures of the runs, by their names."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """The tables of a sweep, and its distinct runs in the order in which they are trained."""

    title: str
    source: str
    command: str
    tables: dict[str, list[Variant]]
    runs: list[Run]


def run_sweep(
    file: str,
    workdir: Path,
    fields: Sequence[str],
    *,
    read_config: ReadConfig,
    storage: str = "",
    study: str = "",
    trials: int | None = None,
) -> None:
    """Trains the variants, or the trials of a search, and writes sweep.md and sweep.json.

    Args:
        file: see `read_file`.
        workdir: the folder of all runs. Several processes may work in it.
        fields: `--config.FIELD=VALUE` of all runs.
        read_config: parses `--config=...` and `--config.FIELD=VALUE`, see `agenet.main`.
        storage: of a search's study, see `agenet.runs.search.run_search`.
        study: its name; by default that of the file.
        trials: their number, if not that of the file.

    Raises:
        UserError: a mistake in the arguments or the file, or the error that ended the first run.
    """
    series.check_fields(fields)
    path, described = read_file(file)
    given = {"--storage": storage, "--study": study, "--trials": trials}
    options = {option: value for option, value in given.items() if value}
    arguments = [f"--sweep={file}", f"--workdir={workdir}"]
    if "suggest" not in described:
        if options:
            raise UserError(f"{min(options)} is for searches, and {path} lists its variants")
        command = series.command_line("sweep", [*arguments, *fields])
        _train_all(read_sweep(path, described, workdir, fields, command, read_config), workdir)
        return
    require_packages("search", "a search", "optuna")
    from agenet.runs.search import run_search
    from agenet.runs.storage import show_storage
    from agenet.runs.study import read_search

    if storage:
        options["--storage"] = show_storage(storage)
    arguments += [f"{option}={value}" for option, value in options.items()]
    search = read_search(path, described, tuple(fields), read_config)
    search = replace(search, trials=trials or search.trials)
    command = series.command_line("sweep", [*arguments, *fields])
    run_search(search, workdir, storage, study or Path(path).stem, command, read_config)


def read_file(file: str) -> tuple[str, dict[str, Any]]:
    """The path of a sweep file, and what its `get_sweep` describes.

    Args:
        file: a path, or the name of a shipped sweep; what follows a colon is an argument of its
            `get_sweep`.

    Raises:
        UserError: there is no such file, or it is not a sweep.
    """
    path, *argument = file.split(":", 1)
    folder = SHIPPED / "configs/sweeps"
    shipped = {found.stem: found for found in sorted(folder.glob("[a-z]*.py"))}
    path = str(shipped.get(path, path))
    if not Path(path).is_file():
        raise UserError(
            f"there is no sweep file {path}: name a file, or one of {', '.join(shipped)}"
        )
    with _not_a_sweep(path):
        make_shipped_importable()
        described = dict(runpy.run_path(path)["get_sweep"](*argument))
        _ = described["config"], described["fields"]
    return path, described


@contextlib.contextmanager
def _not_a_sweep(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # The file may be anything.
        what = " ".join(str(error).split())
        raise UserError(f"{path} is not a sweep: {type(error).__name__}: {what}") from error


def read_sweep(
    path: str,
    described: Mapping[str, Any],
    workdir: Path,
    fields: Sequence[str],
    command: str,
    read_config: ReadConfig,
) -> Sweep:
    """Reads the tables that a file describes.

    Args:
        path: of the file.
        described: what its `get_sweep` returned.
        workdir: the folder of all runs, one folder below it for each.
        fields: `--config.FIELD=VALUE` of all runs; the changes of a variant come after them.
        command: the command to show below the tables.
        read_config: parses `--config=...` and `--config.FIELD=VALUE`, see `agenet.main`.

    Raises:
        UserError: it is not a sweep, or a field does not exist.
    """
    with _not_a_sweep(path):
        config = str(described["config"])
        base = (f"--config={config}", *_flags(described["fields"]), *fields)
        tables = {
            str(title): [
                (str(v["name"]), _flags(v["fields"]), v.get("reported", "–")) for v in variants
            ]
            for title, variants in described["tables"].items()
        }
        for *_, reported in itertools.chain(*tables.values()):
            _reported(reported)  # Raises if it cannot be shown.
        source = str(described.get("source", ""))
    default = Run("default", workdir / "default", base, read_config(base))
    distinct: dict[RunConfig, Run] = {}
    read: dict[str, list[Variant]] = {}
    for title, rows in tables.items():
        for name, changes, reported in rows:
            slug = _slug(f"{title} {name}")
            flags = (*base, *changes)
            try:
                run = Run(f"{title}: {name}", workdir / slug, flags, read_config(flags))
            except UserError as error:
                raise UserError(f"{path}, {title}: {name}: {error}") from error
            same = default if run.config == default.config else run
            run = distinct.setdefault(run.config, same)
            read.setdefault(title, []).append(Variant(name, run, reported))
    if not distinct:
        raise UserError(f"{path} is not a sweep: it has no variants")
    if len({run.workdir for run in distinct.values()}) < len(distinct):
        raise UserError(f"{path}: two variants of a table have the same name")
    # If the default fails there is nothing to compare with: it comes first.
    ordered = sorted(distinct.values(), key=lambda run: run is not default)
    title = f"{default.config.model.name} on {default.config.dataset.name}"
    return Sweep(title, source, command, read, ordered)


def _flags(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"--config.{name}={value}" for name, value in fields.items())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def _train_all(sweep: Sweep, workdir: Path) -> None:
    """Trains in order and rewrites the tables after every run.

    A run that fails becomes a line in its tables, unless it is the first.
    """
    results = Results()

    def failed(run: Run, message: str) -> None:
        if run is sweep.runs[0]:
            raise UserError(f"{run.name}: {message}")
        results.failures[run.name] = message
        print(f"{run.name}: {message}: continuing without it", file=sys.stderr, flush=True)
        write_tables(sweep, results, workdir)

    for run, report in series.run_all(sweep.runs, workdir, failed):
        training = report["training"]
        results.reports[run.name] = report
        results.figures[run.name] = {
            "validation": series.validation_figures(run.workdir, training["best_step"]),
            "test": series.test_figures(report),
            "seconds": report["seconds"],
            "stopped_early": series.stopped_early(training),
        }
        write_tables(sweep, results, workdir)
    print(markdown(sweep, results))


def write_tables(sweep: Sweep, results: Results, workdir: Path) -> None:
    result = {
        "command": sweep.command,
        "source": sweep.source,
        "complete": len(results.figures) + len(results.failures) == len(sweep.runs),
        "tables": {
            title: [{"name": v.name, "run": v.run.name, "reported": v.reported} for v in variants]
            for title, variants in sweep.tables.items()
        },
        "runs": {
            run.name: {"workdir": str(run.workdir), "flags": run.flags}
            | results.figures.get(run.name, {})
            | ({"error": results.failures[run.name]} if run.name in results.failures else {})
            for run in sweep.runs
        },
    }
    write_json(workdir / "sweep.json", result)
    write_file(workdir / "sweep.md", markdown(sweep, results).encode())


def markdown(sweep: Sweep, results: Results) -> str:
    """A table for each setting, with reported figures in the last column."""
    done = len(results.figures)
    parts = [f"# Sweep: {sweep.title}, {done} of {len(sweep.runs)} runs"]
    notices = dict.fromkeys(report["dataset"]["notice"] for report in results.reports.values())
    parts += [f"**{notice}**" for notice in notices if notice]
    parts += _conditions(results.reports)
    parts.append(
        "Accuracies in per cent, gender / age. Choose by the validation figures; in bold the "
        "variant with the highest mean of both. The test figures are for information: variants "
        "chosen by them are no longer tested on unseen data. Time: wall clock, from the start of "
        "a run's process to its end." + (f" Reported: {sweep.source}." if sweep.source else "")
    )
    for title, variants in sweep.tables.items():
        parts += [f"## {title}", _table(title, variants, results)]
    failures = [f"- {name}: {message}" for name, message in results.failures.items()]
    if failures:
        parts += ["## Failed", "\n".join(failures)]
    if done:
        parts.append(_conclusion(results))
    parts.append(f"```sh\n{sweep.command}\n```")
    return "\n\n".join(parts) + "\n"


def _conditions(reports: Mapping[str, Any]) -> list[str]:
    """The conditions of the runs, with the names of the runs where conditions differ."""
    names: dict[str, list[str]] = {}
    for name, report in reports.items():
        names.setdefault(conditions([report]), []).append(name)
    if len(names) < 2:
        return [*names]
    return ["\n".join(f"- {', '.join(runs)}: {text}" for text, runs in names.items())]


def _reported(value: Any) -> str:
    """The text of a reported remark, or of accuracies in per cent."""
    if isinstance(value, str):
        return value
    return " / ".join(f"{value[task]:.2f}" if task in value else "–" for task, _ in FIGURES)


def _table(title: str, variants: Sequence[Variant], results: Results) -> str:
    measured = [v for v in variants if v.run.name in results.figures]
    best = max(measured, key=lambda v: _choice(results.figures[v.run.name]), default=None)
    rows = []
    for variant in variants:
        figures = results.figures.get(variant.run.name)
        if figures:
            validation = both([figures["validation"].get(f"{t}_{n}") for t, n in FIGURES])
            test = both([figures["test"].get(t, {}).get(n) for t, n in FIGURES])
            validation = f"**{validation}**" if variant is best else validation
            time = series.time_cell(figures["seconds"], figures["stopped_early"])
            cells = [validation, test, time]
        else:
            message = results.failures.get(variant.run.name, "")
            what = "out of memory" if message == "out of memory" else "failed, see below"
            cells = [what if message else "–", "–", "–"]
        rows.append([variant.name, *cells, _reported(variant.reported)])
    header = [title, "Validation", "Test", "Time, s", "Reported"]
    if not any(row[-1] != "–" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return series.table(header, rows)


def _choice(figures: Mapping[str, Any]) -> float:
    return figures["validation"].get("accuracy", 0.0)


def _conclusion(results: Results) -> str:
    times = [figures["seconds"] for figures in results.figures.values()]
    name = max(results.figures, key=lambda name: _choice(results.figures[name]))
    return (
        f"Highest validation accuracy: {name}. All {len(times)} runs took {sum(times):,.0f} s, the "
        f"longest {max(times):,.0f} s: {sum(times) / max(times):.2f} times that."
    )
