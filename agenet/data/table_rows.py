"""Reads tables of any size in chunks of text columns: CSV, TSV, JSON lines and Parquet.

The tables may come from strangers: lines, columns and rows are bounded, and never is more than one
chunk in memory.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenet.errors import UserError, is_installed, needs_extra, printable

CHUNK_ROWS = 1000  # They stay in the processor's cache: 20,000 take twice the time.
MAX_ROWS = 20_000_000
MAX_COLUMNS = 1000
_MAX_LINE = 1 << 18  # bytes
_MAX_FIELD = 10_000
# First bytes of files that are no tables, and what to do with them.
_OTHER_KINDS = {
    b"PK": "a spreadsheet or an archive: save the table as CSV",
    b"\x1f\x8b": "compressed: unpack it with  gunzip",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save the table as CSV",
    b"<": "a web page: download the table itself",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the table with  git lfs pull",
}


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Attributes:
        header: the names of the columns.
        rows: the number of each row: its line in a text file, counted from 1.
        unit: what they count, "line" or "row".
        read: returns the texts of the column of a number.
    """

    header: list[str]
    rows: list[int]
    unit: str
    read: Callable[[int], list[str]]

    def column(self, name: str) -> list[str]:
        """The texts of a column, stripped; "" where a row has no value.

        Raises:
            ValueError: a text is too long.
        """
        texts = self.read(self.header.index(name))
        if sum(map(len, texts)) > _MAX_FIELD:
            longest = max(map(len, texts))
            if longest > _MAX_FIELD:
                row = self.rows[[*map(len, texts)].index(longest)]
                raise ValueError(
                    f"{self.unit} {row}: {longest:,} characters in the column {printable(name)}: "
                    "is a quotation mark missing?"
                )
        return texts


def read_chunks(
    path: Path, advance: Callable[[int], object] = lambda size: None
) -> Iterator[Chunk]:
    """Yields the rows of a table, at most `CHUNK_ROWS` at a time; at least one chunk.

    The content decides on the format, not the name. The separator of a text table is the one of its
    header: tab, comma or semicolon. Byte order marks, UTF-16, line ends of any system, blank lines
    and spaces around fields do no harm.

    Args:
        path: the file.
        advance: called with the number of bytes read since the last call.

    Raises:
        UserError: it is not such a table; names the line.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    for beginning, what in _OTHER_KINDS.items():
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(beginning):
            raise UserError(f"{path} is {what}")
    if start.startswith(b"PAR1"):
        yield from _read_parquet(path, advance)
        return
    encoding = _encoding(start)
    first = start.decode(encoding, errors="ignore").lstrip()[:1]
    if first == "[":
        raise UserError(f"{path} is one JSON array: write JSON lines, one object on each line")
    read = _read_json_lines if first == "{" else _read_separated
    with (
        _BoundedFile(path) as counted,
        io.TextIOWrapper(io.BufferedReader(counted, _MAX_LINE // 4), encoding, newline="") as text,
    ):
        try:
            for chunk in read(path, text):
                yield chunk
                advance(counted.taken())
        except UnicodeDecodeError:
            line = _first_undecodable(path, encoding)
            raise UserError(
                f"{path}, line {line}: not text in UTF-8 or UTF-16: save the table again as UTF-8"
            ) from None


def _encoding(start: bytes) -> str:
    """By byte order mark and zero bytes; the "-sig" of the result removes the mark."""
    found = json.detect_encoding(start)
    return "utf-8-sig" if found == "utf-8" else found


def _first_undecodable(path: Path, encoding: str) -> int:
    """The line that is not of an encoding; exact for UTF-8, which decoders read in large pieces."""
    if "utf-8" not in encoding:
        return 1
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


class _BoundedFile(io.FileIO):
    """Counts the bytes that are read, and refuses lines that would fill the memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        self._since_line = self._read = self._taken = 0

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        if count:
            content = bytes(memoryview(buffer)[:count])
            end = max(content.rfind(b"\n"), content.rfind(b"\r"))
            self._since_line = count - end - 1 if end >= 0 else self._since_line + count
            if self._since_line > _MAX_LINE:
                raise UserError(f"{self._path}: its lines are too long for those of a table")
            self._read += count
        return count

    def taken(self) -> int:
        """The number of bytes since the last call."""
        count, self._taken = self._read - self._taken, self._read
        return count


def _read_separated(path: Path, text: io.TextIOWrapper) -> Iterator[Chunk]:
    skipped, first = 0, text.readline()
    while first and not first.strip():
        skipped, first = skipped + 1, text.readline()
    separator = next((s for s in "\t,;" if s in first), ",")
    reader = csv.reader(itertools.chain([first], text), delimiter=separator, skipinitialspace=True)
    count = 0
    try:
        names = [name.strip() for name in next(reader, [])]
        if not any(names):
            raise UserError(f"{path}: empty: name a table with a header and a row for each image")
        _check_names(path, names)
        more = True
        while more:
            before = skipped + reader.line_num
            rows = list(itertools.islice(reader, CHUNK_ROWS))
            more = len(rows) == CHUNK_ROWS
            numbers = _line_numbers(rows, before, skipped + reader.line_num)
            rows, numbers = _whole_rows(path, rows, numbers, len(names))
            if rows or not count:
                yield _chunk_of(names, rows, numbers)
            count = _counted(path, count, rows)
    except csv.Error as error:
        raise UserError(f"{path}, line {skipped + reader.line_num}: {error}") from error


