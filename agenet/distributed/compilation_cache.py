"""Keeps compiled programs on disk, so that the next start need not compile them again."""

import contextlib
import errno
import logging
import os
import platform
import zlib
from pathlib import Path

import jax
from filelock import FileLock, Timeout

from agenet.weights.cache import cache_dir

log = logging.getLogger(__name__)

# A training step of a large network takes a few MB. JAX removes the least recently used programs.
_MAX_BYTES = 2_000_000_000
# Programs that compile faster than this, in seconds, take as long to read.
_MIN_COMPILE_SECONDS = 0.3


def enable_compilation_cache() -> None:
    """Has JAX use $AGENET_CACHE/compiled as its compilation cache, unless it has one already.

    If that folder cannot be written, this logs a line, and programs are compiled anew. The same for
    a user id without an entry in the list of users, as in some containers: JAX looks up the owner
    of its files, and would warn for each program.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    if not _user_has_entry():
        log.info("compilation cache disabled: JAX's needs a user with an entry in /etc/passwd")
        return
    folder = cache_dir() / "compiled" / _processor_name()
    try:
        _make_private(folder.parent)
        _make_private(folder)
        _remove_unfinished(folder)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        log.info("compilation cache disabled: %s cannot be written to (%s)", folder, reason)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def _user_has_entry() -> bool:
    try:
        import pwd

        pwd.getpwuid(os.geteuid())
    except ImportError:  # Windows, where JAX does not look it up.
        return True
    except KeyError:
        return False
    return True


def _make_private(folder: Path) -> None:
    """Creates a folder for this user only: whoever can write here can run code as this user."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    folder.chmod(0o700)


def _processor_name() -> str:
    """Identifies the processor's instruction set, which machines with one home may not share."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next(line for line in lines if line.lower().startswith(("flags", "features")))
        return f"{platform.machine()}-{zlib.crc32(known.encode()):08x}"
    return platform.machine()


def _remove_unfinished(folder: Path) -> None:
    """Removes files of processes that were killed while they wrote.

    JAX writes the time of last use last, and cannot evict anything where one is missing.
    """
    try:
        with FileLock(folder / ".lockfile", timeout=1):  # JAX's own lock.
            for path in folder.glob("*-cache"):
                if not path.with_name(f"{path.name.removesuffix('-cache')}-atime").exists():
                    path.unlink()
    except Timeout:  # Another process is writing.
        pass
