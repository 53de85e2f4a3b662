"""Shows users' mistakes as one line where TFDS's own command would show a traceback."""

import sys
from pathlib import Path
from types import TracebackType

from agenet.errors import UserError


def show_errors_as_one_line() -> None:
    """Does so if this program is TFDS's command."""
    program = Path(sys.argv[0])
    if program.stem == "tfds" or "tensorflow_datasets" in program.parts:
        sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, UserError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
