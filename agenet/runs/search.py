"""A worker of a search: trains the trials of a study that other workers may share."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agenet.errors import UserError, printable, say
from agenet.evaluation.history import read_history
from agenet.evaluation.summary import conditions
from agenet.runs import series
from agenet.runs.child_process import RunError
from agenet.runs.search_page import (
    Page,
    Row,
    markdown_summary,
    show_value,
    write_page,
    write_results,
)
from agenet.runs.series import ReadConfig, Run
from agenet.runs.storage import import_optuna, storage_errors_explained
from agenet.runs.study import Search, importance, open_study
from agenet.runs.workers import POLL_SECONDS, Workers

JOURNAL = "study.journal"
_SURPLUS = "surplus"  # marks a trial that was begun when another worker had begun the last one
# A trial without a folder is of a worker that died before it named one, after so many seconds.
_NAMELESS_SECONDS = 60.0
_DRAW_SECONDS = 60.0  # between two drawings of the page


def run_search(
    search: Search, workdir: Path, storage: str, name: str, command: str, read_config: ReadConfig
) -> None:
    """Trains trials until the study has as many as the search asks for; writes the tables.

    Args:
        search: what to search.
        workdir: the folder of all trials.
        storage: a database's URL or a journal file's path; "" for a journal file in `workdir`.
        name: of the study.
        command: the command to show below the tables.
        read_config: parses `--config=...` and `--config.FIELD=VALUE`, see `agenet.main`.

    Raises:
        UserError: the study is of another search, or the first trial failed.
    """
    workers = Workers(workdir)
    storage = storage or str(workdir / JOURNAL)
    with open_study(search, storage, name) as study, storage_errors_explained(storage):
        worker = _Worker(search, study, workdir, workers, command, read_config)
        while worker.train_next() or worker.wait():
            pass
        print(markdown_summary(worker.write(last=True)))


class _Worker:
    """Takes one trial after the other.

    A trial is taken by a claim on its folder. One that is under way in the study while nobody has
    a claim on it belonged to a worker that is gone; it is resumed from its checkpoint.
    """

    def __init__(
        self,
        search: Search,
        study: Any,
        workdir: Path,
        workers: Workers,
        command: str,
        read_config: ReadConfig,
    ):
        self._search, self._study, self._workdir = search, study, workdir
        self._workers, self._command, self._read_config = workers, command, read_config
        self._states = import_optuna().trial.TrialState
        self._waits, self._drawn = False, time.monotonic()

    def train_next(self) -> bool:
        """Trains one trial; False if there is none to resume and none to begin."""
        optuna = import_optuna()
        for frozen in self._trials():
            if frozen.state != self._states.RUNNING or not self._is_ours(frozen):
                continue
            with self._workers.claim(self._folder(frozen.number)) as mine:
                # Its worker may have finished it in the meantime.
                if mine and self._trials()[frozen.number].state == self._states.RUNNING:
                    self._train(optuna.trial.Trial(self._study, frozen._trial_id))
                    return True
        if len(_counted(self._trials())) >= self._search.trials:
            return False
        trial = self._study.ask()
        trial.set_user_attr("place", self._workers.place)
        before = [each for each in _counted(self._trials()) if each.number < trial.number]
        if len(before) >= self._search.trials:
            trial.set_user_attr(_SURPLUS, True)
            self._study.tell(trial, state=self._states.FAIL)
            return True
        with self._workers.claim(self._folder(trial.number)) as mine:
            if mine:
                self._train(trial)
        return True

    def wait(self) -> bool:
        """Waits a little if other workers train trials, which may have to be resumed."""
        running = [t for t in self._trials() if t.state == self._states.RUNNING]
        ours = [trial for trial in running if self._is_ours(trial)]
        if not self._waits and running:
            numbers = ", ".join(str(trial.number) for trial in ours or running)
            say(
                f"trials {numbers} are with other workers: waiting for them; Ctrl-C ends this "
                "worker alone"
                if ours
                else f"trials {numbers} are trained in another folder"
            )
        self._waits = True
        if ours:
            time.sleep(POLL_SECONDS)
        return bool(ours)

    def write(self, *, last: bool = False) -> Page:
        """Writes the results of the study as they are now; the page at times, and the last one."""
        trials = [trial for trial in self._trials() if _SURPLUS not in trial.user_attrs]
        page = Page(
            title=f"{self._search.config.model.name} on {self._search.config.dataset.name}",
            command=self._command,
            metric=self._search.metric,
            minimizes=self._search.minimizes,
            space=self._search.space,
            wanted=self._search.trials,
            rows=[_row(trial) for trial in trials],
            importance=importance(self._study),
        )
        write_results(page, self._workdir)
        # Drawing takes a second, a trial on cached features few more.
        if last or time.monotonic() - self._drawn > _DRAW_SECONDS:
            write_page(page, self._workdir)
            self._drawn = time.monotonic()
        return page

    def _trials(self) -> Sequence[Any]:
        trials: Sequence[Any] = self._study.get_trials(deepcopy=False)
        return trials

    def _folder(self, number: int) -> Path:
        return self._workdir / f"trial-{number:04d}"

    def _is_ours(self, frozen: Any) -> bool:
        """Whether a trial is trained in this folder, by this or another worker."""
        place, start = frozen.user_attrs.get("place"), frozen.datetime_start
        if place is None and start is not None:
            return bool(time.time() - start.timestamp() > _NAMELESS_SECONDS)
        return bool(place == self._workers.place)

    def _train(self, trial: Any) -> None:
        """Trains or resumes a trial, of which this worker has the claim."""
        self._waits = False
        # Suggestions must not depend on which worker makes them.
        self._study.sampler = self._search.sampler_for(trial.number)
        trial.set_user_attr("place", self._workers.place)
        name, report, message, run = f"trial {trial.number}", None, "", None
        try:
            flags = self._search.flags_of(trial)
            values = ", ".join(f"{key} {show_value(value)}" for key, value in trial.params.items())
            folder = self._folder(trial.number)
            run = Run(name, folder, flags, self._read_config(flags))
            say(f"{name} of {self._search.trials}: {values}: {folder}")
            report = run.report() or series.train(run, self._watch(trial, run))
            trial.set_user_attr("workdir", str(folder))
            trial.set_user_attr("flags", list(flags))
            trial.set_user_attr("seconds", run.seconds(report) if report else run.spent_seconds())
        except RunError as error:
            message = str(error)
        except UserError as error:  # Fields that do not go together.
            if run is not None:
                raise
            message = str(error)
        if report is not None:
            message = self._tell(trial, run, report)
        elif not message:
            self._study.tell(trial, state=self._states.PRUNED)
            say(f"{name}: pruned")
        if message:
            trial.set_user_attr("error", message)
            self._study.tell(trial, state=self._states.FAIL)
            if not any(
                t.state in (self._states.COMPLETE, self._states.PRUNED) for t in self._trials()
            ):
                raise UserError(f"{name}: {message}")
            say(f"{name}: {message}: continuing without it")
        self.write()

    def _tell(self, trial: Any, run: Any, report: dict[str, Any]) -> str:
        """Records the results of a finished run; returns what is wrong with them."""
        figures = series.validation_figures(run.workdir, report["training"]["best_step"])
        value = figures.get(self._search.metric.removeprefix("validation/"))
        if value is None:
            return f"its metrics.jsonl has no {self._search.metric} of its best state"
        trial.set_user_attr("validation", figures)
        trial.set_user_attr("test", series.test_figures(report))
        trial.set_user_attr("conditions", conditions([report]))
        trial.set_user_attr("notice", report["dataset"]["notice"])
        self._study.tell(trial, value)
        best = self._study.best_trial
        mark = "the best so far" if best.number == trial.number else f"best: trial {best.number}"
        say(f"{run.name}: {self._search.metric} {value:.4f}, {mark}")
        return ""

    def _watch(self, trial: Any, run: Run) -> Callable[[], bool]:
        """A function that reports new validations to the study and says whether to prune.

        Validations are numbered, because trials with other batch sizes have other steps.
        """
        path, metric, first = run.workdir / "metrics.jsonl", self._search.metric, True
        known = {*self._trials()[trial.number].intermediate_values}

        def watch() -> bool:
            nonlocal first
            rows = {row["step"]: row[metric] for row in read_history(path) if metric in row}
            new = [(n, rows[step]) for n, step in enumerate(sorted(rows)) if n not in known]
            for number, value in new:
                trial.report(value, number)
                known.add(number)
            asks, first = bool(new) or (first and bool(known)), False
            return asks and bool(trial.should_prune())

        return watch


def _counted(trials: Sequence[Any]) -> list[Any]:
    """The trials that count: not those that failed before any succeeded, such as without data."""
    states = import_optuna().trial.TrialState
    succeeded = [t.number for t in trials if t.state in (states.COMPLETE, states.PRUNED)]
    first = min(succeeded, default=len(trials))
    return [
        trial
        for trial in trials
        if _SURPLUS not in trial.user_attrs and (trial.state != states.FAIL or trial.number > first)
    ]


def _row(trial: Any) -> Row:
    """What the tables show of a trial; what a stranger changed in the storage is left out."""
    given = trial.user_attrs
    numbers = given.get("validation") if isinstance(given.get("validation"), dict) else {}
    tasks = given.get("test") if isinstance(given.get("test"), dict) else {}
    seconds, flags = given.get("seconds"), given.get("flags")
    values = trial.values if isinstance(trial.values, list) and len(trial.values) == 1 else [None]
    return Row(
        number=trial.number,
        state=trial.state.name.lower(),
        value=values[0] if isinstance(values[0], float) else None,
        params=dict(trial.params),
        validation={k: v for k, v in numbers.items() if isinstance(v, float)},
        test={
            f"{task}_{k}": v
            for task, figures in tasks.items()
            if isinstance(figures, dict)
            for k, v in figures.items()
            if isinstance(v, float)
        },
        seconds=seconds if isinstance(seconds, float) else None,
        flags=tuple(map(str, flags)) if isinstance(flags, list) else (),
        workdir=str(given.get("workdir", "")),
        validations=len(trial.intermediate_values),
        error=printable(str(given.get("error", "")), 300),
        conditions=str(given.get("conditions", ""))[:2000],
        notice=str(given.get("notice", ""))[:2000],
    )
