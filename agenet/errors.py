"""Errors that commands show to their user as a single line."""

import argparse
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where, and what to do."""


def needs_extra(extra: str, what: str, error: ImportError) -> UserError:
    """The error for `what`, a job that needs packages of an extra which is not installed."""
    return UserError(
        f'{what} needs the extra "{extra}" ({error}): pip install -e ".[{extra}]" in a clone'
    )


def printable(text: str, longest: int = 100) -> str:
    """The first characters of untrusted text; "?" for what could control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])


class ArgumentParser(argparse.ArgumentParser):
    """Raises `UserError` for a mistake in the command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}, see --help")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line on stderr, not a traceback, for what users can mend."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # A full disk, a missing permission, a vanished file.
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ": free some and run the same command again" if full else ""
        sys.exit(f"error: {error.strerror or error}{where}{advice}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
