"""Trains and tests what a config file describes.

python -m agenet.main --config=configs/quickstart.py --workdir=runs/quickstart
    [--config.any.field=value ...]

The same command again continues a run that was interrupted.
"""

import argparse
import ast
import difflib
import runpy
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from agenet.errors import ArgumentParser, UserError, one_line_errors


def main(arguments: list[str]) -> None:
    """Parses the command line, then launches the run.

    Raises:
        UserError: for any mistake in the command line or the config file.
    """
    config, workdir = parse_arguments(arguments)
    # Imported here, not above: help and mistyped flags must not wait for JAX.
    from agenet.launch import launch

    launch(config, workdir, shlex.join(["python", "-m", "agenet.main", *arguments]))


def parse_arguments(arguments: list[str]) -> tuple[ConfigDict, Path]:
    """The config, with the fields that the command line changes, and the work directory."""
    parser = ArgumentParser(
        usage="python -m agenet.main --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]",
        description="Trains and tests what a config file describes. The same command again "
        "continues a run that was interrupted.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE", help="the experiment; --help then lists it")
    parser.add_argument(
        "--workdir", metavar="DIR", help="where the run is kept; continued if there"
    )
    path = parser.parse_known_args(arguments)[0].config
    config = load_config(path) if path else ConfigDict()
    options = {f"--config.{name}": value for name, value in config_fields(config)}
    group = parser.add_argument_group("fields of the config, and what it says")
    for option, value in options.items():
        group.add_argument(
            option,
            type=_PARSERS.get(type(value), ast.literal_eval),
            default=value,
            metavar=type(value).__name__.upper(),
            help="%(default)s",
        )
    parser.add_argument("--help", "-h", action="help", help="show this and exit")
    args, rest = parser.parse_known_args(arguments)
    if not args.config or not args.workdir:
        raise UserError("--config=FILE and --workdir=DIR are needed, see --help")
    if rest:
        name = rest[0].partition("=")[0]
        nearest = difflib.get_close_matches(name, [*options, "--config", "--workdir"], n=1)
        hint = f": did you mean {nearest[0]}?" if nearest else ", see --help"
        raise UserError(f"unknown argument {name}{hint}")
    config.update_from_flattened_dict(vars(args), strip_prefix="config.")
    return config, Path(args.workdir)


def load_config(path: str) -> ConfigDict:
    """What `get_config()` of a config file returns.

    Raises:
        UserError: whatever goes wrong in the file, with its line.
    """
    if not Path(path).is_file():
        known = sorted(str(other) for other in Path(path).parent.glob("*.py"))
        nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
        hint = f": did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"there is no config file {path}{hint}")
    # Config files import each other from the checkout's root, wherever the command is typed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        config = runpy.run_path(path)["get_config"]()
        if not isinstance(config, ConfigDict):
            raise TypeError("get_config() must return a ConfigDict")
        return config
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else path
        text = str(error.args[0]) if error.args else ""
        # A ConfigDict names the nearest known field in the last line, after escaped line ends.
        what = text.replace("\\n", "\n").strip("\n'").rpartition("\n")[2]
        raise UserError(f"{where}: {type(error).__name__}: {what}") from error


def config_fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all leaves of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from config_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _bool(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f'"{text}" is neither true nor false') from None


def _tuple(text: str) -> tuple[Any, ...]:
    try:
        return tuple(ast.literal_eval(text))
    except (ValueError, TypeError, SyntaxError):
        raise argparse.ArgumentTypeError(f'"{text}" is not a list such as "(1, 0.1)"') from None


_PARSERS: dict[type, Any] = {int: int, float: float, str: str, bool: _bool, tuple: _tuple}

if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
