"""Judges what a case did: its result or message, its memory, and the files that it touched."""

import contextlib
import os
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agenet.errors import UserError
from tests.mutations.command import WrongError
from tests.mutations.kind import Kind

FINE, ONE_LINE, BAD = "fine", "one line", "bad"
# Kind and number of the processes' scratch folders, made afresh for each case.
INPUT, OUTPUT, HOME, TMP = "input", "output", "home", "tmp"


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        word: fine, one line or bad.
        detail: the message, or what is bad.
        change: what had been done to the input.
        seconds: of processor time, without that of processes that the case started.
    """

    word: str
    detail: str = ""
    change: str = ""
    seconds: float = 0.0


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """All that is below a folder but its output, with what shows that it was changed."""
    found = {}
    for place, folders, files in os.walk(folder):
        if place == str(folder):
            folders.remove(OUTPUT)
        for name in (*folders, *files):
            path = f"{place}/{name}"
            status = os.lstat(path)
            found[path] = (status.st_mode, status.st_size, status.st_ino, status.st_mtime_ns)
            if not os.path.isdir(path):  # noqa: PTH112
                continue
            found[path] = (status.st_mode, status.st_ino)
    return found


def judge(kind: Kind, scratch: Path, change: Any, right: Any) -> Verdict:
    """Uses the input in `scratch` once."""
    before = listing(scratch)
    peak, start = _watch_memory(), time.process_time()
    try:
        result = kind.use(scratch / INPUT, scratch / OUTPUT)
        wrong = kind.compare(result, right, change)
        verdict = Verdict(BAD, wrong) if wrong else Verdict(FINE)
    except UserError as error:
        text = str(error)
        plain = text and text.isprintable()
        verdict = Verdict(ONE_LINE, text) if plain else Verdict(BAD, f"not one line: {text!r}")
    except WrongError as error:
        verdict = Verdict(BAD, str(error))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        text = f"{type(error).__name__} at {place}: {str(error)[:200]}"
        verdict = Verdict(BAD, f"traceback: {text}")
    if (grown := peak()) > kind.megabytes:
        verdict = Verdict(BAD, f"memory: {grown} MB, then {verdict.word}: {verdict.detail[:100]}")
    if touched := sorted(set(listing(scratch).items()) ^ set(before.items())):
        names = {os.path.relpath(path, scratch) for path, _ in touched}
        before_that = "" if verdict.word == FINE else f"; {verdict.word}: {verdict.detail}"
        verdict = Verdict(BAD, f"writes outside its output: {sorted(names)[:5]}{before_that}")
    return replace(verdict, seconds=time.process_time() - start)


def _watch_memory() -> Callable[[], int]:
    """A function that says by how many megabytes this process has grown at most since now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is now.

    def peak() -> int:
        status = Path("/proc/self/status")
        text = status.read_text() if status.exists() else "VmHWM: 0"
        found = re.search(r"VmHWM:\s+(\d+)", text)
        return int(found[1]) >> 10 if found else 0

    start = peak()
    return lambda: peak() - start
