"""Reads untrusted MATLAB files of version 5.

`scipy.io.loadmat` executes nothing either, but it trusts the numbers in a file: 276 bytes that
claim a large cell array took 7 GB. Here nothing is allocated for a claim: every value is a part of
the file, which is decompressed up to a limit.

The layout is that of "MAT-File Format" (MathWorks), chapter 1, "Level 5 MAT-Files".
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Decompressed, in all; wiki.mat has 17 MB, imdb.mat some ten times as much. Real metadata become
# five times as large, so a small file may not become very large.
MAX_BYTES = 1 << 28
_SMALL, _MAX_RATIO = 1 << 24, 30

_HEADER_BYTES = 128
# Data types, table 1-1.
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8"}
_NUMBERS[13] = "u8"
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
# Classes of arrays, table 1-3.
_CELL, _STRUCTURE, _TEXT, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15
_COMPLEX = 0x800  # a flag beside the class
_MAX_DIMENSIONS = 32


class TooLargeError(Exception):
    """The file becomes larger than `limit` bytes."""

    def __init__(self, limit: int):
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Matrix:
    """An array of any class, the unit of which such files consist.

    Attributes:
        name: of the variable; empty for parts of others.
        kind: class and flags.
        shape: as the file claims.
        data: that the array is a part of.
        order: of the bytes in a number, "<" or ">".
        start, end: of the values in `data`.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: bytes
    order: str
    start: int
    end: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_cell(self) -> bool:
        return self.kind & 0xFF == _CELL

    @property
    def is_structure(self) -> bool:
        return self.kind & 0xFF == _STRUCTURE

    @property
    def is_number(self) -> bool:
        return _FIRST_NUMBER <= self.kind & 0xFF <= _LAST_NUMBER and not self.kind & _COMPLEX

    def numbers(self) -> np.ndarray:
        """The values float64 [N] of an array of numbers.

        Raises:
            ValueError, struct.error: it is damaged; likewise below.
        """
        kind, start, stop, _ = _element(self.data, self.start, self.end, self.order)
        if kind not in _NUMBERS:
            raise ValueError(f"data of type {kind}, not numbers")
        values = np.frombuffer(self.data[start:stop], self.order + _NUMBERS[kind])
        if len(values) != self.count:
            raise ValueError(f"{len(values)} of {self.count} numbers")
        return values.astype(np.float64)

    def text(self) -> str:
        """The text of a row of characters; empty for everything else."""
        if self.kind & 0xFF != _TEXT or self.count == 0 or self.shape[:-1] != (1,):
            return ""
        kind, start, stop, _ = _element(self.data, self.start, self.end, self.order)
        codec = _TEXTS.get(kind, "latin-1")
        if codec == "utf-16":
            codec += "-le" if self.order == "<" else "-be"
        return self.data[start:stop].decode(codec, "replace").rstrip("\0")

    def cells(self) -> Iterator["Matrix"]:
        """The arrays in a cell array."""
        return self._parts(self.start, self.count)

    def fields(self) -> dict[str, "Matrix"]:
        """The arrays in one structure."""
        _, start, _, position = _element(self.data, self.start, self.end, self.order)
        (length,) = struct.unpack_from(f"{self.order}i", self.data, start)
        _, start, stop, position = _element(self.data, position, self.end, self.order)
        if length < 1:
            raise ValueError("names without letters")
        places = range(start, stop, length)
        names = [self.data[i : i + length].split(b"\0")[0].decode("latin-1") for i in places]
        return dict(zip(names, self._parts(position, len(names)), strict=True))

    def _parts(self, position: int, count: int) -> Iterator["Matrix"]:
        if count * 8 > self.end - position:  # Each has at least a type and a size.
            raise ValueError(f"claims {count} arrays in {self.end - position} bytes")
        for _ in range(count):
            kind, start, stop, position = _element(self.data, position, self.end, self.order)
            if kind != _MATRIX:
                raise ValueError(f"data of type {kind}, not an array")
            yield _matrix(self.data, start, stop, self.order)


def read_matrices(data: bytes) -> Iterator[Matrix]:
    """The variables in a MATLAB file of version 5, given its content.

    Raises:
        ValueError, struct.error, zlib.error: it is no such file, or damaged.
        TooLargeError: it becomes far larger than it is.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER_BYTES])
    if order is None:
        raise ValueError("without a MATLAB header")
    limit = left = min(MAX_BYTES, _SMALL + _MAX_RATIO * len(data))
    position = _HEADER_BYTES
    while position < len(data):
        kind, start, stop, position = _element(data, position, len(data), order)
        part = data[start:stop]
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            part = stream.decompress(part, left + 1)
            if (left := left - len(part)) < 0:
                raise TooLargeError(limit)
            if not stream.eof:
                raise ValueError("cut short")
            kind, start, stop, _ = _element(part, 0, len(part), order)
            part = part[start:stop]
        if kind == _MATRIX:
            yield _matrix(part, 0, len(part), order)


def _element(data: bytes, position: int, end: int, order: str) -> tuple[int, int, int, int]:
    """Type, start and end of the data element at a position, and the position of the next one."""
    kind, size = struct.unpack_from(f"{order}II", data, position)
    start, padding = position + 8, -size % 8
    if kind >> 16:  # the small format: size and type in one number, and up to four bytes after it
        kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        padding = 4 - size
    if kind == _COMPRESSED:
        padding = 0
    stop = start + size
    if stop > end or padding < 0:
        raise ValueError("cut short")
    return kind, start, stop, min(stop + padding, end)


def _matrix(data: bytes, start: int, end: int, order: str) -> Matrix:
    if start == end:
        return Matrix("", _FIRST_NUMBER, (0, 0), data, order, start, end)
    _, flags, _, position = _element(data, start, end, order)
    (kind,) = struct.unpack_from(f"{order}I", data, flags)
    _, first, last, position = _element(data, position, end, order)
    shape = struct.unpack_from(f"{order}{(last - first) // 4}i", data, first)
    if not 2 <= len(shape) <= _MAX_DIMENSIONS or min(shape) < 0:
        raise ValueError("an array without a size")
    _, first, last, position = _element(data, position, end, order)
    name = data[first:last].decode("latin-1")
    return Matrix(name, kind & 0xFFFF, shape, data, order, position, end)
