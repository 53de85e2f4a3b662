"""Where the workers of a search share their study: a journal file or a database."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agenet.errors import UserError, one_line

_LARGEST_JOURNAL = 1 << 28  # bytes


def import_optuna() -> Any:
    """Optuna, which says nothing of its own work."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def show_storage(storage: str) -> str:
    """A storage without the password that its URL may contain."""
    if "://" not in storage:
        return storage
    scheme, _, rest = storage.partition("://")
    login, at, place = rest.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}{':***' if ':' in login else ''}{at}{place}"


@contextlib.contextmanager
def storage_errors_explained(storage: str) -> Iterator[None]:
    """Turns what Optuna raises for a storage that fails into a `UserError` of one line."""
    optuna = import_optuna()
    try:
        yield
    except (optuna.exceptions.OptunaError, json.JSONDecodeError) as error:
        raise UserError(
            f"--storage {show_storage(storage)} failed ({describe(error)}): run the same command "
            "again when it works"
        ) from error


@contextlib.contextmanager
def open_storage(storage: str) -> Iterator[Any]:
    """Opens a database by its URL, or a journal file by its path; closes it at the end."""
    if "://" in storage:
        database = _open_database(storage)
        try:
            yield database
        finally:
            database.remove_session()
            database.engine.dispose()
        return
    from optuna.storages import JournalStorage

    path = Path(storage)
    if path.exists():
        _check_journal(path)
    yield JournalStorage(_journal(path))


def _open_database(storage: str) -> Any:
    from optuna.storages import RDBStorage

    # Workers wait for each other's transactions.
    options = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
    try:
        return RDBStorage(storage, engine_kwargs=options)
    except Exception as error:
        if "already exists" not in str(error):
            raise
        return RDBStorage(storage, engine_kwargs=options)  # Another worker has created the tables.


def _check_journal(path: Path) -> None:
    """Raises `UserError` for a file that is no journal, so that nothing is added to it."""
    if not path.is_file() or path.stat().st_size > _LARGEST_JOURNAL:
        raise UserError(f"--storage {path} is not a file, or too large: name another one")
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    try:
        is_journal = not first or "op_code" in dict(json.loads(first))
    except (ValueError, TypeError, RecursionError):
        is_journal = False
    if not is_journal:
        raise UserError(f"--storage {path} is not the journal of a study: name another file")


def _journal(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    lock = JournalFileOpenLock(str(path))

    class Backend(JournalFileBackend):
        """Cuts off a last line that a full disk, or the end of a machine, left incomplete."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lock.acquire()
            try:
                _cut_incomplete_line(path)
            finally:
                lock.release()
            super().append_logs(logs)

    return Backend(str(path), lock)


def _cut_incomplete_line(path: Path) -> None:
    """Shortens a file to its last complete line."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        kept = end
        while kept:
            start = max(0, kept - 4096)
            file.seek(start)
            newline = file.read(kept - start).rfind(b"\n")
            if newline >= 0:
                kept = start + newline + 1
                break
            kept = start
        if kept < end:
            file.truncate(kept)


def describe(error: Exception) -> str:
    """The first line of an error, without the advice of libraries."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {one_line(lines[0])[:200]}" if lines else type(error).__name__
