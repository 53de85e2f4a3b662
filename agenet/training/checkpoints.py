"""Checkpoints of a run: the latest state, to resume from, and the best one, to use.

Both are Orbax checkpoints in `checkpoints/` of the work directory, with a JSON record of the run.
Several processes save and restore together on a shared file system; a checkpoint may be restored
by a different number of processes and devices.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from agenet.errors import UserError
from agenet.files import write_file
from agenet.training.state import TrainState


class Checkpoints:
    """The latest and the best state under `workdir/checkpoints`.

    Saving is synchronous and atomic: an interruption leaves the previous checkpoint in place.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False):
        directory = workdir.absolute() / "checkpoints"
        if read_only and not directory.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: is it the --workdir of a run?")
        self.directory = directory
        with _one_line_errors(directory, "opened"):
            self._latest = _create_manager(directory / "latest", read_only)
            self._best = _create_manager(directory / "best", read_only)

    @property
    def latest_step(self) -> int | None:
        """Step of the latest state, None if there is none yet."""
        return self._latest.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the best state, None if there is none yet."""
        return self._best.latest_step()

    def save_latest(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Replaces the latest state; `run` is a JSON-serialisable record of the run."""
        self._save(self._latest, int(state.step), _fields(state), run)

    def save_best(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Replaces the best variables by `state.averaged_variables`."""
        self._save(self._best, int(state.step), state.averaged_variables, run)

    def read_run(self, which: str) -> dict[str, Any] | None:
        """The record of the run in the "latest" or "best" checkpoint; None without a checkpoint."""
        manager = self._best if which == "best" else self._latest
        step = manager.latest_step()
        if step is None:
            return None
        with _one_line_errors(manager.directory / str(step), "read"):
            run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            if not (isinstance(run, dict) and run):
                raise ValueError("run/metadata has no record of a run")
            return run

    def restore_latest(self, template: TrainState) -> TrainState:
        """The latest state, with the shapes, types and shardings of `template`."""
        return TrainState(**self._restore(self._latest, _fields(template)))

    def restore_best(self, template: dict[str, Any]) -> dict[str, Any]:
        """The best parameters and batch statistics, with the shardings of `template`."""
        return self._restore(self._best, template)

    def close(self) -> None:
        """Releases Orbax's resources."""
        self._latest.close()
        self._best.close()

    def _save(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, run: Mapping[str, Any]
    ) -> None:
        if step in manager.all_steps():
            # Saved before an interruption. Runs are deterministic, so the state is the same, but
            # its record may have changed, by the validation of that state or the end of the run.
            if jax.process_index() == 0:
                path = Path(manager.directory) / str(step) / "run" / "metadata"
                write_file(path, json.dumps(dict(run)).encode())
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), run=ocp.args.JsonSave(dict(run))
        )
        with _one_line_errors(manager.directory / str(step), "written"):
            try:
                manager.save(step, args=args)
            except Exception:
                for unfinished in manager.directory.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise

    def _restore(self, manager: ocp.CheckpointManager, template: Any) -> Any:
        step = manager.latest_step()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        with _one_line_errors(manager.directory / str(step), "read"):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return manager.restore(step, args=args)["state"]


def _fields(state: TrainState) -> dict[str, Any]:
    """The fields that are not None, so that unused features leave no trace in checkpoints."""
    return {name: value for name, value in vars(state).items() if value is not None}


def is_complete(run: Mapping[str, Any]) -> bool:
    """Whether `run`, the record of a latest checkpoint, is that of a finished run."""
    progress = run.get("progress", {})
    at_end = run["step"] >= run.get("total_steps", 0)
    validated = progress.get("evaluated_step", run["step"]) >= run["step"]
    return progress.get("stopped_early", False) or (at_end and validated)


def _create_manager(directory: Path, read_only: bool) -> ocp.CheckpointManager:
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True)
    else:
        # Asynchronous saves report failures late, and count as the latest while unfinished. The
        # next start removes what a killed save leaves.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
    return ocp.CheckpointManager(directory, options=options)


@contextmanager
def _one_line_errors(checkpoint: Path, done: str) -> Iterator[None]:
    """Converts Orbax's errors about full disks and damaged files into one-line errors."""
    # Orbax's other tasks would print that nobody awaits them after one has failed.
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        yield
    except Exception as error:
        if any(os.strerror(full) in str(error) for full in (errno.ENOSPC, errno.EDQUOT)):
            raise UserError(
                f"no space left on the disk for {checkpoint}: free some and run the same command "
                "again, it resumes from the previous checkpoint"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        advice = " Restore a copy of it, or start again in another --workdir" * (done == "read")
        raise UserError(
            f"the checkpoint {checkpoint} cannot be {done}: {reason.rstrip('.')}.{advice}"
        ) from error
    sys.unraisablehook = hook
