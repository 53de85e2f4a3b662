"""The one exception that programs show to their user as a single line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where, and what to do."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line on stderr, not a traceback, for what users can mend."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # A full disk, a missing permission, a vanished file.
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"error: {error.strerror or error}{where}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
