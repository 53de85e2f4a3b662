"""Reads metrics.jsonl, the rows that a training wrote: a disk or a stranger may have changed it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agenet.errors import UserError

_LARGEST_FILE = 64 << 20  # bytes
_LARGEST_NUMBER = 1e15


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows as they were written; [] if there is no file.

    A last line that a killed process left incomplete is dropped.

    Raises:
        UserError: another line is not a flat JSON object, or the file is too large.
    """
    if not path.exists():
        return []
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        raise _damaged(path, "it is not a file, or too large", "it")
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
            if not isinstance(row, dict) or any(isinstance(v, dict | list) for v in row.values()):
                raise ValueError("not a row")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise _damaged(path, f"line {number} is not a row of numbers", "that line") from error
        rows.append(row)
    return rows


def read_history(path: Path) -> list[dict[str, float]]:
    """The numbers of the rows that have step and epoch, see `read_rows`."""
    rows = []
    for row in read_rows(path):
        numbers = {name: v for name, v in row.items() if type(v) in (int, float)}
        kept = {name: v for name, v in numbers.items() if abs(v) < _LARGEST_NUMBER}  # Not NaN.
        if "step" in kept and "epoch" in kept:
            rows.append(kept)
    return rows


def digest_row(before: str, row: Mapping[str, Any]) -> str:
    """The digest of all rows up to this one, from the digest of those before it, at first ""."""
    return hashlib.sha256((before + json.dumps(row)).encode()).hexdigest()


def _damaged(path: Path, why: str, what: str) -> UserError:
    return UserError(
        f"{path} is damaged: {why}: remove {what}, of which only learning curves are drawn"
    )
