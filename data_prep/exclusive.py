"""Lets one process at a time prepare a data set, and repairs what killed ones left behind."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from agenet.errors import UserError

# Beginnings of the names of folders beside prepared versions: TFDS's own for one that is being
# written, and that of one to be replaced.
UNFINISHED = "incomplete."
REPLACED = "replaced."
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of some network file systems
_LOCK = ".preparing.lock"  # removed at the end; what a killed process leaves locks nobody out


@contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    """Waits until no other process prepares a data set in a folder, and keeps others out.

    First it removes or restores what killed processes left in the folder. The folder is created if
    it is missing, and removed with those above it if the block fails and nothing is in them.

    Args:
        folder: of the versions of a data set, such as "data/adience/faces".

    Raises:
        UserError: the folder cannot be created or written to.
    """
    lock = FileLock(folder / _LOCK)
    waiting = False
    try:
        above = next(parent for parent in folder.parents if parent.exists())
        while not lock.is_locked:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=1 if waiting else 0)
            except Timeout:
                if not waiting:
                    print(f"another process prepares {folder}: waiting until it ends", flush=True)
                waiting = True
            except FileNotFoundError:
                pass  # The other process failed and removed the folder again.
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                    raise
                break
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): name another folder with --data_dir"
        ) from None
    try:
        if lock.is_locked:
            repair(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / _LOCK).unlink()
        lock.release()
        with suppress(OSError):  # It holds something.
            for each in (folder, *folder.parents):
                if each == above:
                    break
                each.rmdir()


def needs_repair(folder: Path) -> bool:
    """Whether a process is preparing in a folder, or a killed one left something there."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(name.startswith((UNFINISHED, REPLACED, _LOCK)) for name in names)


def repair(folder: Path) -> None:
    """Removes unfinished versions in a folder; restores a set-aside one whose successor is missing.

    Nothing may be preparing a data set there.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith(UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(REPLACED):
            version = folder / path.name.removeprefix(REPLACED)
            if not version.exists():
                path.rename(version)
                print(f"{version} is restored: replacing it was interrupted")
            elif (version / "dataset_info.json").exists():
                shutil.rmtree(path, ignore_errors=True)


def replace(version: Path, new: Path) -> None:
    """Puts a folder in the place of another one, which it keeps until the new one is there."""
    old = version.with_name(REPLACED + version.name)
    if version.exists():
        version.rename(old)
    new.rename(version)
    shutil.rmtree(old, ignore_errors=True)
