"""Errors that a user can correct, shown by commands as a single line."""

import argparse
import difflib
import errno
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# The packages of each extra of pyproject.toml, by the names under which they are imported.
EXTRAS = {
    "train": (
        "array_record",
        "clu",
        "importlib_resources",
        "jinja2",
        "matplotlib",
        "scipy",
        "tensorboard",
        "tensorflow",
        "tensorflow_datasets",
    ),
    "beam": ("apache_beam",),
    "compare": ("albumentations", "keras", "openvino", "timm", "torch", "torchvision"),
    "webcam": ("dlib",),
}


class UserError(Exception):
    """A mistake that the user can correct: the message says what, where, and what to type."""


def needs_extra(extra: str, what: str, error: object) -> UserError:
    """The error for `what`, a task that needs packages of an extra which is not installed."""
    return UserError(
        f'{what} needs the extra "{extra}" ({error}): pip install -e ".[{extra}]" in a clone, or '
        f'pip install "WHEEL[{extra}]" with the file of the wheel'
    )


def extra_of(module: str) -> str | None:
    """The extra that installs a module; None if it belongs to no extra."""
    package = module.partition(".")[0]
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


def require_packages(extra: str, what: str, *packages: str) -> None:
    """Checks, without importing them, that packages of an extra are installed.

    Raises:
        UserError: one is missing, so that `what` would fail later.
    """
    for name in packages:
        try:
            found = importlib.util.find_spec(name)
        except ValueError:  # A test has set sys.modules[name] to None.
            found = None
        if found is None:
            raise needs_extra(extra, what, f"{name} is not installed")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A part of a message that names the known name nearest to a mistyped one.

    >>> did_you_mean("trian", ["train", "predict"])
    ': did you mean train?'
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f": did you mean {nearest[0]}?" if nearest else ""


def printable(text: str, longest: int = 100) -> str:
    """The first characters of untrusted text, with "?" for those that could control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])


class ArgumentParser(argparse.ArgumentParser):
    """For the scripts: raises `UserError` for a mistake in the command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}, see --help")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line on stderr, not a traceback, for what users can correct."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        sys.exit(f"error: {needs_extra(extra, 'this command', error)}")
    except OSError as error:  # A full disk, a missing permission, a vanished file.
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ": free some and run the same command again" if full else ""
        sys.exit(f"error: {error.strerror or error}{where}{advice}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
