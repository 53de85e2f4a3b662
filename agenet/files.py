"""Atomic writes, hashes, locks and JSON files, and where configs and builders are installed."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agenet.errors import UserError

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent
# The folder that holds configs/ and data_prep/: part of an installed wheel, or the root of a clone.
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent


def make_shipped_importable() -> None:
    """Makes `from configs import default` and `import data_prep` work from any folder."""
    if str(SHIPPED) not in sys.path:
        sys.path.insert(0, str(SHIPPED))


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see either the old content or the new."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a file atomically by indented JSON."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line; [] if there is no file.

    A last line that a killed process left incomplete is dropped.
    """
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file; `algorithm` is a name that hashlib knows."""
    # Keras publishes MD5 digests. They guard against damage only; saying so lets MD5 work on
    # systems whose policy forbids it for security.
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


def hash_text(text: str) -> str:
    """The hexadecimal SHA-256 digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_output(path: Path, overwrite: bool) -> None:
    """Checks that a command may write a file.

    Raises:
        UserError: the path is a folder, its folder is missing, or the file exists already.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder, create it first")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: name another file, or add --overwrite")


@contextmanager
def write_errors_explained(workdir: Path) -> Iterator[None]:
    """Turns an `OSError` from writing to a work directory into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written to ({error.strerror}): name another one"
        ) from error


@contextmanager
def exclusive_lock(workdir: Path) -> Iterator[None]:
    """Locks a work directory against other processes; the lock ends with this process.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(workdir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"--workdir {workdir} is in use by another process: wait until it ends, or name "
            "another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # Some network file systems have no locks.
        log.debug("%s is not locked: %s", workdir, error)
    try:
        yield
    finally:
        lock.release()
