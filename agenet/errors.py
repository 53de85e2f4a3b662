"""Errors that a user can correct, shown by commands as a single line."""

import argparse
import difflib
import errno
import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

# The packages of each extra of pyproject.toml, by the names under which they are imported.
EXTRAS = {
    "train": (
        "array_record",
        "clu",
        "importlib_resources",
        "jinja2",
        "matplotlib",
        "pyarrow",
        "scipy",
        "tensorboard",
        "tensorflow",
        "tensorflow_datasets",
    ),
    "parquet": ("pyarrow",),
    "search": ("optuna",),
    "beam": ("apache_beam",),
    "compare": ("albumentations", "keras", "openvino", "timm", "torch", "torchvision"),
    "webcam": ("dlib",),
    "heic": ("pillow_heif",),
    "mlflow": ("alembic", "mlflow", "sqlalchemy"),
    "wandb": ("wandb",),
    "hub": ("huggingface_hub",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "serve": ("httpcore", "multipart", "prometheus_client", "starlette", "uvicorn", "websockets"),
}


_STDERR = 2
_LONGEST_LINE = 10_000  # characters
_JOINERS = "\u200c\u200d"


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
        if not is_installed(name):
            raise needs_extra(extra, what, f"{name} is not installed")


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # A test has set sys.modules[module] to None.
        return False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A part of a message that names the known name nearest to a mistyped one.

    >>> did_you_mean("trian", ["train", "predict"])
    ': did you mean train?'
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f": did you mean {nearest[0]}?" if nearest else ""


def printable(text: str, longest: int = 100) -> str:
    r"""The first characters of untrusted text, with "?" for those that could control a terminal.

    These are escapes, line breaks and the marks that reverse the direction of writing. Spaces of
    any width and the joiners of scripts and emoji are kept: they occur in names.

    >>> printable("a\x1b[2J\nb\u202egpj.exe")
    'a?[2J?b?gpj.exe'
    """
    return "".join(c if _is_harmless(c) else "?" for c in text[:longest])


def _is_harmless(character: str) -> bool:
    return (
        character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
    )


def one_line(text: object) -> str:
    """A message as one line, as it is shown: names of files and of strangers may be in it."""
    return printable(str(text), _LONGEST_LINE)


def say(*lines: object, file: TextIO | None = None) -> None:
    """Prints lines, each by `one_line`, on stderr or another file."""
    for line in lines:
        print(one_line(line), file=file or sys.stderr, flush=True)


class ArgumentParser(argparse.ArgumentParser):
    """For the scripts: raises `UserError` for a mistake in the command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}, see --help")


def open_closed_streams() -> None:
    """Opens the null device in place of standard streams that are closed, as some services do.

    Python has None in their place, and the next file to be opened would get their number: what C
    code prints would go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        setattr(sys, name, Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line on stderr, not a traceback, for what users can correct.

    Every program starts with it, so it also makes sure that there is a stderr.
    """
    open_closed_streams()
    try:
        yield
    except UserError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _fail(needs_extra(extra, "this command", error))
    except OSError as error:  # A full disk, a missing permission, a vanished file.
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ": free some and run the same command again" if full else ""
        _fail(f"{error.strerror or error}{where}{advice}")
    except RuntimeError as error:
        if "home directory" not in str(error):  # as `pathlib` says it
            raise
        _fail("this user has no home folder: set HOME, or name folders in full, without ~")
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)


@contextmanager
def native_messages_hidden() -> Iterator[None]:
    """Hides what libraries in C print to stderr, such as decoders about damaged images.

    Python's messages are shown: `sys.stderr` gets a file descriptor of its own. For whole commands,
    because file descriptors belong to all threads.
    """
    shown = sys.stderr
    try:
        is_real = shown.fileno() == _STDERR
    except OSError:
        is_real = False
    if not is_real:  # as in tests
        yield
        return
    shown.flush()
    with (
        os.fdopen(
            os.dup(_STDERR), "w", encoding=shown.encoding, errors=shown.errors, buffering=1
        ) as own,
        Path(os.devnull).open("w") as nowhere,
    ):
        sys.stderr = own
        os.dup2(nowhere.fileno(), _STDERR)
        try:
            yield
        finally:
            own.flush()
            os.dup2(own.fileno(), _STDERR)
            sys.stderr = shown


def _fail(message: object) -> NoReturn:
    discard_stdout()
    sys.exit(f"error: {one_line(message)}")


def discard_stdout() -> None:
    """Drops what stdout still holds if it cannot be written: Python would try again at the end."""
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, or a pipe that was closed, as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
