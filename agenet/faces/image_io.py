"""Reads untrusted image files, in bounded time and memory and upright, and writes images."""

import io
import os
import stat
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

# Importing it registers the format; otherwise Pillow loads every plugin it has.
from PIL import WebPImagePlugin as _WebPImagePlugin  # noqa: F401

from agenet.errors import UserError, printable
from agenet.faces.image_formats import FORMATS, advice, sniff
from agenet.faces.image_limits import (
    MAX_PIXELS,
    USUAL_SCANS,
    RefusedError,
    check_file,
    check_scans,
    check_size,
    check_tiles,
    has_wide_samples,
    webp_size,
)
from agenet.files import write_file

FULL_SIZE_PIXELS = 52_000_000  # 156 MB; a larger image is reduced, as little as possible
MAX_SECONDS = 30.0  # for one file; malicious files can take hours to decode

# Longer sides at which half the size is enough to find faces: detectors reduce these images to
# 1,280 px, and only larger ones less.
HALF_IS_ENOUGH = range(2 * 1280, 4096 + 1)

_REDUCTIONS = (1, 2, 4, 8)  # at which JPEG can be decoded
_BAND_PIXELS = 250_000  # that are converted at a time: they stay in the processor's cache
_SMALL_BLOCK = 1024  # bytes
_WRITTEN = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_READ = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC"