def _line_numbers(rows: list[list[str]], before: int, last: int) -> list[int]:
    """The lines in which rows end that were read after the line `before`."""
    if last - before == len(rows):
        return list(range(before + 1, last + 1))
    # Fields in quotation marks may hold line ends.
    lines = (1 + sum(field.count("\n") for field in row) for row in rows)
    return list(itertools.accumulate(lines, initial=before))[1:]


def _whole_rows(
    path: Path, rows: list[list[str]], numbers: list[int], width: int
) -> tuple[list[list[str]], list[int]]:
    """The rows that are not blank, and their numbers."""
    if all(len(row) == width for row in rows):
        return rows, numbers
    whole: dict[int, list[str]] = {}
    for row, number in zip(rows, numbers, strict=True):
        while len(row) > width and not row[-1].strip():
            row.pop()  # separators at the end of a line
        if not any(map(str.strip, row)):
            continue
        if len(row) != width:
            raise UserError(
                f"{path}, line {number}: {len(row)} fields, where the header has {width}"
            )
        whole[number] = row
    return list(whole.values()), list(whole)


def _chunk_of(names: list[str], rows: list[list[str]], numbers: list[int]) -> Chunk:
    return Chunk(names, numbers, "line", lambda column: [row[column].strip() for row in rows])


def _check_names(path: Path, names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise UserError(f"{path} has {len(names):,} columns: remove those that are not needed")
    used = [name for name in names if name]
    if twice := next((name for name in used if used.count(name) > 1), None):
        raise UserError(f"{path} has two columns {printable(twice)!r}: rename one of them")


def _counted(path: Path, count: int, rows: list[Any]) -> int:
    if count + len(rows) > MAX_ROWS:
        raise UserError(f"{path} has more than {MAX_ROWS:,} rows: divide it")
    return count + len(rows)


def _read_json_lines(path: Path, text: io.TextIOWrapper) -> Iterator[Chunk]:
    names: list[str] = []
    known: set[str] = set()
    count = 0
    lines = enumerate(text, 1)
    while True:
        objects: list[dict[str, Any]] = []
        numbers: list[int] = []
        for number, line in lines:
            if line.strip():
                objects.append(_json_object(path, number, line))
                numbers.append(number)
                if len(objects) == CHUNK_ROWS:
                    break
        if not objects:
            return
        if not count:
            names = list(dict.fromkeys(name for row in objects for name in row))
            _check_names(path, names)
            known = set(names)
        for row, number in zip(objects, numbers, strict=True):
            if not row.keys() <= known:
                new = printable(min(row.keys() - known))
                raise UserError(
                    f"{path}, line {number}: the key {new!r} is in none of the first rows: "
                    "write the same keys in every line"
                )
        yield _chunk_of_objects(names, objects, numbers)
        count = _counted(path, count, objects)


def _chunk_of_objects(names: list[str], objects: list[dict[str, Any]], numbers: list[int]) -> Chunk:
    return Chunk(
        names, numbers, "line", lambda column: [_text(o.get(names[column])) for o in objects]
    )


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not JSON ({str(error)[:100]})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: not a JSON object, such as {{}}")
    return row


def _text(value: Any) -> str:
    """A value of JSON or Parquet as a table would have it."""
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _read_parquet(path: Path, advance: Callable[[int], object]) -> Iterator[Chunk]:
    if not is_installed("pyarrow"):
        raise needs_extra("train", f"{path}: reading Parquet", "pyarrow is not installed")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows, size = file.metadata.num_rows, path.stat().st_size
            if rows > MAX_ROWS:
                raise UserError(f"{path} has more than {MAX_ROWS:,} rows: divide it")
            # Images that are in the table itself are columns of bytes or of structures.
            names = [field.name for field in file.schema_arrow if _is_text(pa.types, field.type)]
            _check_names(path, names)
            start = 0
            for batch in file.iter_batches(CHUNK_ROWS, columns=names):
                yield _chunk_of_batch(names, batch, start)
                advance(size * batch.num_rows // max(rows, 1))
                start += batch.num_rows
            if not start:
                yield Chunk(names, [], "row", lambda column: [])
    except pa.ArrowException as error:
        reason = printable(str(error).splitlines()[0], 200)
        raise UserError(f"{path}: damaged, or not Parquet ({reason})") from None


def _chunk_of_batch(names: list[str], batch: Any, start: int) -> Chunk:
    numbers = list(range(start + 1, start + batch.num_rows + 1))
    return Chunk(
        names, numbers, "row", lambda column: [*map(_text, batch.column(column).to_pylist())]
    )


def _is_text(types: Any, kind: Any) -> bool:
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_text(types, kind.value_type)
    if types.is_dictionary(kind):
        return _is_text(types, kind.value_type)
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))
