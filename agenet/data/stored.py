"""Encoded images in ArrayRecord files, read on access."""

import threading
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from agenet.data.claims import check_image, check_records
from agenet.errors import UserError

_CHUNK = 256  # records read at a time in a sequential scan
# Images are read one by one in random order, so reading ahead is useless.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 8192}


class LazyImages(Sequence[bytes]):
    """N encoded images that are not in memory. Thread-safe.

    Attributes:
        lengths: int64 [N], size of each image in bytes.
        checksums: uint32 [N], CRC-32 of each image.
    """

    lengths: np.ndarray
    checksums: np.ndarray

    @abstractmethod
    def read(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """The images of the given rows, read together.

        Raises:
            UserError: an image cannot be read.
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
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]


@dataclass(frozen=True)
class Shard:
    """The records from `first` up to but excluding `first + count` of an ArrayRecord file."""

    path: str
    first: int
    count: int


class StoredImages(LazyImages):
    """The images of a prepared data set, whose records are `tf.train.Example` messages."""

    def __init__(self, name: str, shards: Sequence[Shard]):
        """Reads nothing yet; `scan` fills in `lengths` and `checksums`.

        Args:
            name: of the data set, for messages.
            shards: parts of files, in the order of the rows.
        """
        self.lengths = np.zeros(sum(shard.count for shard in shards), np.int64)
        self.checksums = np.zeros(len(self.lengths), np.uint32)
        self._name = name
        self._shards = shards
        self._ends = np.cumsum([shard.count for shard in shards])
        # The difference between a row and the record's number in its file.
        self._offsets = self._ends - [shard.first + shard.count for shard in shards]
        self._lock = threading.Lock()
        self._readers: dict[int, Any] = {}

    def scan(self) -> Iterator[list[Any]]:
        """Reads all records once; yields chunks of their features.

        Raises:
            ValueError: a file is too short, or it or an image claims an unreasonable size.
                ArrayRecord has more errors for damaged files.
        """
        row = 0
        for number, shard in enumerate(self._shards):
            check_records(Path(shard.path))
            reader, end = self._reader(number), shard.first + shard.count
            if reader.num_records() < end:
                raise ValueError(f"{shard.path} holds {reader.num_records()} of {end} records")
            for start in range(shard.first, end, _CHUNK):
                features = [_parse(r) for r in reader.read(start, min(start + _CHUNK, end))]
                images, rows = [*map(_encoded_image, features)], slice(row, row + len(features))
                for offset, image in enumerate(images):
                    check_image(image, row + offset)
                self.lengths[rows], self.checksums[rows] = zip(*map(_measure, images), strict=True)
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
            # Reading a list of positions instead of a range takes five times as long.
            (record,) = self._reader(number).read(position, position + 1)
            image = _encoded_image(_parse(record))
            if _measure(image) != (self.lengths[row], self.checksums[row]):
                raise ValueError("the image has changed")
            return image
        # ArrayRecord raises many kinds of errors for damaged files.
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise UserError(
                f"image {row} of {self._name} cannot be read ({reason}): if "
                f"{self._shards[number].path} was changed or moved, restore it, or prepare the "
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
        # Open files cannot be pickled; they are opened again on access.
        return vars(self) | {"_lock": None, "_readers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class SelectedImages(LazyImages):
    """Selected rows of one or more other sequences of images, concatenated."""

    def __init__(self, parts: Sequence[tuple[Sequence[bytes], np.ndarray]]):
        """From pairs of a sequence of images and the rows int [K] to take from it."""
        taken = [[column[rows] for column in measure_images(whole)] for whole, rows in parts]
        self.lengths, self.checksums = map(np.concatenate, zip(*taken, strict=True))
        self._parts = parts
        self._ends = np.cumsum([len(rows) for _, rows in parts])

    def read(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        rows = np.asarray(rows, np.int64)
        images = [b""] * len(rows)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            (whole, taken), places = self._parts[number], np.flatnonzero(numbers == number)
            own = taken[rows[places] - (self._ends[number] - len(taken))]
            for place, image in zip(places.tolist(), read_images(whole, own), strict=True):
                images[place] = image
        return images


def read_images(images: Sequence[bytes], rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """The encoded images of the given rows, from memory or from files.

    Raises:
        UserError: an image cannot be read.
    """
    if isinstance(images, LazyImages):
        return images.read(rows)
    return [images[row] for row in rows]


def measure_images(images: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The sizes of the images in bytes, int64 [N], and their CRC-32 checksums, uint32 [N]."""
    if isinstance(images, LazyImages):
        return images.lengths, images.checksums
    measured = [_measure(image) for image in images]
    lengths, checksums = zip(*measured, strict=True) if measured else ((), ())
    return np.array(lengths, np.int64), np.array(checksums, np.uint32)


def _measure(image: bytes) -> tuple[int, int]:
    return len(image), zlib.crc32(image)


def _parse(record: bytes) -> Any:
    # Four times as fast as parsing by TFDS, which decodes features that are not needed.
    return _example().FromString(record).features.feature


@cache
def _example() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def _encoded_image(feature: Any) -> bytes:
    values = feature["image"].bytes_list.value
    return values[0] if values else b""