class ImageFileError(UserError):
    """An image file that cannot be read or written; `reason` does not repeat its name."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{printable(str(path), 1000)}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class FileImage:
    """An image that was read from a file.

    Attributes:
        pixels: RGB uint8 [H, W, 3], upright.
        size: width and height in the file, upright.
        reduction: the factor by which each side was divided: 1, 2, 4 or 8.
        to_detect: whether that was done to detect faces faster, so that the file shows more.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    reduction: int = 1
    to_detect: bool = False


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file as RGB uint8 [H, W, 3]; see `read_image_file`."""
    return read_image_file(path).pixels


def read_image_file(
    path: str | os.PathLike[str],
    *,
    to_detect: bool = False,
    admit: Callable[[int], object] | None = None,
) -> FileImage:
    """Reads a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC file.

    EXIF orientation is applied. Of an animation the first frame is read, of 16-bit samples the
    upper 8 bits. Transparent pixels are blended with white, as most viewers show them: the colours
    beneath are what the author meant to hide. Embedded colour profiles are not applied. An image of
    more than `FULL_SIZE_PIXELS` is reduced.

    Args:
        path: the file.
        to_detect: reduce to half the size where that is faster and shows detectors as much, see
            `HALF_IS_ENOUGH`.
        admit: is called with the number of pixels before they are decoded, and may wait.

    Raises:
        ImageFileError: the file cannot be opened, is of another format, claims more than
            `agenet.faces.image_limits` allows, takes longer than `MAX_SECONDS`, or is damaged.
    """
    with _errors_of(path, MAX_SECONDS):
        # A named pipe without a writer must not block.
        raw = io.FileIO(path, opener=_open_at_once)
        with _TimedFile(raw, MAX_SECONDS) as file:
            status = os.fstat(raw.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageFileError(path, "neither a file nor a folder")
            return _decode(path, file, status.st_size, to_detect, admit=admit)


def read_image_bytes(
    content: bytes,
    *,
    to_detect: bool = False,
    max_pixels: int | None = None,
    seconds: float = MAX_SECONDS,
    admit: Callable[[int], object] | None = None,
) -> FileImage:
    """Reads the content of an image file; see `read_image_file`.

    Args:
        content: of the file.
        to_detect: see `read_image_file`.
        max_pixels: in the file, where fewer are to be read than `read_image_file` would.
        seconds: that decoding may take.
        admit: see `read_image_file`.

    Raises:
        ImageFileError: as by `read_image_file`, or there are more than `max_pixels`.
    """
    with _errors_of("image", seconds), _TimedFile(io.BytesIO(content), seconds) as file:
        return _decode("image", file, len(content), to_detect, max_pixels, admit)


def name_to_write(path: Path) -> Path:
    """The name under which a copy of an image is written: of HEIC and AVIF the copy is a JPEG."""
    known = FORMATS.get(path.suffix.lower(), "PNG") in _WRITTEN
    return path if known else path.with_name(f"{path.name}.jpg")


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


@contextmanager
def _errors_of(path: str | os.PathLike[str], seconds: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ImageFileError(path, f"not read within {seconds:g} seconds") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path.
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageFileError(path, reason[:1].lower() + reason[1:]) from error


class _TimedFile(io.BufferedReader):
    """Raises `TimeoutError` from reads after some seconds: decoders read in small pieces."""

    def __init__(self, raw: io.FileIO | io.BytesIO, seconds: float) -> None:
        super().__init__(raw)
        self._deadline = time.monotonic() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return super().read(size)

    def wait(self, admit: Callable[[int], object], pixels: int) -> None:
        """Calls `admit`, whose time does not count."""
        began = time.monotonic()
        admit(pixels)
        self._deadline += time.monotonic() - began


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(
    path: str | os.PathLike[str],
    file: _TimedFile,
    length: int,
    to_detect: bool,
    max_pixels: int | None = None,
    admit: Callable[[int], object] | None = None,
) -> FileImage:
    if length == 0:
        raise ImageFileError(path, "empty file")
    try:
        head = file.read(64)
        found = sniff(head)
        _check_head(found, head, length)
        file.seek(0)
        with warnings.catch_warnings():
            # About metadata, and about sizes that are checked here.
            warnings.simplefilter("ignore")
            with _open(file, found) as image:
                size = image.size
                if max_pixels is not None and size[0] * size[1] > max_pixels:
                    raise RefusedError(f"{size[0]}x{size[1]}: more than {max_pixels:,} pixels")
                least = _least_reduction(image)
                to_detect = to_detect and _is_jpeg(image) and max(size) in HALF_IS_ENOUGH
                reduction = max(least, 2) if to_detect else least
                _check(image, file, length, reduction)
                if admit:
                    file.wait(admit, image.size[0] * image.size[1])
                pixels = _load(image, 1 if image.size != size else reduction)
                orientation = _orientation(image)
        del image  # Its memory is needed for the upright copy.
        turned = size[::-1] if orientation in (5, 6, 7, 8) else size
        return FileImage(_upright(pixels, orientation), turned, reduction, to_detect)
    except UnidentifiedImageError as error:
        raise ImageFileError(path, f"not a {_READ} image, or damaged at its beginning") from error
    except Image.DecompressionBombError as error:
        raise ImageFileError(
            path, f"more than the {MAX_PIXELS:,} pixels that are decoded"
        ) from error
    except RefusedError as error:
        raise ImageFileError(path, str(error)) from error
    except MemoryError as error:
        raise ImageFileError(path, "too large for this machine's memory") from error
    except Exception as error:  # Pillow raises errors of any type for damaged files.
        if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno):
            raise
        raise ImageFileError(path, "damaged or cut short") from error


def _check_head(found: str, head: bytes, length: int) -> None:
    """Refuses what Pillow must not open."""
    if found not in FORMATS.values():
        raise RefusedError(found) if found else UnidentifiedImageError
    if what := advice(found):
        raise RefusedError(f"an image in {found} format: {what}")
    check_file(found, length)
    if found == "WEBP" and (size := webp_size(head)):
        check_size(found, size, length)


def _open(file: _TimedFile, format: str) -> ImageFile.ImageFile:
    if format == "JPEG":
        # Image.open would refuse sizes that are read at an eighth.
        try:
            return JpegImagePlugin.jpeg_factory(file)
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as error:
            raise UnidentifiedImageError from error
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif format == "AVIF":
        import_module("PIL.AvifImagePlugin")
    try:
        return Image.open(file, formats=[format])
    except UnidentifiedImageError:
        if format == "TIFF" and has_wide_samples(file):
            raise RefusedError("32 bits per sample; convert it to 8") from None
        raise


def _least_reduction(image: ImageFile.ImageFile) -> int:
    """The factor by which an image must be reduced."""
    pixels = image.size[0] * image.size[1]
    factors = _REDUCTIONS if _is_jpeg(image) else _REDUCTIONS[:2]
    return next((r for r in factors if pixels <= FULL_SIZE_PIXELS * r * r), factors[-1])


def _check(image: ImageFile.ImageFile, file: _TimedFile, length: int, reduction: int) -> None:
    """Checks what an image that is open claims, and lets a JPEG be reduced in decoding."""
    if not _is_jpeg(image):
        check_size(image.format or "", image.size, length)
        check_tiles(image)
        return
    check_size("JPEG", image.size, length, reduction)
    if check_scans(file, image.size, image.layer) > USUAL_SCANS:
        image.decodermaxblock = _SMALL_BLOCK  # A block that is read takes little time then.
    width, height = (max(side // reduction, 1) for side in image.size)
    image.draft(None, (width, height))


def _is_jpeg(image: ImageFile.ImageFile) -> TypeGuard[JpegImagePlugin.JpegImageFile]:
    return isinstance(image, JpegImagePlugin.JpegImageFile)


def _load(image: Image.Image, reduction: int) -> np.ndarray:
    """The image as RGB before EXIF orientation, reduced further."""
    image.load()
    if image.mode in ("I", "F"):
        raise RefusedError("32 bits per sample; convert it to 8")
    width, height = image.size
    # In bands, whose copies take little memory.
    rows = max(_BAND_PIXELS // width // reduction, 1) * reduction
    pixels = np.empty((-(-height // reduction), -(-width // reduction), 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image if rows >= height else image.crop((0, top, width, bottom))
        pixels[top // reduction : -(-bottom // reduction)] = np.asarray(_rgb(band, reduction))
    return pixels


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


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF orientation (Exif 2.32, tag 0x0112) to an image [H, W, 3]."""
    import cv2  # Here, so that a mistyped command line need not wait for it.

    if orientation == 2:
        return cv2.flip(pixels, 1)
    if orientation == 3:
        return cv2.rotate(pixels, cv2.ROTATE_180)
    if orientation == 4:
        return cv2.flip(pixels, 0)
    if orientation == 5:
        return cv2.transpose(pixels)
    if orientation == 6:
        return cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
    if orientation == 7:
        return cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
    if orientation == 8:
        return cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return pixels
