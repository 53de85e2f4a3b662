"""Writes the results for image files as a table, CSV or JSON lines, and summarises them."""

import csv
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from agenet.errors import UserError, printable
from agenet.faces.face import Face
from agenet.files import LineFile

LISTED = 10  # problems in the summary

_TABLE = ("face", "left", "top", "right", "bottom", "age", "80 %", "group", "gender", "prob.")
_PREDICTED = ("score", "age", "age_low", "age_high", "age_group", "gender", "gender_probability")
COLUMNS = ("file", "face", "left", "top", "right", "bottom", *_PREDICTED, "error")


@dataclass(frozen=True)
class Result:
    """The result for one file: `faces` in its pixels, or an `error`."""

    path: str
    size: tuple[int, int] | None = None  # width, height
    faces: Sequence[Face] = ()
    error: str = ""

    def asdict(self, *, distribution: bool = False) -> dict[str, object]:
        """For JSON: `file`; `width`, `height` and `faces` of an image; `error` if there is one.

        Args:
            distribution: include the probability of each year.
        """
        fields: dict[str, object] = {"file": self.path}
        if self.size is not None:
            faces = [face.asdict(distribution=distribution) for face in self.faces]
            fields |= {"width": self.size[0], "height": self.size[1], "faces": faces}
        if self.error:
            fields |= {"error": self.error}
        return fields


@dataclass
class Summary:
    """Counts over all files."""

    images: int = 0
    faces: int = 0
    without_face: int = 0
    problems: int = 0
    first_problems: list[str] = field(default_factory=list)
    stopped: type[BaseException] | None = None

    def add(self, result: Result) -> None:
        if result.size is not None:
            self.images += 1
            self.faces += len(result.faces)
            self.without_face += not result.faces
        if result.error:
            self.problems += 1
            if len(self.first_problems) < LISTED:
                self.first_problems.append(f"{result.path}: {result.error}")

    def lines(self) -> list[str]:
        """The counts, then a line for each of the first problems."""
        counts = (
            f"{_count(self.images, 'image')}, {_count(self.faces, 'face')}, "
            f"{_count(self.without_face, 'image')} without a face, "
            f"{_count(self.problems, 'problem')}"
        )
        more = self.problems - len(self.first_problems)
        lines = [*self.first_problems, *([f"and {more:,} more"] if more else [])]
        interrupted = "interrupted; " if self.stopped is KeyboardInterrupt else ""
        return [f"{interrupted}{counts}", *(f"  {line}" for line in lines)]


class Writer(Protocol):
    """Writes one result after the other."""

    def write(self, result: Result) -> None: ...


class Output(Protocol):
    """An open text file, or another place for lines."""

    def write(self, text: str, /) -> object: ...


class TableWriter:
    """A text table: one row for each face, image without a face, and error."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        columns = shutil.get_terminal_size().columns
        rest = len(self._row("", *_TABLE))
        self._width = min(max(columns - rest, 20), 60) if file.isatty() else 40
        self._has_header = False

    def write(self, result: Result) -> None:
        if not self._has_header:
            self._print("file", *_TABLE)
            self._has_header = True
        for number, face in enumerate(result.faces, 1):
            prediction = face.prediction
            box = [f"{side:.0f}" for side in face.detection.box]
            age = "-" if prediction.age is None else f"{prediction.age:.0f}"
            years = prediction.age_interval
            interval = "-" if years is None else f"{years[0]}-{years[1]}"
            probability = prediction.gender_probability
            confidence = "-" if probability is None else f"{probability:.2f}"
            group, gender = prediction.age_group or "-", prediction.gender or "-"
            self._print(result.path, str(number), *box, age, interval, group, gender, confidence)
        if result.size is not None and not result.faces:
            self._print(result.path, "-", note="no face found")
        if result.error:
            self._print(result.path, "!", note=result.error)

    def _print(self, path: str, *cells: str, note: str = "") -> None:
        name = _fitted(printable(path, 4096), self._width, shorten=self._file.isatty())
        row = f"{cells[0]:>4}  {note}" if note else self._row("", *cells)
        print(name + row, file=self._file)

    @staticmethod
    def _row(name: str, face: str, *cells: str) -> str:
        left, top, right, bottom, age, interval, group, gender, confidence = cells
        box = f"{left:>6} {top:>6} {right:>6} {bottom:>6}"
        ages = f"{age:>4}  {interval:<6}  {group:<6}"
        return f"{name}{face:>4}  {box} {ages}  {gender:<6}  {confidence:>5}"


def face_rows(result: Result) -> Iterator[tuple[Any, ...]]:
    """The rows of a result in a table, with the values of `COLUMNS` and None for what is missing.

    There is one for each face, image without a face, and error.
    """
    for number, face in enumerate(result.faces, 1):
        fields = face.asdict()
        fields["age_low"], fields["age_high"] = fields["age_interval"] or (None, None)
        values = [fields.get(column) for column in _PREDICTED]
        yield result.path, number, *fields["box"], *values, result.error
    if not result.faces:
        yield result.path, *[None] * (len(COLUMNS) - 2), result.error


class CsvWriter:
    """CSV: one row for each face, image without a face, and error."""

    def __init__(self, file: Output) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._has_header = False

    def write(self, result: Result) -> None:
        if not self._has_header:
            self._rows.writerow(COLUMNS)
            self._has_header = True
        name = _escaped(result.path)
        # Spreadsheets would read it as a formula; this is the same file.
        name = f"./{name}" if name.startswith(("=", "+", "-", "@")) else name
        self._rows.writerows((name, *row[1:]) for row in face_rows(result))


class JsonLinesWriter:
    """JSON lines: one object for each file, in ASCII.

    Args:
        file: where to write.
        distribution: write the probability of each year, too.
    """

    def __init__(self, file: Output, *, distribution: bool = False) -> None:
        self._file, self._distribution = file, distribution

    def write(self, result: Result) -> None:
        self._file.write(json.dumps(result.asdict(distribution=self._distribution)) + "\n")


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fitted(text: str, width: int, shorten: bool) -> str:
    """Pads text to `width` terminal columns, or shortens it at its beginning."""
    widths = [_columns(character) for character in text]
    if shorten and sum(widths) > width:
        while sum(widths) > width - 1:
            del widths[0]
        text = "…" + text[len(text) - len(widths) :]
        widths.append(1)
    return text + " " * (width - sum(widths))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def open_output(name: str, overwrite: bool) -> AbstractContextManager[Output]:
    """Opens an output file, or stdout for "-".

    Raises:
        UserError: the file may not be written, see `LineFile`, or stdout was closed.
    """
    if name != "-":
        return LineFile(Path(name), overwrite)
    if sys.__stdout__ is None:
        raise UserError("stdout is closed: name a file instead of -")
    return nullcontext(sys.stdout)
