"""Bounds on what untrusted image files may claim, checked before anything is decoded."""

import re
from collections.abc import Sequence
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

MAX_SIDE = 65_535  # pixels, the most in a JPEG
MAX_PIXELS = 100_000_000  # that are decoded at once, in 4 bytes each
# Their decoders hold three or four copies of the image.
MAX_PIXELS_BY_FORMAT = {"WEBP": 52_000_000, "AVIF": 52_000_000, "HEIF": 52_000_000}
# Files of these formats are read into memory as a whole.
MAX_BYTES, MAX_BYTES_AT_ONCE = 2_000_000_000, 200_000_000
# Pixels in a byte of the file. Deflate repeats at most 1,032 times (zlib's manual), and LZW in GIF
# 3,839 times in 12 bits; a JPEG needs a bit for a block of 8 x 8. The other formats store empty
# areas in next to nothing.
_MAX_PIXELS_PER_BYTE = {"PNG": 8 * 1032, "GIF": 2560, "JPEG": 1024}
_OTHER_PIXELS_PER_BYTE = 200_000
# Progressive JPEG files have up to about 20 scans. Each is a pass over the whole image.
MAX_SCANS = 100
USUAL_SCANS = 20
# For a JPEG in several scans all coefficients are kept, two bytes each, at any reduction.
_MAX_COEFFICIENT_BYTES = 700_000_000

# Not stuffed zeros, restart markers and fill bytes, which occur within a scan (ITU-T T.81, B.1.1).
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE, _START_OF_IMAGE = 0xDA, 0xD9, 0xD8
_CHUNK = 2**16


class RefusedError(Exception):
    """Why an image is refused."""


def check_file(format: str, length: int) -> None:
    """Checks the length of a file in bytes, before Pillow opens it.

    Raises:
        RefusedError: it is too large.
    """
    most = MAX_BYTES_AT_ONCE if format in MAX_PIXELS_BY_FORMAT else MAX_BYTES
    if length > most:
        raise RefusedError(f"a file of {length / 1e9:.1f} GB; {most / 1e9:g} GB are read at most")


def check_size(format: str, size: tuple[int, int], length: int, reduction: int = 1) -> None:
    """Checks the width and height that a file of `length` bytes claims.

    Args:
        format: by Pillow's name.
        size: width and height.
        length: of the file in bytes.
        reduction: the factor by which each side is divided while decoding.

    Raises:
        RefusedError: it is more than is decoded, or more than the file can hold.
    """
    width, height = size
    claimed = f"{width}x{height}"
    if max(size) > MAX_SIDE:
        raise RefusedError(f"{claimed}: a side of more than {MAX_SIDE:,} pixels")
    most = MAX_PIXELS_BY_FORMAT.get(format, MAX_PIXELS)
    if width * height > most * reduction**2:
        advice = "; convert it to JPEG" if format in MAX_PIXELS_BY_FORMAT else ""
        raise RefusedError(f"{claimed}: more than the {most:,} pixels that are decoded{advice}")
    if width * height > length * _MAX_PIXELS_PER_BYTE.get(format, _OTHER_PIXELS_PER_BYTE):
        raise RefusedError(f"damaged or cut short: {length:,} bytes do not hold {claimed} pixels")


def webp_size(head: bytes) -> tuple[int, int] | None:
    """The width and height of a WebP file by its first 30 bytes (RFC 9649); None if damaged.

    Older versions of Pillow create the decoder, with room for two images, before their own check.
    """
    chunk = head[12:16]
    if chunk == b"VP8X" and len(head) >= 30:
        width, height = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if chunk == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(head) >= 30:
        width, height = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
        return width & 0x3FFF, height & 0x3FFF
    return None


def check_scans(
    file: BinaryIO, size: tuple[int, int], layers: Sequence[tuple[int, int, int, int]]
) -> int:
    """Counts the scans of a JPEG file, up to `MAX_SCANS`.

    Args:
        file: is read from its beginning.
        size: width and height.
        layers: the identifier, horizontal and vertical sampling and table of each component.

    Raises:
        RefusedError: there are more, or its coefficients take too much memory.
    """
    scans = _count_scans(file)
    if scans > MAX_SCANS:
        raise RefusedError(f"more than {MAX_SCANS} scans, which no camera and no program writes")
    across, down = (max((layer[at] for layer in layers), default=1) or 1 for at in (1, 2))
    samples = sum(layer[1] * layer[2] for layer in layers) / (across * down)
    if scans > 1 and 2 * samples * size[0] * size[1] > _MAX_COEFFICIENT_BYTES:
        raise RefusedError(f"{size[0]}x{size[1]}: too large for a progressive JPEG; save it anew")
    return scans


def _count_scans(file: BinaryIO) -> int:
    start, scans = 0, 0
    file.seek(0)
    chunk = file.read(_CHUNK)
    position = 0  # in the chunk
    while True:
        marker = _MARKER.search(chunk, position)
        # A marker is followed by its length, but for these two.
        if marker is None or marker.end() + 2 > len(chunk):
            # Reads on, from the marker, or from the last byte: it may be the first of one.
            used = marker.start() if marker else max(len(chunk) - 1, 0)
            start += used
            file.seek(start)
            chunk, position = file.read(_CHUNK), 0
            if len(chunk) < 4:
                return scans
            continue
        code = marker[1][0]
        if code == _END_OF_IMAGE:
            return scans
        position = marker.end()
        if code == _START_OF_IMAGE:
            continue
        scans += code == _START_OF_SCAN
        if scans > MAX_SCANS:
            return scans
        position += max(int.from_bytes(chunk[position : position + 2], "big"), 2)
        if position >= len(chunk):  # beyond a long segment
            start += position
            file.seek(start)
            chunk, position = file.read(_CHUNK), 0


def check_tiles(image: Image.Image) -> None:
    """Checks the size of a TIFF's tiles, of which libtiff decodes one at a time.

    Raises:
        RefusedError: a tile is larger than an image may be.
    """
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 1) for tag in (322, 323))  # TileWidth, TileLength
    if not isinstance(width, int) or not isinstance(height, int) or width * height > MAX_PIXELS:
        raise RefusedError(f"tiles of {width}x{height}: more than {MAX_PIXELS:,} pixels")


def has_wide_samples(file: BinaryIO) -> bool:
    """Whether a TIFF file's samples are wider than those of any kind that Pillow reads."""
    file.seek(0)
    head = file.read(8)
    head += file.read(8) if head[2] == 43 or head[3] == 43 else b""  # BigTIFF
    directory = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(directory.next)
    directory.load(file)
    bits = directory.get(258, 1)  # BitsPerSample
    return max(bits if isinstance(bits, tuple) else [bits]) > 16
