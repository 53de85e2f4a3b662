"""Atomic writes, locks, JSON lines, and the folders that are shipped beside the package."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agenet.errors import UserError

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent
# Holds configs/ and data_prep/: a folder of an installed wheel, or the root of a clone.
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent


def make_shipped_importable() -> None:
    """Lets `from configs import default` and `import data_prep` work wherever agenet is called."""
    if str(SHIPPED) not in sys.path:
        sys.path.insert(0, str(SHIPPED))


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file at once: a reader sees the old content or the new, never a part."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool) -> None:
    """Raises `UserError` if a file cannot be made there, or would take the place of another."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder, make it first")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: name another file, or add --overwrite")


@contextmanager
def writing_to(workdir: Path) -> Iterator[None]:
    """Turns what a disk says of a work directory into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written to ({error.strerror}): name another one"
        ) from error


@contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a work directory in the block, however this one ends.

    Raises:
        UserError: one is there already.
    """
    lock = FileLock(workdir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"--workdir {workdir} is in use by another process: wait for its end, or name another"
        ) from error
    except (OSError, NotImplementedError) as error:  # Some shared file systems have no locks.
        log.debug("%s is not locked: %s", workdir, error)
    try:
        yield
    finally:
        lock.release()


def read_json_lines(path: Path) -> list[dict[str, float]]:
    """The rows of a file that `JsonLinesWriter` wrote, without a last one that was cut off."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # Killed while writing.
            break
    return rows
