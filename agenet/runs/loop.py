"""The training loop: steps, validation, checkpoints, and how to stop and go on."""

import dataclasses
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from tqdm import tqdm

from agenet.distributed.coordination import broadcast
from agenet.distributed.mesh import make_process_max
from agenet.distributed.profiler import Profile
from agenet.errors import UserError
from agenet.runs.batches import Batches
from agenet.runs.evaluator import measure, predict
from agenet.runs.experiment import Experiment
from agenet.runs.logging import MetricWriter
from agenet.training.checkpoints import Checkpoints
from agenet.training.state import TrainState

log = logging.getLogger(__name__)

# Steps given to the device before the host waits: enough to keep a device busy, few enough that
# a request to stop is heard and that batches do not pile up in memory.
_STEPS_AHEAD = 2

# Sums over steps, `steps` among them, and what the last step told of itself.
_Tally = tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]]


class StopRequest(AbstractContextManager["StopRequest"]):
    """Turns the first SIGTERM or Ctrl-C into a flag; a second one ends the process at once.

    Several processes agree: all ask equally often, and hear of a signal to one of them with the
    same question, `_STEPS_AHEAD` later than it could be, for by then the answer is there.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.signal: signal.Signals | None = None  # that all know of
        self._noted: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._largest = make_process_max(mesh) if jax.process_count() > 1 else None
        self._asked: deque[jax.Array] = deque()

    def __call__(self, *, wait: bool = False) -> bool:
        """Whether to stop; if it is to `wait`, what arrived just now is heard, too."""
        if self._largest is None:
            self.signal = self._noted
        elif self.signal is None:
            self._asked.append(self._largest(self._noted or 0))
            while self.signal is None and len(self._asked) > (0 if wait else _STEPS_AHEAD):
                number = int(self._asked.popleft())
                self.signal = signal.Signals(number) if number else None
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._noted = signal.Signals(number)
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)


@dataclass
class Progress:
    """What a continued run must know beside its state; kept with every checkpoint."""

    training_seconds: float = 0.0  # over all sessions, like the next; neither counts saving
    validation_seconds: float = 0.0
    evaluated_step: int = 0  # the last step whose validation is done
    improved_step: int = 0  # the last one that was better than all before, as far as it was seen
    stopped_early: bool = False  # for want of a better one; the run is then complete
    epochs_found: int = 0  # whose features were on disk when the run first started
    rows: int = 0  # given to the writer
    sums: dict[str, float] = field(default_factory=dict)  # over the steps since the last row


class Trainer:
    """Trains one experiment, from its latest checkpoint if it has one.

    Args:
        experiment: what to train.
        batches: of its training and validation.
        checkpoints: where states are kept and found.
        writer: takes the scalars.
        run: what the checkpoints are labelled with, `Experiment.identity` at least.
        progress: what the run has behind it.
        show_progress: draw a progress bar.
        profile: traces some of the steps.
    """

    def __init__(
        self,
        experiment: Experiment,
        batches: Batches,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        *,
        run: dict[str, Any],
        progress: Progress,
        show_progress: bool,
        profile: Profile,
    ):
        self._experiment = experiment
        self._batches = batches
        self._checkpoints = checkpoints
        self._writer = writer
        self._progress = progress
        self._show_progress = show_progress
        self._profile = profile
        self._run = run
        # Those of all steps at once, for the loop is to ask nothing of the device but steps.
        steps = np.arange(experiment.total_steps)
        self._rates = np.asarray(jax.jit(jax.vmap(experiment.schedule))(steps))
        self._tally: _Tally | None = None  # of the steps since the last row, on the device
        self._since = 0.0

    def run(self, state: TrainState) -> bool:
        """Trains from `state` to the end of the run.

        Returns:
            Whether the run is complete, at its last step or, by the config's patience, before;
            False if it was asked to stop, and saved.

        Raises:
            UserError: the loss is not finite, or the disk is full.
        """
        experiment, progress = self._experiment, self._progress
        total = experiment.total_steps
        evaluate_every = experiment.to_steps(experiment.config.evaluate_every)
        checkpoint_every = experiment.to_steps(experiment.config.checkpoint_every)
        log_every = experiment.to_steps(experiment.config.log_every)
        step = int(state.step)
        ahead: deque[jax.Array] = deque()
        self._lap()
        with (
            StopRequest(experiment.mesh) as stop,
            self._profile as profile,
            closing(self._batches.training(step)) as batches,  # Some read ahead.
            tqdm(
                desc="training",
                total=total,
                initial=step,
                unit=" steps",
                disable=not self._show_progress,
            ) as bar,
        ):
            while True:
                due = step > 0 and (step % evaluate_every == 0 or step == total)
                if due and progress.evaluated_step < step and not self._validate(state, stop):
                    break
                if step == total or progress.stopped_early or stop():
                    break
                if step > 0 and step % checkpoint_every == 0:
                    self._save(state)
                profile.before(step, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, sums = experiment.train_step(state, next(batches))
                step += 1
                self._tally = _add(self._tally or self._begin_tally(sums), sums)
                ahead.append(sums["loss"])
                if len(ahead) > _STEPS_AHEAD:
                    ahead.popleft().block_until_ready()
                bar.update()
                if step % log_every == 0 or step == total:
                    self._write_row(step)
            self._save(state)
            complete = step == total or progress.stopped_early
            ended = complete and not stop(wait=True)
        if stop.signal:
            log.info("%s: stopped and saved at step %d of %d", stop.signal.name, step, total)
        return ended

    def _begin_tally(self, sums: dict[str, jax.Array]) -> _Tally:
        """That before the first step since a row, or since a stop after it."""
        before = self._progress.sums
        totals = {name: np.float32(before.get(name, 0.0)) for name in (*sums, "steps")}
        return totals, {name: sums[name] for name in ("step", "loss", "gradient_norm")}

    def _fetch(self) -> None:
        """Waits for the steps under way and takes their sums; stops a run that diverged."""
        if self._tally:
            totals, last = jax.device_get(self._tally)
            loss, norm = last["loss"], last["gradient_norm"]
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._diverged(f"the loss is {loss}, its gradient's norm {norm},", last["step"] + 1)
            self._progress.sums |= {name: float(value) for name, value in totals.items()}
        seconds = self._lap()
        self._progress.sums["seconds"] = self._progress.sums.get("seconds", 0.0) + seconds
        self._progress.training_seconds += seconds

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def _diverged(self, what: str, step: int) -> NoReturn:
        saved = self._checkpoints.latest_step
        where = f"{self._checkpoints.directory}/latest"
        good = "none yet" if saved is None else f"step {saved} in {where}"
        raise UserError(
            f"{what} at step {step} with learning rate "
            f"{self._rates[step - 1]:.3g}; last good checkpoint: {good}. "
            "Try a smaller --config.schedule.learning_rate in a new --workdir"
        )

    def _write_row(self, step: int) -> None:
        self._fetch()
        sums, self._progress.sums, self._tally = self._progress.sums, {}, None
        row: dict[str, float] = {
            "epoch": step / self._experiment.steps_per_epoch,
            "train/loss": 0.0,
        }
        for task in self._experiment.tasks:
            count = max(sums[f"{task}_count"], 1.0)
            row[f"train/{task}_loss"] = sums[f"{task}_loss"] / count
            row[f"train/{task}_accuracy"] = sums[f"{task}_correct"] / count
            row["train/loss"] += row[f"train/{task}_loss"]
        row["train/gradient_norm"] = sums["gradient_norm"] / sums["steps"]
        row["learning_rate"] = float(self._rates[step - 1])
        pictures = sums["steps"] * self._experiment.config.batch_size
        row["pictures_per_second"] = pictures / sums["seconds"]
        self._write(step, row)

    def _validate(self, state: TrainState, stop: StopRequest) -> bool:
        """Measures the validation set and keeps the state if it is the best; False if stopped."""
        self._fetch()
        experiment, step = self._experiment, int(state.step)
        log_probs = predict(
            experiment.eval_step,
            state.averaged_variables,
            self._batches.evaluation(experiment.splits.validation),
            faces=len(experiment.splits.validation),
            stop=stop,
            progress="validating" if self._show_progress else "",
        )
        if log_probs is None:
            return False
        if not all(np.isfinite(values).all() for values in log_probs.values()):
            self._diverged("the validation loss is not finite", step)
        metrics = measure(experiment, log_probs, experiment.splits.validation)
        row = {"epoch": step / experiment.steps_per_epoch} | validation_row(metrics)
        self._progress.validation_seconds += self._lap()
        self._progress.evaluated_step = step
        self._write(step, row)
        name = experiment.config.best
        best = self._checkpoints.read_run("best")
        value = row.get(name, float(step))  # The last one has the largest step.
        # A run that was killed may have kept, in an earlier session, a state that lies ahead.
        self._progress.improved_step = best["step"] if best is not None else 0
        # Agreed on, for processors may round in different ways.
        if broadcast(best is None or is_better(name, value, best["value"])):
            self._progress.improved_step = step
            self._checkpoints.save_best(
                state, self._record(step) | {"metric": name, "value": value}
            )
            self._lap()
        self._stop_early(step)
        return True

    def _stop_early(self, step: int) -> None:
        experiment, progress = self._experiment, self._progress
        patience = experiment.config.patience
        if not patience or step == experiment.total_steps:
            return
        if step - progress.improved_step >= experiment.to_steps(patience):
            progress.stopped_early = True
            if "steps" in progress.sums:  # since the last row, which would have been the next's
                self._write_row(step)
            log.info(
                "stopped early, at step %d of %d: no better %s in %s, since step %d",
                step,
                experiment.total_steps,
                experiment.config.best,
                patience,
                progress.improved_step,
            )

    def _save(self, state: TrainState) -> None:
        self._fetch()  # No state after a loss that is not finite must replace a good one.
        self._checkpoints.save_latest(state, self._record(int(state.step)))
        self._lap()

    def _record(self, step: int) -> dict[str, Any]:
        return self._run | {"step": step, "progress": dataclasses.asdict(self._progress)}

    def _write(self, step: int, row: dict[str, float]) -> None:
        self._writer.write_scalars(step, row)
        self._progress.rows += 1
        shown = [
            f"{name} {value:.4g}"
            for name, value in row.items()
            if name not in ("epoch", "train/gradient_norm")
        ]
        total = self._experiment.total_steps
        log.info("step %d/%d, epoch %.2f: %s", step, total, row["epoch"], ", ".join(shown))


@jax.jit
def _add(tally: _Tally, sums: dict[str, jax.Array]) -> _Tally:
    """A tally and the sums of a step more; its last step remains the first that diverged."""
    totals, last = tally
    totals = {name: total + (sums | {"steps": 1})[name] for name, total in totals.items()}
    fine = jnp.isfinite(last["loss"]) & jnp.isfinite(last["gradient_norm"])
    return totals, {name: jnp.where(fine, sums[name], value) for name, value in last.items()}


def validation_row(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The scalars of a validation: per task, the sum of losses and the mean of accuracies."""
    row = {
        "validation/loss": sum(task["loss"] for task in metrics.values()),
        "validation/accuracy": sum(t["accuracy"] for t in metrics.values()) / len(metrics),
    }
    for task, values in metrics.items():
        for name in ("loss", "accuracy", "one_off"):
            if name in values:
                row[f"validation/{task}_{name}"] = values[name]
    return row


def is_better(metric: str, value: float, than: float) -> bool:
    """Losses are to be small, everything else large."""
    return value < than if metric.endswith("loss") else value > than
