"""Reads the tables of a release: text files from strangers, often saved again by a spreadsheet."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from agenet.errors import UserError

MAX_TABLE_BYTES = 16 << 20  # the largest of a release, FairFace's train set, has 4 MB


def read_table(path: Path, columns: Sequence[str], what: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each row of a table below its header: the place, for messages, and its fields.

    The separator is the one of the header: tab, comma or semicolon. Byte order marks, UTF-16, line
    ends of any system, blank lines, spaces around fields and further columns do no harm.

    Args:
        path: the file.
        columns: the names of the columns to return, in this order.
        what: the table, for messages, such as "a fold list of Adience".

    Raises:
        UserError: it is not such a table; names the line.
    """
    text = _text(path, what)
    first_line = text.lstrip().partition("\n")[0]
    separator = next((s for s in "\t,;" if s in first_line), "\t")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header: list[str] = []
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            if not header:
                if not set(columns) <= set(fields):
                    raise UserError(f"{where}: not the header of {what}: {' '.join(columns)}")
                header = fields
                positions = [header.index(name) for name in columns]
                continue
            while len(fields) > len(header) and not fields[-1]:
                fields.pop()  # separators at the end of a line
            if len(fields) != len(header):
                raise UserError(
                    f"{where}: {len(fields)} columns, where the header has {len(header)}"
                )
            yield where, [fields[position] for position in positions]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}: is it {what}?") from error
    if not header:
        raise UserError(f"{path}: empty: is it {what}?")


def _text(path: Path, what: str) -> str:
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise UserError(f"{path}: larger than {what}: is it the right file?")
    data = path.read_bytes()
    try:
        # By byte order mark and zero bytes; the "-sig" of the result removes the mark.
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not text in UTF-8 or UTF-16: is it {what}? If it is, save it "
            "again as UTF-8"
        ) from None
