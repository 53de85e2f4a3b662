"""What a work directory keeps of a run: its latest state, to go on from, and its best, to use.

Both lie in `checkpoints/` as Orbax checkpoints that also hold, as JSON, the run they belong to.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from agenet.errors import UserError
from agenet.state import TrainState

# These change neither the numbers of a run nor what they mean.
_MAY_DIFFER = (
    "config.dataset.data_dir",
    "config.dataset.prepare",
    "config.input.placement",
    "config.checkpoint_every",
    "config.tensorboard",
    "command",
    "progress",
)


class Checkpoints:
    """The latest and the best state under `workdir/checkpoints`.

    A save is atomic: a run killed in the middle of one finds the earlier checkpoint. Saving
    returns as soon as the state may be changed again and finishes in the background.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False):
        directory = workdir.absolute() / "checkpoints"
        if read_only and not directory.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: is it the --workdir of a run?")
        self.directory = directory
        with _clear_errors(directory):
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
        """Keeps the whole state, in place of the latest one. `run` must be JSON-serialisable."""
        self._save(self._latest, int(state.step), state, run)

    def save_best(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Keeps parameters and batch statistics, in place of the best ones."""
        self._save(self._best, int(state.step), state.variables, run)

    def read_run(self, which: str) -> dict[str, Any] | None:
        """The run that the "latest" or "best" checkpoint was saved with, None without one."""
        manager = self._best if which == "best" else self._latest
        step = manager.latest_step()
        if step is None:
            return None
        with _clear_errors(self.directory / which / str(step)):
            return manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def restore_latest(self, template: TrainState) -> TrainState:
        """The latest state, with the shapes, types and shardings of `template`."""
        return self._restore(self._latest, template)

    def restore_best(self, template: dict[str, Any]) -> dict[str, Any]:
        """The best parameters and batch statistics, with the shardings of `template`."""
        return self._restore(self._best, template)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with _clear_errors(self.directory):
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and frees the threads that wrote them."""
        with _clear_errors(self.directory):
            self._latest.close()
            self._best.close()

    def _save(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, run: Mapping[str, Any]
    ) -> None:
        if step in manager.all_steps():
            return  # Saved before an interruption: the same state, for runs are deterministic.
        with _clear_errors(self.directory):
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), run=ocp.args.JsonSave(dict(run))
                ),
            )

    def _restore(self, manager: ocp.CheckpointManager, template: Any) -> Any:
        step = manager.latest_step()
        where = f"{manager.directory}/{step}"
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        with _clear_errors(where):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return manager.restore(step, args=args)["state"]


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], workdir: Path) -> None:
    """Raises `UserError` naming every difference if a checkpoint belongs to another run."""
    old, new = dict(_flatten(saved)), dict(_flatten(current))
    differences = [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(_MAY_DIFFER)
    ]
    if differences:
        raise UserError(
            f"the checkpoint in {workdir} is of another run ({'; '.join(differences)}): "
            "give that run's settings to continue it, or another --workdir to start afresh"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:  # JSON knows no tuples.
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _create_manager(directory: Path, read_only: bool) -> ocp.CheckpointManager:
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True)
    else:
        # A killed save leaves its temporary folder; the next start removes it.
        options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(directory, options=options)


@contextmanager
def _clear_errors(where: Path | str) -> Iterator[None]:
    """Turns what disks and damaged files do into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
            raise UserError(
                f"no space left on the disk while saving under {where}: free some and run the "
                "same command again, it continues from the last complete checkpoint"
            ) from error
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in text:
            raise UserError(f"{where} may not be read or written: check its permissions") from error
        line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise UserError(f"the checkpoint {where} cannot be used: {line[:300]}") from error
