"""Checks what files of a prepared data set claim, before they are decompressed, decoded or used."""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agenet.labels import AGE_GROUPS, AGE_LABELS, GENDERS, RACES, UNKNOWN

MAX_PIXELS = 25_000_000  # of an image; preparation stores no larger ones
_MAX_SCANS = 100  # of a progressive JPEG file, each of which decodes the whole image
_MAX_CHUNK_BYTES = 16 << 20  # of a record; preparation stores images of some 10 kB
# Decompressed, of a whole file: images hardly compress.
_SMALL, _MAX_RATIO = 1 << 26, 20

# "Riegeli/records file format specification", the format of ArrayRecord files: chunks, through
# which the headers of blocks run.
_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<8xQ8xQQ")  # bytes, type and number of records, bytes decompressed

_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA

# The largest value of each label; the smallest is -1, unknown.
_LARGEST = {
    **{f"age_{labels}": len(AGE_GROUPS) - 1 for labels in AGE_LABELS},
    **{"age_low": 1000, "age_high": 1000},
    "gender": len(GENDERS) - 1,
    "race": len(RACES) - 1,
    "subject_id": 2**63 - 2**24,  # `join_records` adds to it.
}


def check_labels(arrays: Mapping[str, np.ndarray]) -> None:
    """Checks the labels of N images, int64 [N] for each feature.

    Raises:
        ValueError: one is neither known nor unknown.
    """
    for column, values in arrays.items():
        wrong = np.flatnonzero((values < UNKNOWN) | (values > _LARGEST[column]))
        if len(wrong):
            raise ValueError(f"row {wrong[0]} has the {column} {values[wrong[0]]}")
    crossed = np.flatnonzero(arrays["age_low"] > arrays["age_high"])
    if len(crossed):
        raise ValueError(f"row {crossed[0]} has an age_low above its age_high")


def check_records(path: Path) -> None:
    """Checks the sizes that the chunks of an ArrayRecord file claim to have decompressed.

    Raises:
        ValueError: one or all are too large, or the file is damaged.
        OSError: it cannot be read.
    """
    if not path.is_file():  # A pipe would be waited for.
        raise ValueError(f"{path.name} is missing or not a file")
    with path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise ValueError(f"{path.name} is empty")
        left = _SMALL + _MAX_RATIO * size
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = 0
            while start < size:
                header, position = _read(data, start, _CHUNK_HEADER.size)
                if len(header) < _CHUNK_HEADER.size:
                    raise ValueError(f"{path.name} is cut short")
                length, kind, claimed = _CHUNK_HEADER.unpack(header)
                left -= claimed
                if claimed > _MAX_CHUNK_BYTES or left < 0:
                    raise ValueError(f"{path.name} claims far more bytes than it has")
                # A chunk takes at least as many bytes as it has records.
                start = max(_skip(position, length), start + (kind >> 8))
                if 0 < start % _BLOCK <= _BLOCK_HEADER:
                    start += _BLOCK_HEADER + 1 - start % _BLOCK


def _read(data: mmap.mmap, position: int, length: int) -> tuple[bytes, int]:
    """Bytes from a position on without headers of blocks, and the position after them."""
    end = _skip(position, length)
    if position % _BLOCK == 0:
        position += _BLOCK_HEADER
    boundary = position - position % _BLOCK + _BLOCK
    if end <= boundary:
        return data[position:end], end
    return data[position:boundary] + data[boundary + _BLOCK_HEADER : end], end


def _skip(position: int, length: int) -> int:
    """The position after `length` bytes that are not in headers of blocks."""
    if not length:
        return position
    offset = max(position % _BLOCK, _BLOCK_HEADER)
    blocks, last = divmod(offset - _BLOCK_HEADER + length, _BLOCK - _BLOCK_HEADER)
    start = position - position % _BLOCK + blocks * _BLOCK
    return start + _BLOCK_HEADER + last if last else start


def check_image(encoded: bytes, row: int) -> None:
    """Checks that the image of a row is JPEG or PNG, and takes little time and memory to decode.

    Raises:
        ValueError: it is not, or does not.
    """
    if encoded.startswith(b"\x89PNG\r\n\x1a\n") and len(encoded) > 24:
        width, height = struct.unpack_from(">II", encoded, 16)
    elif encoded.startswith(b"\xff\xd8"):
        width, height = _jpeg_size(encoded)
    else:
        width = height = 0
    if not width * height:
        raise ValueError(f"image {row} is neither JPEG nor PNG")
    if width * height > MAX_PIXELS:
        raise ValueError(f"image {row} claims {width} x {height} pixels")
    if encoded.count(b"\xff\xda") > _MAX_SCANS:
        raise ValueError(f"image {row} has more than {_MAX_SCANS} scans")


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of a JPEG file by its header (ITU-T T.81, annex B); zeros if it has none."""
    position = 2
    for _ in range(1000):
        if encoded[position : position + 1] != b"\xff" or position + 9 > len(encoded):
            break
        marker = encoded[position + 1]
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", encoded, position + 5)
            return width, height
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == _START_OF_SCAN:
            break
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return 0, 0
