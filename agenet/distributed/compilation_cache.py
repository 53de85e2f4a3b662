"""Programs that XLA has compiled, kept on disk for the next start."""

import contextlib
import logging
import platform
import zlib
from pathlib import Path

import jax
from filelock import FileLock, Timeout

from agenet.weights.cache import cache_dir

log = logging.getLogger(__name__)

# A step of a large network takes some MB; what was used longest ago goes first.
_MAX_BYTES = 2_000_000_000
_SHORTEST = 0.3  # seconds of compilation; below, reading takes as long


def keep_compiled() -> None:
    """Has JAX keep what it compiles in $AGENET_CACHE/compiled, unless it has a place already.

    Where that cannot be, a line is logged, and all is compiled anew as it would be without.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = cache_dir() / "compiled" / _processor()
    try:
        # Whoever can write here can have this user run anything: nobody else.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        log.info("what is compiled is not kept: %s cannot be written to (%s)", folder, reason)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)


def _processor() -> str:
    """Names this kind of processor: code for one may crash another that has the same home."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next(line for line in lines if line.lower().startswith(("flags", "features")))
        return f"{platform.machine()}-{zlib.crc32(known.encode()):08x}"
    return platform.machine()


def _remove_unfinished(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote.

    JAX writes the time of use last, and can make no room any more where one is missing.
    """
    try:
        with FileLock(folder / ".lockfile", timeout=1):  # JAX's own.
            for path in folder.glob("*-cache"):
                if not path.with_name(f"{path.name.removesuffix('-cache')}-atime").exists():
                    path.unlink()
    except Timeout:  # Another process writes: it is alive.
        pass
