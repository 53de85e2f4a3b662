"""Reads a user's own table of faces: paths, ages, genders, subjects, splits and boxes by column.

A million rows take a few seconds and some hundred megabytes.
"""

import math
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agenet.data.label_texts import LabelTexts
from agenet.data.table_columns import ColumnOptions, Columns, find_columns
from agenet.data.table_faces import FaceTable, check_rows
from agenet.data.table_rows import Chunk, read_chunks
from agenet.errors import UserError, printable
from agenet.labels import UNKNOWN

STRINGS = np.dtypes.StringDType()
NO_BOX = (math.nan,) * 4
_MAX_COORDINATE = 1e6  # pixels
_MAX_CACHED = 100_000  # different texts of a column
_MAX_OTHER = 1 << 28  # characters in the columns that are kept by name


def read_face_table(
    path: Path, options: ColumnOptions | None = None, keep: Collection[str] | None = None
) -> FaceTable:
    """Reads a table of faces: CSV, TSV, JSON lines or Parquet.

    Args:
        path: the file.
        options: what the user says about the columns; the others are guessed by their names.
        keep: names of further columns to keep; all by default.

    Raises:
        UserError: it is no such table, or a value is wrong; names the row.
    """
    options = options or ColumnOptions()
    # Shown only after three seconds, and only on a terminal.
    size = path.stat().st_size if path.is_file() else 0
    with tqdm(
        total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, delay=3, disable=None
    ) as bar:
        chunks = read_chunks(path, bar.update)
        first = next(chunks)
        columns = find_columns([n for n in first.header if n], options, str(path))
        kept = [name for name in columns.others if keep is None or name in keep]
        if missing := sorted(set(keep or ()) - set(first.header)):
            raise UserError(f"{path}: there is no column {printable(missing[0])!r}")
        kept += [name for name in keep or () if name not in columns.others]
        reader = _Reader(str(path), first.unit, columns, kept, options)
        reader.add(first)
        for chunk in chunks:
            reader.add(chunk)
    table = reader.table()
    if not len(table):
        raise UserError(f"{path} has a header, but no rows")
    check_rows(table)
    return table


