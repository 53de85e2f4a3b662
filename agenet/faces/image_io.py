"""Reads untrusted image files, in bounded time and memory and upright, and writes images."""

import io
import os
import stat
import time
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

# Importing these registers their formats; otherwise Pillow loads every plugin it has.
from PIL import TiffImagePlugin as _TiffImagePlugin  # noqa: F401
from PIL import WebPImagePlugin as _WebPImagePlugin  # noqa: F401

from agenet.errors import UserError, printable
from agenet.files import write_file

MAX_PIXELS = 100_000_000  # claimed by the header; more is not decoded
FULL_SIZE_PIXELS = 25_000_000  # 75 MB; a larger image is reduced to half its size
MAX_SECONDS = 30.0  # for one file; malicious files can take hours to decode

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
}

_OPENED = tuple(sorted(set(FORMATS.values())))
_TOO_MANY = f"more than the {MAX_PIXELS:,} pixels that are decoded"
_TRANSPOSE_BY_ORIENTATION = {  # Exif 2.32, tag 0x0112
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFileError(UserError):
    """An image file that cannot be read or written; `reason` does not repeat its name."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{printable(str(path), 1000)}: {reason}")
        self.reason = reason


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a JPEG, PNG, WebP, BMP, TIFF or GIF file as RGB uint8 [H, W, 3].

    EXIF orientation is applied. Of an animation the first frame is read, of 16-bit samples the
    upper 8 bits. Transparent pixels are blended with white, as most viewers show them: the colours
    beneath are what the author meant to hide. Embedded colour profiles are not applied. An image of
    more than `FULL_SIZE_PIXELS` is reduced to half its size.

    Raises:
        ImageFileError: the file cannot be opened, is of another format, is larger than
            `MAX_PIXELS`, takes longer than `MAX_SECONDS`, or is damaged or truncated.
    """
    return read_image_reduced(path)[0]


def read_image_reduced(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Like `read_image`; also returns the factor that each side was divided by: 1 or 2."""
    try:
        # A named pipe without a writer must not block.
        with io.BufferedReader(_TimedFile(path, opener=_open_at_once)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageFileError(path, "neither a file nor a folder")
            if status.st_size == 0:
                raise ImageFileError(path, "empty file")
            return _decode(path, file)
    except TimeoutError as error:
        raise ImageFileError(path, f"not read within {MAX_SECONDS:g} seconds") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path.
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageFileError(path, reason[:1].lower() + reason[1:]) from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an RGB image uint8 [H, W, 3] in the format of the path's suffix, by default PNG.

    The file is written atomically and replaces an existing one.

    Raises:
        ImageFileError: the format does not support this image.
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    format = FORMATS.get(path.suffix.lower(), "PNG")
    options: dict[str, Any] = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    try:
        Image.fromarray(image).save(content, format, **options)
    except (OSError, ValueError) as error:
        raise ImageFileError(path, f"a {format} file cannot hold it") from error
    write_file(path, content.getvalue())


class _RefusedError(Exception):
    """Why an image is refused."""


class _TimedFile(io.FileIO):
    """Raises `TimeoutError` from reads after `MAX_SECONDS`: decoders read in small pieces."""

    _deadline = 0.0

    def readinto(self, buffer: Any, /) -> int | None:
        self._deadline = self._deadline or time.monotonic() + MAX_SECONDS
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return super().readinto(buffer)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(path: str | os.PathLike[str], file: BinaryIO) -> tuple[np.ndarray, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # About metadata, and about sizes that are checked here.
            with Image.open(file, formats=_OPENED) as image:
                rgb, reduction = _load(image)
                upright = _TRANSPOSE_BY_ORIENTATION.get(_orientation(image))
            return np.array(rgb if upright is None else rgb.transpose(upright)), reduction
    except UnidentifiedImageError as error:
        reason = "not a JPEG, PNG, WebP, BMP, TIFF or GIF image, or damaged at its beginning"
        raise ImageFileError(path, reason) from error
    except (_RefusedError, Image.DecompressionBombError) as error:
        reason = str(error) if isinstance(error, _RefusedError) else _TOO_MANY
        raise ImageFileError(path, reason) from error
    except MemoryError as error:
        raise ImageFileError(path, "too large for this machine's memory") from error
    except Exception as error:  # Pillow raises errors of any type for damaged files.
        if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno):
            raise
        raise ImageFileError(path, "damaged or cut short") from error


def _load(image: Image.Image) -> tuple[Image.Image, int]:
    """The image as RGB before EXIF orientation, and its reduction factor."""
    width, height = size = image.size
    if width * height > MAX_PIXELS:
        raise _RefusedError(f"{width}x{height}: {_TOO_MANY}")
    reduction = 1 if width * height <= FULL_SIZE_PIXELS else 2
    if reduction > 1:
        image.draft(None, (width // reduction, height // reduction))  # Only JPEG can.
    left = reduction if image.size == size else 1
    image.load()
    if image.mode in ("I", "F"):
        raise _RefusedError("32 bits per sample; convert it to 8")
    return _rgb(image, left), reduction


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # As above; the image may be fine where its EXIF data are damaged.
        return 1


def _rgb(image: Image.Image, reduction: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if reduction > 1:
        image = image.reduce(reduction)
    if mode == "RGB":
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white
