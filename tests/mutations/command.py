"""Runs commands of agenet, and notices what they must not print."""

import contextlib
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from agenet.cli.app import run_command
from agenet.errors import UserError, one_line_errors

LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")


def process_context() -> Any:
    """How processes are started: from a server that has imported everything, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.mutations.preload"])
    return context


class WrongError(Exception):
    """What a program must not do, noticed while it was used."""


def agenet(*arguments: str, code: int = 0) -> str:
    """Runs `agenet ARGUMENTS` in this process, as `agenet.cli.main` does; returns stderr.

    Raises:
        UserError: the command ended with one line about a mistake.
        WrongError: it printed more than that, or ended with another exit code.
    """
    ended: int | str | None = 0
    with captured() as output:
        try:
            with one_line_errors():
                run_command(list(arguments))
        except SystemExit as end:
            ended = end.code
        printed = output()
    lines = [line for line in printed.splitlines() if not LOG_LINE.match(line)]
    if "Traceback" in printed:
        raise WrongError(f"prints a traceback: {lines[-1][:200]}")
    if isinstance(ended, str):
        if lines:
            raise WrongError(f"prints {lines[0][:150]!r} before {ended[:150]!r}")
        raise UserError(ended.removeprefix("error: "))
    if ended not in (0, None, code):
        raise WrongError(f"exit code {ended}, {lines[-1:]}")
    return printed


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """Keeps what the process and its libraries write to stdout and stderr; call it for stderr."""
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)

        def text() -> str:
            sys.stderr.flush()
            err.seek(0)
            return err.read().decode(errors="replace")

        try:
            yield text
        finally:
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)
