"""Checkpoints of a run: the latest states, to resume from, and the best ones, to use.

All are Orbax checkpoints in `checkpoints/` of the work directory, with a JSON record of the run and
digests of both. The one before the newest is kept, in case that a disk damages the newest. Several
processes save and restore together on a shared file system; a checkpoint may be restored by a
different number of processes and devices.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from agenet.errors import UserError, printable
from agenet.files import write_file
from agenet.training.run_record import parse_record
from agenet.training.state import TrainState

_KEPT = 2
_LONGEST_RECORD = 64 << 20  # bytes; the subjects of the largest data set take a million


class Checkpoints:
    """The latest and the best states under `workdir/checkpoints`.

    Saving is synchronous and atomic: an interruption leaves the previous checkpoint in place.
    Damage is found when a checkpoint is read: by the digests that were saved with it and, in those
    of earlier versions, which have none, by what Orbax notices and by values that are not finite.

    Args:
        workdir: of the run.
        read_only: whether nothing is written.
        after_save: called after each checkpoint.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        read_only: bool = False,
        after_save: Callable[[], None] = lambda: None,
    ):
        directory = workdir.absolute() / "checkpoints"
        if read_only and not directory.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: is it the --workdir of a run?")
        self.directory = directory
        self._after_save = after_save
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
        """Saves the latest state; `run` is a record of the run, see `run_record`."""
        self._save(self._latest, int(state.step), _fields(state), run)
        self._after_save()

    def save_best(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Saves `state.averaged_variables` as the best variables."""
        self._save(self._best, int(state.step), state.averaged_variables, run)
        self._after_save()

    def read_run(self, which: str) -> dict[str, Any] | None:
        """The record of the run in the "latest" or "best" checkpoint; None without a checkpoint.

        Raises:
            UserError: it is damaged.
        """
        manager = self._best if which == "best" else self._latest
        step = manager.latest_step()
        if step is None:
            return None
        with _one_line_errors(_folder(manager, step), "read", lambda: _way_out(manager)):
            record = _read_record(_folder(manager, step))
        return {name: value for name, value in record.items() if name not in _DIGESTS}

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
        self,
        manager: ocp.CheckpointManager,
        step: int,
        tree: Mapping[str, Any],
        run: Mapping[str, Any],
    ) -> None:
        folder = _folder(manager, step)
        if step in manager.all_steps():
            # Saved before an interruption. Runs are deterministic, so the state is the same, but
            # its record may have changed, by the validation of that state or the end of the run.
            if jax.process_index() == 0:
                with _one_line_errors(folder, "read", lambda: _way_out(manager)):
                    digests = _read_record(folder).get("digests", {})
                record = json.dumps(_with_digests(run, digests))
                write_file(folder / "run" / "metadata", record.encode())
            return
        digests = {part: _digest(arrays) for part, arrays in tree.items()}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), run=ocp.args.JsonSave(_with_digests(run, digests))
        )
        with _one_line_errors(folder, "written"):
            try:
                manager.save(step, args=args)
            except Exception:
                for unfinished in manager.directory.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise

    def _restore(self, manager: ocp.CheckpointManager, template: Mapping[str, Any]) -> Any:
        step = manager.latest_step()
        assert step is not None, "read_run says whether there is a checkpoint"
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        with _one_line_errors(_folder(manager, step), "read", lambda: _way_out(manager)):
            digests = _read_record(_folder(manager, step)).get("digests", {})
            _check_files(_folder(manager, step))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = manager.restore(step, args=args)["state"]
            _check_state(state, digests)
            return state


def _fields(state: TrainState) -> dict[str, Any]:
    """The fields that are not None, so that unused features leave no trace in checkpoints."""
    return {name: value for name, value in vars(state).items() if value is not None}


# Of the parts of the state, and of the record with these.
_DIGESTS = ("digests", "digest")


def _with_digests(run: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """A record with the digests of its state, and its own."""
    record = {**run, "digests": digests}
    return record | {"digest": _digest_record(record)}


def _digest_record(record: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in record.items() if name != "digest"})
    ordered = json.dumps(json.loads(text), sort_keys=True)  # As it is read: JSON has no tuples.
    return hashlib.sha256(ordered.encode()).hexdigest()


def _digest(arrays: Any) -> str:
    """A digest of arrays in the order of their tree: types, shapes and bytes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype} {np.shape(leaf)};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check_state(state: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Raises `ValueError` if parts of a state are not those saved, or not finite."""
    for part, arrays in state.items():
        if part in digests and _digest(arrays) != digests[part]:
            raise ValueError(f"its {part} differ from what was saved")
        for leaf in jax.tree.leaves(arrays):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
                raise ValueError(f"its {part} have values that are not finite")


def _read_record(folder: Path) -> dict[str, Any]:
    """The record of the checkpoint in a folder, with digests; raises `ValueError` for damage."""
    path = folder / "run" / "metadata"
    if not path.is_file() or path.stat().st_size > _LONGEST_RECORD:
        raise ValueError("its record of the run, run/metadata, is missing, or too large")
    record = parse_record(path.read_bytes(), best=folder.parent.name == "best")
    if record.get("digest", "") not in ("", _digest_record(record)):
        raise ValueError("its record of the run differs from what was saved")
    if str(record["step"]) != folder.name:
        raise ValueError(f"its record is of step {record['step']}")
    return record


def _check_files(folder: Path) -> None:
    """Raises `ValueError` for other things than files and folders: a pipe may never end."""
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"its {path.relative_to(folder)} is not a file")


def _folder(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / str(step)


def _way_out(manager: ocp.CheckpointManager) -> str:
    """What to do about a damaged newest checkpoint."""
    *earlier, damaged = sorted(manager.all_steps())
    for step in reversed(earlier):
        try:
            _read_record(_folder(manager, step))
        except (OSError, ValueError):
            continue
        return (
            f"The one of step {step} is kept as well: to go on from there, remove "
            f"{_folder(manager, damaged)} and run the same command again"
        )
    return "Restore a copy of it, or start again in another --workdir"


def _create_manager(directory: Path, read_only: bool) -> ocp.CheckpointManager:
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True)
    else:
        # Asynchronous saves report failures late, and count as the latest while unfinished. The
        # next start removes what a killed save leaves.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
    return ocp.CheckpointManager(directory, options=options)


@contextmanager
def _one_line_errors(
    checkpoint: Path, done: str, way_out: Callable[[], str] = str
) -> Iterator[None]:
    """Converts errors about full disks and damaged files into one-line errors.

    Args:
        checkpoint: what is read or written.
        done: what is done with it, in the past.
        way_out: returns what to do about it.
    """
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
        reason = printable((str(error) or type(error).__name__).splitlines()[0], 300)
        line = f"the checkpoint {checkpoint} cannot be {done}: {reason.rstrip('.')}. {way_out()}"
        raise UserError(line.strip()) from error
    sys.unraisablehook = hook
