"""Trains and tests what a config file describes.

python -m agenet.main --config=configs/quickstart.py --workdir=runs/quickstart
    [--config.any.field=value ...] [--dry_run] [--profile] [--processes=auto]

The same command again continues a run that was interrupted.
"""

import difflib
import logging
import os
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from agenet.errors import UserError, one_line_errors
from agenet.files import make_shipped_importable

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file; --config.FIELD=VALUE changes one of its fields."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; continued if it is there.")
# It may stand alone, as flags do that are yes or no to absl, or take a value.
_PROFILE: flags.FlagHolder[str] = flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        flags.ArgumentSerializer(),
        "profile",
        "false",
        "Trace some steps into WORKDIR/profile, for TensorBoard: five, after the first five that a "
        "start makes, or as --profile=FIRST:COUNT says.",
        boolean=True,
    )
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Check config, data set, initial weights, devices and memory; train nothing, write nothing.",
)

_PROCESSES = flags.DEFINE_string(
    "processes",
    "",
    'Make this process one of several that train together: "auto" where SLURM, a Cloud TPU, '
    "Kubernetes or Open MPI started them, else HOST:PORT,COUNT,INDEX with the address of process "
    "0. The work directory must be on a file system that all share.",
)

LARGE_PAGES = "glibc.malloc.hugetlb=1"


def use_large_pages() -> None:
    """Starts this process anew, once, so that what it allocates lies in large pages of memory.

    XLA's CPU backend frees what a training step computed and takes it anew for the next; in small
    pages the system spends more time on that than many a network does. glibc reads its settings
    before a program starts. A setting of the user's stays.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = LARGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line, its program first.

    Raises:
        UserError: for a mistake in it, or in the config file that it names.
    """
    # Config files import each other from the checkout's root, wherever the command is typed.
    make_shipped_importable()
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(f"{_last_line(error)}, see --help") from error
    except Exception as error:  # The flags of a config raise as the file or the fields do.
        raise config_error(arguments) or UserError(_last_line(error)) from error
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("--config=FILE and --workdir=DIR are needed, see --help")
    if len(rest) > 1:
        raise UserError(f"{rest[1]} is not a flag: fields are set with --config.FIELD=VALUE")
    # A file that does not load leaves something else in its place.
    if not isinstance(_CONFIG.value, ConfigDict):
        raise config_error(arguments) or UserError("--config is not the file of a ConfigDict")
    return rest


def config_error(arguments: list[str]) -> UserError | None:
    """What is wrong with the config file or with the names of the fields that are to change."""
    path = _config_path(arguments)
    if not Path(path).is_file():
        known = sorted(str(other) for other in Path(path).parent.glob("*.py"))
        return UserError(f"there is no config file {path}{_nearest(path, known)}")
    try:
        known = [name for name, _ in config_fields(runpy.run_path(path)["get_config"]())]
    except Exception as error:
        return UserError(f"config file {path}: {type(error).__name__}: {_last_line(error)}")
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        if argument.lstrip("-").startswith("config.") and name not in known:
            return UserError(f"unknown config field {name}{_nearest(name, known)}")
    return None


def _config_path(arguments: list[str]) -> str:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            # What follows a colon is an argument of its get_config.
            return (value or following).partition(":")[0]
    return ""


def config_fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and values of all leaves of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from config_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _nearest(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f": did you mean {nearest[0]}?" if nearest else ""


def _last_line(error: Exception) -> str:
    # A ConfigDict puts its advice last.
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def main(_: list[str]) -> None:
    """Launches the run that the flags describe."""
    # Imported here, not above: help and mistyped flags must not wait for JAX.
    from agenet.distributed.processes import distributed_session
    from agenet.distributed.profiler import parse_window
    from agenet.runs.dry_run import dry_run
    from agenet.runs.launch import launch

    # Which tells of every kind of device that this machine has not.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    command = shlex.join(["python", "-m", "agenet.main", *sys.argv[1:]])
    workdir = Path(_WORKDIR.value or "")
    window = parse_window(_PROFILE.value)
    with distributed_session(_PROCESSES.value or ""):
        if _DRY_RUN.value:
            dry_run(_CONFIG.value, workdir, command)
        else:
            launch(_CONFIG.value, workdir, command, window)


if __name__ == "__main__":
    use_large_pages()
    with one_line_errors():
        app.run(main, flags_parser=parse_flags)
