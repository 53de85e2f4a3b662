"""The training loop: steps, validation, checkpoints, and an exact resume after a stop."""

import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from agenet.distributed.coordination import broadcast
from agenet.distributed.profiler import Profile
from agenet.errors import UserError
from agenet.evaluation.history import digest_row
from agenet.evaluation.metrics import task_metrics
from agenet.runs.batches import Batches
from agenet.runs.console import Rows
from agenet.runs.evaluator import age_errors, exact_ages, predict, predicted_age
from agenet.runs.experiment import Experiment
from agenet.runs.logging import MetricWriter
from agenet.runs.stop_request import STEPS_AHEAD, StopRequest
from agenet.training.checkpoints import Checkpoints
from agenet.training.run_record import Progress
from agenet.training.state import TrainState

log = logging.getLogger(__name__)

# Sums over steps, `steps` among them, and figures of the last step alone.
_Sums = tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]]


@dataclass
class Trainer:
    """Trains one experiment.

    Args:
        experiment: what to train.
        batches: of training and validation.
        checkpoints: where states are saved.
        writer: takes the scalars.
        record: of the run, saved with its checkpoints; contains at least `Experiment.identity`.
        progress: of the run so far.
        show_progress: draw a progress bar.
        profile: traces some of the steps.
    """

    experiment: Experiment
    batches: Batches
    checkpoints: Checkpoints
    writer: MetricWriter
    record: Mapping[str, Any]
    progress: Progress
    show_progress: bool
    profile: Profile

    def __post_init__(self) -> None:
        plan = self.experiment.plan
        self._rows = Rows(self.experiment.tasks, plan.total_steps)
        # Of all steps, computed at once, so that the loop gives the device nothing but steps.
        steps = np.arange(plan.total_steps)
        self._rates = np.asarray(jax.jit(jax.vmap(self.experiment.schedule))(steps))
        self._sums: _Sums | None = None  # of the steps since the last row, on the device
        self._since = 0.0

    def run(self, state: TrainState) -> bool:
        """Trains from `state` to the end of the run.

        Returns:
            Whether the run is complete: at its last step or, by the config's patience, earlier.
            False if it was asked to stop; its state has then been saved.

        Raises:
            UserError: the loss is not finite, or the disk is full.
        """
        experiment, progress, plan = self.experiment, self.progress, self.experiment.plan
        total = plan.total_steps
        step = int(state.step)
        ahead: deque[jax.Array] = deque()
        self._lap()
        with (
            StopRequest(experiment.mesh) as stop,
            self.profile as profile,
            closing(self.batches.training(step)) as batches,  # Some are read in advance.
            tqdm(
                desc="training",
                total=total,
                initial=step,
                unit=" steps",
                disable=not self.show_progress,
            ) as bar,
        ):
            while True:
                due = step > 0 and (step % plan.evaluate_every == 0 or step == total)
                if due and progress.evaluated_step < step and not self._validate(state, stop):
                    break
                if step == total or progress.stopped_early or stop():
                    break
                if step > 0 and step % plan.checkpoint_every == 0:
                    self._save(state)
                profile.before(step, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, sums = experiment.train_step(state, next(batches))
                step += 1
                self._sums = _add(self._sums or self._begin_sums(sums), sums)
                ahead.append(sums["loss"])
                if len(ahead) > STEPS_AHEAD:
                    ahead.popleft().block_until_ready()
                bar.update()
                if step % plan.log_every == 0 or step == total:
                    self._write_row(step)
            self._save(state)
            complete = step == total or progress.stopped_early
            ended = complete and not stop(wait=True)
        if stop.signal:
            log.info("%s: stopped and saved at step %d of %d", stop.signal.name, step, total)
        return ended

    def _begin_sums(self, sums: dict[str, jax.Array]) -> _Sums:
        """The sums before the first step after a row, or after a resume."""
        before = self.progress.sums
        totals = {name: np.float32(before.get(name, 0.0)) for name in (*sums, "steps")}
        return totals, {name: sums[name] for name in ("step", "loss", "gradient_norm")}

    def _fetch(self) -> None:
        """Waits for the steps under way and fetches their sums; ends a run that diverged."""
        if self._sums:
            totals, last = jax.device_get(self._sums)
            loss, norm = last["loss"], last["gradient_norm"]
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._diverged(f"the loss is {loss}, its gradient's norm {norm},", last["step"] + 1)
            self.progress.sums |= {name: float(value) for name, value in totals.items()}
        seconds = self._lap()
        self.progress.sums["seconds"] = self.progress.sums.get("seconds", 0.0) + seconds
        self.progress.training_seconds += seconds

    def _lap(self) -> float:
        """Returns the seconds since the last call."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def _diverged(self, what: str, step: int) -> NoReturn:
        saved = self.checkpoints.latest_step
        where = f"{self.checkpoints.directory}/latest"
        good = "none yet" if saved is None else f"step {saved} in {where}"
        raise UserError(
            f"{what} at step {step} with learning rate "
            f"{self._rates[step - 1]:.3g}; last good checkpoint: {good}. "
            "Try a smaller --config.schedule.learning_rate in a new --workdir"
        )

    def _write_row(self, step: int) -> None:
        self._fetch()
        sums, self.progress.sums, self._sums = self.progress.sums, {}, None
        row = {"epoch": step / self.experiment.plan.steps_per_epoch, "train/loss": 0.0}
        for task in self.experiment.tasks:
            count = max(sums[f"{task}_count"], 1.0)
            row[f"train/{task}_loss"] = sums[f"{task}_loss"] / count
            row[f"train/{task}_accuracy"] = sums[f"{task}_correct"] / count
            row["train/loss"] += row[f"train/{task}_loss"]
        row["train/gradient_norm"] = sums["gradient_norm"] / sums["steps"]
        row["learning_rate"] = float(self._rates[step - 1])
        images = sums["steps"] * self.experiment.config.batch_size
        row["pictures_per_second"] = images / sums["seconds"]
        self._write(step, row)

    def _validate(self, state: TrainState, stop: StopRequest) -> bool:
        """Measures the validation set and saves the state if it is the best.

        Returns:
            False if the run was asked to stop.
        """
        self._fetch()
        experiment, step = self.experiment, int(state.step)
        rows = experiment.splits.validation
        log_probs = predict(
            experiment.eval_step,
            state.averaged_variables,
            self.batches.evaluation(rows),
            count=len(rows),
            stop=stop,
            progress="validating" if self.show_progress else "",
        )
        if log_probs is None:
            return False
        if not all(np.isfinite(values).all() for values in log_probs.values()):
            self._diverged("the validation loss is not finite", step)
        labels = experiment.records.labels
        metrics = {t: task_metrics(t, log_probs[t], labels[t][rows]) for t in experiment.tasks}
        if experiment.measures_years:
            true_age = exact_ages(experiment.records, rows)
            metrics["age"] |= age_errors(predicted_age(log_probs), true_age)
        row = {"epoch": step / experiment.plan.steps_per_epoch} | validation_row(metrics)
        self.progress.validation_seconds += self._lap()
        self.progress.evaluated_step = step
        self._write(step, row)
        name = experiment.config.best
        best = self.checkpoints.read_run("best")
        value = row.get(name, float(step))  # The last one has the largest step.
        # If an earlier session was killed, the best state may be of a later step than this one.
        self.progress.improved_step = best["step"] if best is not None else 0
        # All processes must agree, but processors may round differently.
        if broadcast(best is None or is_better(name, value, best["value"])):
            self.progress.improved_step = step
            self.checkpoints.save_best(state, self._record(step) | {"metric": name, "value": value})
            self._lap()
        self._stop_early(step)
        return True

    def _stop_early(self, step: int) -> None:
        plan, progress, config = self.experiment.plan, self.progress, self.experiment.config
        if plan.patience is None or step == plan.total_steps:
            return
        if step - progress.improved_step >= plan.patience:
            progress.stopped_early = True
            if "steps" in progress.sums:  # that no row contains yet
                self._write_row(step)
            log.info(
                "stopped early, at step %d of %d: no better %s in %s, since step %d",
                step,
                plan.total_steps,
                config.best,
                config.patience,
                progress.improved_step,
            )

    def _save(self, state: TrainState) -> None:
        self._fetch()  # Ends the run before a diverged state replaces a good one.
        self.checkpoints.save_latest(state, self._record(int(state.step)))
        self._lap()

    def _record(self, step: int) -> dict[str, Any]:
        return {**self.record, "step": step, "progress": dataclasses.asdict(self.progress)}

    def _write(self, step: int, row: dict[str, float]) -> None:
        self.writer.write_scalars(step, row)
        self.progress.rows += 1
        self.progress.rows_digest = digest_row(self.progress.rows_digest, {"step": step, **row})
        self._rows.log(step, row)


@jax.jit
def _add(before: _Sums, sums: dict[str, jax.Array]) -> _Sums:
    """Adds a step to the sums; once a step has diverged it remains the last one."""
    totals, last = before
    totals = {name: total + (sums | {"steps": 1})[name] for name, total in totals.items()}
    finite = jnp.isfinite(last["loss"]) & jnp.isfinite(last["gradient_norm"])
    return totals, {name: jnp.where(finite, sums[name], value) for name, value in last.items()}


def validation_row(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The scalars of a validation: the sum of losses, the mean of accuracies, and each task's."""
    row = {
        "validation/loss": sum(task["loss"] for task in metrics.values()),
        "validation/accuracy": sum(t["accuracy"] for t in metrics.values()) / len(metrics),
    }
    for task, values in metrics.items():
        for name in ("loss", "accuracy", "one_off", "mae", "cs5"):
            if name in values:
                row[f"validation/{task}_{name}"] = values[name]
    return row


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value of a metric improves on another: losses and errors should be low."""
    return value < than if metric.endswith(("loss", "mae")) else value > than