class _Reader:
    """Turns chunks of text into columns of numbers."""

    def __init__(
        self, path: str, unit: str, columns: Columns, kept: list[str], options: ColumnOptions
    ) -> None:
        self._path, self._unit, self._columns = path, unit, columns
        self._texts = LabelTexts(options)
        self._kept = kept
        self._parts: dict[str, list[np.ndarray]] = {}
        self._caches: dict[str, tuple[dict[Any, int], list[Any]]] = {}
        self._characters = 0

    def add(self, chunk: Chunk) -> None:
        try:
            self._add(chunk)
        except ValueError as error:
            raise UserError(f"{self._path}, {error}") from None

    def _add(self, chunk: Chunk) -> None:
        of, count = self._columns.of, len(chunk.rows)
        paths = [plain_path(text) for text in chunk.column(of["path"])]
        if "" in paths:
            raise UserError(f"{self._where(chunk, paths.index(''))}: no path of an image")
        self._put("path", np.array(paths, STRINGS))
        self._put("row", np.array(chunk.rows, np.int64))
        ages = np.full((count, 2), UNKNOWN, np.int32)
        if "age" in of:
            ages = self._parsed(chunk, "age", chunk.column(of["age"]), self._texts.age)
        elif "age_low" in of:
            ends = zip(chunk.column(of["age_low"]), chunk.column(of["age_high"]), strict=True)
            ages = self._parsed(chunk, "age", [*ends], self._texts.age_range)
        self._put("age", ages.astype(np.int32).reshape(count, 2))
        genders = np.full(count, UNKNOWN, np.int32)
        if "gender" in of:
            genders = self._parsed(chunk, "gender", chunk.column(of["gender"]), self._texts.gender)
        self._put("gender", genders.astype(np.int32))
        if "subject" in of:
            subjects = [*map(self._texts.subject, chunk.column(of["subject"]))]
            self._put("subject", np.array(subjects, STRINGS))
        if "split" in of:
            splits = self._parsed(chunk, "split", chunk.column(of["split"]), self._texts.split)
            self._put("split", splits.astype(STRINGS))
        if self._columns.box:
            self._put("box", self._boxes(chunk).astype(np.float32).reshape(count, 4))
        for name in self._kept:
            texts = chunk.column(name)
            self._characters += sum(map(len, texts))
            if self._characters > _MAX_OTHER:
                raise UserError(
                    f"{self._path}: more text than fits into memory: remove columns that are not "
                    f"needed, such as {printable(name)}"
                )
            self._put(f"other {name}", np.array(texts, STRINGS))

    def table(self) -> FaceTable:
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        age = columns.pop("age")
        other = {name: columns.pop(f"other {name}") for name in self._kept}
        return FaceTable(
            source=self._path,
            age_low=age[:, 0].copy(),
            age_high=age[:, 1].copy(),
            other=other,
            columns=self._columns.describe(),
            unit=self._unit,
            **columns,
        )

    def _put(self, name: str, values: np.ndarray) -> None:
        self._parts.setdefault(name, []).append(values)

    def _where(self, chunk: Chunk, index: int) -> str:
        return f"{self._path}, {chunk.unit} {chunk.rows[index]}"

    def _parsed(
        self, chunk: Chunk, name: str, texts: list[Any], parse: Callable[[Any], Any]
    ) -> np.ndarray:
        """Parses each different text once.

        Raises:
            UserError: one is wrong; names the first row that has it.
        """
        numbers, values = self._caches.setdefault(name, ({}, []))
        if len(numbers) > _MAX_CACHED:
            numbers.clear()
            values.clear()
        for text in dict.fromkeys(texts):  # in order, so that the first row is named
            if text not in numbers:
                try:
                    values.append(parse(text))
                except ValueError as error:
                    where = self._where(chunk, texts.index(text))
                    raise UserError(f"{where}: {error}") from None
                numbers[text] = len(values) - 1
        if not values:
            return np.zeros(0)
        return np.array(values)[np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))]

    def _boxes(self, chunk: Chunk) -> np.ndarray:
        texts = [chunk.column(name) for name in self._columns.box]
        if len(texts) == 4:
            with suppress(ValueError):  # Then the rows are parsed one by one, and one is named.
                left, top, third, fourth = (np.array([*map(float, side)]) for side in texts)
                if self._columns.box_format == "size":
                    third, fourth = left + third, top + fourth
                boxes = np.stack([left, top, third, fourth], axis=1)
                if _is_box(*boxes.T).all():
                    return boxes
        return self._parsed(chunk, "box", [*zip(*texts, strict=True)], self._box)

    def _box(self, sides: tuple[str, ...]) -> tuple[float, ...]:
        texts = re.findall(r"[^\s,;()\[\]]+", sides[0]) if len(sides) == 1 else sides
        unknown = [t.casefold() in ("", "nan") or self._texts.is_unknown(t) for t in texts]
        if all(unknown):
            return NO_BOX
        try:
            left, top, third, fourth = map(float, texts)
        except ValueError:
            raise ValueError(
                f"the box {' '.join(sides)[:60]!r} is not four numbers: corners, or left, top, "
                "width and height"
            ) from None
        if self._columns.box_format == "size":
            third, fourth = left + third, top + fourth
        box = (left, top, third, fourth)
        if not _is_box(*box):
            shown = ", ".join(f"{side:g}" for side in box)
            raise ValueError(
                f"the box with the corners {shown} is empty: if its last two numbers are width "
                "and height, add --box-format=size"
                if self._columns.box_format == "corners"
                else f"the box with the corners {shown} is empty"
            )
        return box


def _is_box(left: Any, top: Any, right: Any, bottom: Any) -> Any:
    """Whether corners are those of a box, each a number or [N]."""
    small = (abs(left) < _MAX_COORDINATE) & (abs(top) < _MAX_COORDINATE)
    small &= (abs(right) < _MAX_COORDINATE) & (abs(bottom) < _MAX_COORDINATE)
    return small & (left < right) & (top < bottom)


def plain_path(text: str) -> str:
    r"""The path of an image with "/" between its folders.

    >>> plain_path(r".\faces\a.jpg")
    'faces/a.jpg'
    """
    path = text.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path
