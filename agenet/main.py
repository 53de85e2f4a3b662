"""Trains and tests what a config file describes.

python -m agenet.main --config=configs/quickstart.py --workdir=runs/quickstart
    [--config.any.field=value ...]

The same command again continues a run that was interrupted.
"""

import difflib
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from agenet.errors import UserError, one_line_errors

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, a file such as configs/quickstart.py; --config.FIELD=VALUE "
    "changes one of its fields.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; continued if it is there.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it raises `UserError`."""
    # Config files import each other from the checkout's root, wherever the command is typed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None or _WORKDIR.value is None:
            raise UserError("--config=FILE and --workdir=DIR are needed, see --help")
        _CONFIG.value.lock()  # Raises whatever went wrong while the file was loaded.
    except (KeyError, AttributeError) as error:
        raise _unknown_field(argv) from error
    except (flags.Error, OSError, ValueError, TypeError, ImportError, SyntaxError) as error:
        raise UserError(_last_line(str(error))) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]} is not a flag: fields are set as --config.FIELD=VALUE")
    return rest


def main(_: list[str]) -> None:
    # Imported here, not above: help and mistyped flags must not wait for JAX.
    from agenet.launch import launch

    # Orbax tells of every file that it touches.
    logging.set_verbosity(logging.WARNING)
    command = shlex.join(["python", "-m", "agenet.main", *sys.argv[1:]])
    launch(_CONFIG.value, Path(_WORKDIR.value), command)


def _unknown_field(argv: list[str]) -> UserError:
    path = next(arg.partition("=")[2] for arg in argv if arg.startswith("--config="))
    known = list(config_fields(runpy.run_path(path)["get_config"]()))
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        if argument.startswith("--config.") and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            return UserError(f"unknown config field {name}: did you mean {nearest}?")
    return UserError("the config file does not define a field that it changes: see its traceback")


def config_fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all leaves of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from config_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _last_line(text: str) -> str:
    return [line for line in text.strip().splitlines() if line.strip()][-1].strip()


if __name__ == "__main__":
    with one_line_errors():
        app.run(main, flags_parser=parse_flags)
