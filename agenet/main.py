"""Trains and tests the network that a config file describes: `python -m agenet.main`.

python -m agenet.main --config=quickstart --workdir=runs/quickstart
    [--config.any.field=value ...] [--dry_run] [--profile] [--processes=auto]

The config is the name of a shipped config or a path, with an argument after a colon if it takes
one. The same command again resumes a run that was interrupted.
"""

# absl shows the docstring as help. No other module knows `ConfigDict`: they get an
# `agenet.runs.config.RunConfig`.

import itertools
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from agenet.errors import UserError, did_you_mean, one_line_errors, require_packages
from agenet.files import SHIPPED, is_address, make_shipped_importable
from agenet.places.stores import check_writable, parse_address
from agenet.runs.allocation import use_large_pages

if TYPE_CHECKING:
    from agenet.runs.config import RunConfig

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The config: a name such as quickstart, or a path. --config.FIELD=VALUE changes a field.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or an address such as s3://bucket/runs/a; a run that is already there is "
    "resumed.",
)
# A flag that may stand alone, as absl's boolean flags do, or take a value.
_PROFILE: flags.FlagHolder[str] = flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        flags.ArgumentSerializer(),
        "profile",
        "false",
        "Trace some steps into WORKDIR/profile, for TensorBoard: five, after the first five of "
        "this start, or as --profile=FIRST:COUNT says.",
        boolean=True,
    )
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Check config, data set, initial weights, devices and memory; train and write nothing.",
)
_PROCESSES = flags.DEFINE_string(
    "processes",
    "",
    'Make this process one of several that train together: "auto" if SLURM, a Cloud TPU, '
    "Kubernetes or Open MPI started them, else HOST:PORT,COUNT,INDEX with the address of process "
    "0. The work directory must be on a file system that all of them share.",
)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line, whose first element is the program.

    Raises:
        UserError: for a mistake in it, or in the config file that it names.
    """
    make_shipped_importable()
    try:
        rest = flags.FLAGS(_find_configs(arguments))
    except flags.Error as error:
        raise UserError(f"{_last_line(error)}, see --help") from error
    except UserError:
        raise
    except Exception as error:  # The flags of a config raise whatever the file or fields raise.
        raise _config_error(arguments) or UserError(_last_line(error)) from error
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("--config=FILE and --workdir=DIR are needed, see --help")
    if is_address(_WORKDIR.value):
        check_writable(parse_address(_WORKDIR.value))
    if len(rest) > 1:
        raise UserError(f"{rest[1]} is not a flag: fields are set with --config.FIELD=VALUE")
    # A file that does not load leaves something else in its place.
    if not isinstance(_CONFIG.value, ConfigDict):
        raise _config_error(arguments) or UserError("--config does not return a ConfigDict")
    return rest


def read_config(arguments: Sequence[str]) -> "RunConfig":
    """The configuration that `--config=NAME --config.FIELD=VALUE ...` stand for.

    Raises:
        UserError: there is no such file or field, or a value is wrong.
    """
    from agenet.runs.config import parse_config

    make_shipped_importable()
    argv = ["", *_find_configs(list(arguments))]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        if isinstance(holder.value, ConfigDict):
            return parse_config(holder.value.to_dict())
        error: Exception = UserError("--config does not return a ConfigDict")
    except UserError:
        raise
    except Exception as raised:  # As in `parse_flags`.
        error = raised
    raise _config_error(argv) or UserError(_last_line(error)) from error


def find_config_file(name: str) -> str:
    """The path of a config file, still followed by its argument after a colon.

    Args:
        name: a path; or the path, with or without ".py", of a file below the shipped `configs`.

    Raises:
        UserError: there is no such file.
    """
    path, *argument = name.split(":", 1)
    shipped = SHIPPED / "configs"
    for candidate in (Path(path), shipped / f"{path.removesuffix('.py')}.py", SHIPPED / path):
        if candidate.is_file():
            return ":".join([str(candidate), *argument])
    beside = sorted(map(str, Path(path).parent.glob("*.py"))) if path.endswith(".py") else []
    known = beside or sorted(file.stem for file in shipped.glob("*.py"))
    raise UserError(f"there is no config file {path}{did_you_mean(path, known)}")


def _find_configs(arguments: list[str]) -> list[str]:
    """The arguments with the paths of config files in place of their names."""
    found = list(arguments)
    for number, argument in enumerate(found):
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") != "config" or not flag.startswith("-"):
            continue
        if equals:
            found[number] = f"{flag}={find_config_file(value)}"
        elif number + 1 < len(found):
            found[number + 1] = find_config_file(found[number + 1])
    return found


def _config_error(arguments: Sequence[str]) -> UserError | None:
    """What is wrong with the config file or with the names of the fields that are to change."""
    given = [argument.lstrip("-") for argument in _find_configs(list(arguments))]
    values = [value for value in given if value.startswith("config=")]
    after = [next_ for flag, next_ in itertools.pairwise(given) if flag == "config"]
    name = [*(value.partition("=")[2] for value in values), *after, ""][0]
    path, *argument = name.split(":", 1)
    try:
        known = list(_fields(runpy.run_path(path)["get_config"](*argument)))
    except Exception as error:
        # Of a locked config, with all of its fields behind it.
        if key := re.match(r"'?Key \"([\w.]+)\" does not exist", _last_line(error)):
            return UserError(f"config file {path}: unknown config field {key[1]}{_now(key[1])}")
        return UserError(f"config file {path}: {type(error).__name__}: {_last_line(error)}")
    for flag in given:
        field = flag.partition("=")[0].removeprefix("config.")
        if flag.startswith("config.") and field not in known:
            nearest = _now(field) or did_you_mean(field, known)
            return UserError(f"unknown config field {field}{nearest}")
    return None


def _now(field: str) -> str:
    """A part of a message that says what a field of earlier versions is now."""
    from agenet.runs.identity import RENAMED_FIELDS

    return f": it is now {RENAMED_FIELDS[field]}" if field in RENAMED_FIELDS else ""


def _fields(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a config."""
    names: list[str] = []
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            names += _fields(value, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _last_line(error: Exception) -> str:
    # A ConfigDict puts its advice last.
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def main(_: list[str]) -> None:
    """Launches the run that the flags describe."""
    # Imported here, not above: help and mistyped flags must not wait for JAX.
    require_packages("train", "training", "array_record", "clu", "jinja2", "matplotlib")
    from agenet.distributed.processes import distributed_session
    from agenet.distributed.profiler import parse_window
    from agenet.places.working import look_at_workdir, open_workdir
    from agenet.runs.config import parse_config
    from agenet.runs.dry_run import dry_run
    from agenet.runs.launch import launch

    command = shlex.join(["python", "-m", "agenet.main", *sys.argv[1:]])
    config = parse_config(_CONFIG.value.to_dict())
    workdir = _WORKDIR.value or ""
    window = parse_window(_PROFILE.value)
    if _PROCESSES.value and is_address(workdir):
        raise UserError(
            "--processes needs a work directory that all processes share: name a folder on a "
            "shared file system as --workdir"
        )
    with distributed_session(_PROCESSES.value or ""):
        if _DRY_RUN.value:
            dry_run(config, look_at_workdir(workdir), command)
        else:
            with open_workdir(workdir) as place:
                launch(config, place.folder, command, window, place.send)


if __name__ == "__main__":
    use_large_pages()
    with one_line_errors():
        app.run(main, flags_parser=parse_flags)
