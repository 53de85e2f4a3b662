"""Writes log lines as JSON, without anything from images and without names of files or clients."""

import json
import logging
import sys
import time
from typing import Any, TextIO

from agenet.errors import printable

_LONGEST = 1000  # characters of a message
_LONGEST_TRACE = 10_000


class JsonLines(logging.Formatter):
    """Formats a record as one object in ASCII: `time`, `level`, `event` and its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": printable(record.getMessage().strip(), _LONGEST),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)[-_LONGEST_TRACE:]
        return json.dumps(fields)


def log_json(stream: TextIO | None = None) -> None:
    """Sends the log lines of this program and its libraries to stderr, as JSON."""
    logging.raiseExceptions = False  # A full disk must not end the server.
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("agenet").setLevel(logging.INFO)
