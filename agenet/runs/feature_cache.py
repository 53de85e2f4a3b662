"""A cache on disk for the features of a frozen backbone, shared by all runs.

A view of the data, such as an epoch of training with its augmentation or the evaluation, has a
folder, whose name is a hash of everything that the features depend on. It contains safetensors
files, each with a checksum.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from agenet.errors import UserError
from agenet.files import write_file

log = logging.getLogger(__name__)

# Rows in a file, the most that an interruption can cost: seconds on an accelerator, minutes for a
# large network on a CPU.
PART = 1024


class View:
    """The features float32 [N, D] of N rows of a data set, computed if they are not on disk.

    Several processes may read the same view at once: one of them computes a part while the others
    wait for it.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        source: Mapping[str, Any],
        rows: np.ndarray,
        width: int,
        compute: Callable[[np.ndarray], np.ndarray],
    ):
        """Does not access the disk.

        Args:
            root: the folder of all views.
            name: first part of the folder's name.
            source: everything that the features of a row depend on, JSON-serialisable.
            rows: int [N], each once, in the order in which they are read.
            width: D.
            compute: returns the features [K, D] of K of the rows.
        """
        self.rows = rows
        source = {**source, "rows": hashlib.sha256(rows.astype("<i4").tobytes()).hexdigest()}
        self._source = json.dumps(source, sort_keys=True)
        self.folder = root / f"{name}-{hashlib.sha256(self._source.encode()).hexdigest()[:16]}"
        self._width = width
        self._compute = compute
        # At least two: the rows of a batch may be in two parts.
        self._part = lru_cache(4)(self._read_or_compute)

    @property
    def nbytes(self) -> int:
        """Size of the complete view."""
        return len(self.rows) * self._width * 4

    def holds(self, count: int) -> bool:
        """Whether the features of the first `count` rows are on disk."""
        return all(self._path(number).is_file() for number in range(-(-count // PART)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features float32 [K, D] of K of the view's rows.

        Raises:
            UserError: computed features cannot be written.
        """
        numbers, offsets = np.divmod(self._positions[rows], PART)
        features = np.empty((len(rows), self._width), np.float32)
        for number in np.unique(numbers):
            chosen = numbers == number
            features[chosen] = self._part(int(number))[offsets[chosen]]
        return features

    def free_memory(self) -> None:
        """Frees the memory of what was read; it stays on disk."""
        self._part.cache_clear()

    @cached_property
    def _positions(self) -> np.ndarray:
        positions = np.full(self.rows.max() + 1, -1)
        positions[self.rows] = np.arange(len(self.rows))
        return positions

    def _path(self, number: int) -> Path:
        return self.folder / f"part_{number:05d}.safetensors"

    def _read_or_compute(self, number: int) -> np.ndarray:
        path, rows = self._path(number), self.rows[number * PART : (number + 1) * PART]
        if (features := self._read(path, len(rows))) is not None:
            return features
        with self._lock():
            # Another process may have written it in the meantime.
            if not path.is_file() or (features := self._read(path, len(rows))) is None:
                features = np.ascontiguousarray(self._compute(rows), np.float32)
                self._write(path, features)
        return features

    def _read(self, path: Path, count: int) -> np.ndarray | None:
        """The content of a file; None, with a warning, if it is not usable."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                metadata, features = file.metadata() or {}, file.get_tensor("features")
            if (
                metadata.get("source") == self._source
                and features.shape == (count, self._width)
                and features.dtype == np.float32
                and metadata.get("sha256") == hashlib.sha256(features.tobytes()).hexdigest()
            ):
                return features
        except (OSError, SafetensorError, AttributeError, TypeError):  # or of another data type
            pass
        log.warning("%s is damaged or belongs to something else: computed again", path)
        with _one_line_errors(self.folder):
            path.unlink(missing_ok=True)
        return None

    def _lock(self) -> AbstractContextManager[Any]:
        """A lock that one process holds at a time."""
        with _one_line_errors(self.folder):
            return FileLock(self.folder / ".lock").acquire()

    def _write(self, path: Path, features: np.ndarray) -> None:
        checksum = hashlib.sha256(features.tobytes()).hexdigest()
        metadata = {"source": self._source, "sha256": checksum}
        with _one_line_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)  # It may have been removed.
            for left in self.folder.glob(".part*"):  # from a process that was killed
                left.unlink(missing_ok=True)
            write_file(path, safetensors.numpy.save({"features": features}, metadata))


@contextlib.contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the disk into a `UserError` of one line."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"features cannot be written to {folder}: {reason}; free some space, set AGENET_CACHE "
            "to another folder, or compute them for every step with --config.feature_cache=off"
        ) from error


def find_obstacle(root: Path, views: Sequence[View], limit: int) -> str:
    """Why the views cannot be cached below `root` in `limit` bytes; empty if they can.

    Other views there are removed, the least recently used first, until everything fits; except
    those that another process is writing to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
        needed, own = sum(view.nbytes for view in views), {view.folder for view in views}
        if needed > limit:
            return (
                f"they take {_gigabytes(needed)}, more than feature_cache_bytes {_gigabytes(limit)}"
            )
        sizes = {folder: _size(folder) for folder in root.iterdir()}
        lacking = needed - sum(sizes[folder] for folder in own & sizes.keys())
        others = sorted(sizes.keys() - own, key=lambda folder: folder.stat().st_mtime)
        excess = needed + sum(sizes[folder] for folder in others) - limit
        for folder in others:
            if excess > 0 and _remove(folder):
                log.info("features: removed %s, to stay within feature_cache_bytes", folder.name)
                excess -= sizes[folder]
        free = shutil.disk_usage(root).free
        if lacking > free:
            return f"they take {_gigabytes(lacking)} and {root} has {_gigabytes(free)} free"
        for folder in own & sizes.keys():
            os.utime(folder)
    except OSError as error:
        return f"{root} cannot be used ({error.strerror})"
    return ""


def _remove(folder: Path) -> bool:
    """Removes a view unless another process is writing to it; returns whether it did."""
    try:
        with FileLock(folder / ".lock", blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, NotImplementedError):  # It is locked, or must not be changed.
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB"


def hash_weights(variables: Any) -> str:
    """A hash that changes with every name, shape and bit of the arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
