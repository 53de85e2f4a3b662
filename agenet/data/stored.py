"""Encoded pictures that lie in ArrayRecord files and are read when they are asked for."""

import threading
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, overload

import numpy as np

from agenet.errors import UserError

# Records read at a time where all are read in turn.
_AT_ONCE = 256
# A picture is read alone, from anywhere: what lies beside it is of no use.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 8192}


class LazyPictures(Sequence[bytes]):
    """N encoded pictures that are not in memory. Threads may share them.

    Attributes:
        lengths: int64 [N], bytes of each picture.
        checksums: uint32 [N], CRC-32 of each picture.
    """

    lengths: np.ndarray
    checksums: np.ndarray

    @abstractmethod
    def read(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """The pictures of the given rows, which takes less time than one after the other.

        Raises:
            UserError: one of them cannot be read.
        """

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> list[bytes]: ...
    def __getitem__(self, row: int | slice) -> bytes | list[bytes]:
        rows = range(len(self))[row]
        return self.read(rows) if isinstance(rows, range) else self.read([rows])[0]

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]


@dataclass(frozen=True)
class Shard:
    """Records `first` to `first + count` of an ArrayRecord file."""

    path: str
    first: int
    count: int


class StoredPictures(LazyPictures):
    """The pictures of a prepared data set, whose records are TensorFlow's `Example`s."""

    def __init__(self, name: str, shards: Sequence[Shard]):
        """Reads nothing; `lengths` and `checksums` are filled in by `scan`.

        Args:
            name: of the data set.
            shards: the files, in the order of the rows.
        """
        self.lengths = np.zeros(sum(shard.count for shard in shards), np.int64)
        self.checksums = np.zeros(len(self.lengths), np.uint32)
        self._name = name
        self._shards = shards
        self._ends = np.cumsum([shard.count for shard in shards])
        # What a row is more than the record's number in its file.
        self._offsets = self._ends - [shard.first + shard.count for shard in shards]
        self._lock = threading.Lock()
        self._readers: dict[int, Any] = {}

    def scan(self) -> Iterator[list[Any]]:
        """All records once, some at a time: what each says of every feature.

        Raises what ArrayRecord does, or ValueError, if a file is damaged.
        """
        row = 0
        for number, shard in enumerate(self._shards):
            reader, end = self._reader(number), shard.first + shard.count
            if reader.num_records() < end:
                raise ValueError(f"{shard.path} holds {reader.num_records()} of {end} records")
            for start in range(shard.first, end, _AT_ONCE):
                features = [_parse(r) for r in reader.read(start, min(start + _AT_ONCE, end))]
                pictures, rows = map(_picture, features), slice(row, row + len(features))
                self.lengths[rows], self.checksums[rows] = zip(
                    *map(_measure, pictures), strict=True
                )
                row += len(features)
                yield features

    def read(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        rows = np.asarray(rows, np.int64)
        numbers = np.searchsorted(self._ends, rows, side="right")
        positions = rows - self._offsets[numbers]
        return [
            self._read(*where)
            for where in zip(rows.tolist(), numbers.tolist(), positions.tolist(), strict=True)
        ]

    def _read(self, row: int, number: int, position: int) -> bytes:
        try:
            # A list of positions, instead of a range of one, takes five times as long.
            (record,) = self._reader(number).read(position, position + 1)
            picture = _picture(_parse(record))
            # What is missing is read as nothing.
            if _measure(picture) != (self.lengths[row], self.checksums[row]):
                raise ValueError("it is not the one that was there")
            return picture
        # ArrayRecord raises whatever comes up.
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise UserError(
                f"picture {row} of {self._name} cannot be read ({reason}): if "
                f"{self._shards[number].path} was changed or moved bring it back, or prepare the "
                "data set again with --overwrite; then run the same command again"
            ) from error

    def _reader(self, number: int) -> Any:
        with self._lock:
            if number not in self._readers:
                from array_record.python.array_record_module import ArrayRecordReader

                path = self._shards[number].path
                self._readers[number] = ArrayRecordReader(path, **_READER_OPTIONS)
            return self._readers[number]

    def __getstate__(self) -> dict[str, Any]:
        # Files are opened again where they are wanted.
        return vars(self) | {"_lock": None, "_readers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class SelectedPictures(LazyPictures):
    """Rows of other pictures, of several sets of them one after the other."""

    def __init__(self, parts: Sequence[tuple[Sequence[bytes], np.ndarray]]):
        """Of pairs of pictures and the rows int [K] that are taken of them."""
        taken = [[column[rows] for column in measure_pictures(whole)] for whole, rows in parts]
        self.lengths, self.checksums = map(np.concatenate, zip(*taken, strict=True))
        self._parts = parts
        self._ends = np.cumsum([len(rows) for _, rows in parts])

    def read(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        rows = np.asarray(rows, np.int64)
        pictures = [b""] * len(rows)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            (whole, taken), asked = self._parts[number], np.flatnonzero(numbers == number)
            own = taken[rows[asked] - (self._ends[number] - len(taken))]
            for place, picture in zip(asked.tolist(), read_pictures(whole, own), strict=True):
                pictures[place] = picture
        return pictures


def read_pictures(pictures: Sequence[bytes], rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """The encoded pictures of the given rows, whether they are in memory or not.

    Raises:
        UserError: one of them cannot be read.
    """
    if isinstance(pictures, LazyPictures):
        return pictures.read(rows)
    return [pictures[row] for row in rows]


def measure_pictures(pictures: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of each picture, int64 [N], and their checksums, uint32 [N]."""
    if isinstance(pictures, LazyPictures):
        return pictures.lengths, pictures.checksums
    measured = [_measure(picture) for picture in pictures]
    lengths, checksums = zip(*measured, strict=True) if measured else ((), ())
    return np.array(lengths, np.int64), np.array(checksums, np.uint32)


def _measure(picture: bytes) -> tuple[int, int]:
    return len(picture), zlib.crc32(picture)


def _parse(record: bytes) -> Any:
    # Parsed here: it takes a quarter of the time that TFDS takes over features we do not want.
    return _example().FromString(record).features.feature


@cache
def _example() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def _picture(feature: Any) -> bytes:
    values = feature["image"].bytes_list.value
    return values[0] if values else b""
