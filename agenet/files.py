"""Atomic writes, hashes, locks and JSON files, and where configs and builders are installed."""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedIOBase, FileIO, RawIOBase
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


def is_address(path: str | Path) -> bool:
    """Whether this is an address in a store, such as s3://bucket/name, and not a path.

    >>> is_address("s3://bucket/name"), is_address(Path("hf://user/name")), is_address("C:/name")
    (True, True, False)
    """
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)))  # A `Path` keeps one slash.


def expand_home(path: str | Path) -> Path:
    """The path with the home folder in place of "~".

    Raises:
        UserError: there is no home folder, or it is an address.
    """
    if is_address(path):
        raise not_here(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no home folder: set HOME, or name a path") from error


def not_here(address: str | Path) -> UserError:
    """The error for an address where only a path is possible."""
    shown = re.sub(":/+", "://", str(address))
    return UserError(f"{shown}: here only a path on this machine is possible: name one")


def temporary_path(path: Path) -> Path:
    """A path beside a file for a new version of it, to be created exclusively.

    Nobody can guess it, so that no link is followed and no other process is met.
    """
    # Only a part of the name: with all of it this one could be too long.
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see either the old content or the new.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    unfinished = temporary_path(path)
    with _errors_named(path):
        try:
            with unfinished.open("xb") as file:
                file.write(content)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """A path for libraries that write files by name; it replaces `path` if the block succeeds.

    It has the name of `path` and lies in a new folder beside it, which only this user may enter
    and which is removed in any case.

    Raises:
        OSError: the folder cannot be created, or the block wrote no file; `filename` is `path`.
    """
    with _errors_named(path):
        folder = tempfile.TemporaryDirectory(
            prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
        )
    with folder as name:
        yield Path(name, path.name)
        with _errors_named(path):
            os.replace(Path(name, path.name), path)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Reports errors for `path`, not for its temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # All that it says is its text.
            raise
        # By its number it becomes the same subclass again, such as FileNotFoundError.
        raise OSError(error.errno, error.strerror, str(path)) from error


class LineFile:
    """A text file that is written line by line, and created or replaced by its first line.

    A command that ends before it has a result thus leaves an existing file as it is. Each line is
    in the file once it is written, so that a killed process loses none, and a line for which the
    disk has no room is not left in part.

    Args:
        path: the file.
        overwrite: whether an existing file is replaced.

    Raises:
        UserError: the path is a folder, its folder is missing, the file exists, or, when closing,
            another program has removed or replaced it.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        check_output(path, overwrite)
        self._path, self._overwrite = path, overwrite
        self._file: FileIO | None = None
        self._size = 0

    def write(self, text: str) -> int:
        """Adds text that ends with a newline; returns its length."""
        line = text.encode(errors="backslashreplace")
        with _errors_named(self._path):
            if self._file is None:
                self._file = self._replace(line) if self._overwrite else self._create(line)
            else:
                self._append(self._file, line)
        self._size += len(line)
        return len(text)

    def _append(self, file: FileIO, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
        except BaseException:
            file.truncate(self._size)
            raise

    def flush(self) -> None:
        """Does nothing, because nothing is held back."""

    def _create(self, line: bytes) -> FileIO:
        try:
            file = FileIO(self._path, "x+")  # Exclusive: follows no link.
        except FileExistsError as error:  # It did not when the command started.
            raise output_exists(self._path) from error
        try:
            self._append(file, line)
        except BaseException:
            file.close()
            self._path.unlink(missing_ok=True)
            raise
        return file

    def _replace(self, line: bytes) -> FileIO:
        """Puts a file with the first line in the place of an older one, which a kill leaves."""
        write_file(self._path, line)
        file = FileIO(self._path, "r+")
        file.seek(0, os.SEEK_END)
        return file

    def close(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            self._file = None
            save_if_replaced(file, self._path)

    def __enter__(self) -> "LineFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def save_if_replaced(file: RawIOBase | BufferedIOBase, path: Path) -> None:
    """Copies an open file to another name if `path` is no longer its own.

    Raises:
        UserError: another program has removed or replaced it; the message says where the copy is.
    """
    with suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return
    saved = path.with_stem(f"{path.stem[:40]}-{secrets.token_hex(4)}")
    file.seek(0)
    with saved.open("xb") as copy:
        shutil.copyfileobj(file, copy)
    raise UserError(f"{path} was removed or replaced by another program: its content is in {saved}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a file atomically by indented JSON."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


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
    if is_address(path):
        raise not_here(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder, create it first")
    if path.exists() and not path.is_file():  # A device or a pipe, which would be replaced.
        raise UserError(f"{path} is not a file: name one")
    if path.exists() and not overwrite:
        raise output_exists(path)


def output_exists(path: Path) -> UserError:
    """The error for an output that would replace a file."""
    return UserError(f"{path} exists: name another file, or add --overwrite")


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
def exclusive_lock(workdir: Path, name: str = "") -> Iterator[None]:
    """Locks a work directory against other processes; the lock ends with this process.

    Args:
        workdir: the folder.
        name: what the user calls it, by default the --workdir of its path.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(workdir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        name = name or f"--workdir {workdir}"
        raise UserError(
            f"{name} is in use by another process: wait until it ends, or name another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # Some network file systems have no locks.
        log.debug("%s is not locked: %s", workdir, error)
    try:
        yield
    finally:
        lock.release()
