import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agenet.faces import image_io
from agenet.faces.image_io import ImageFileError, read_image, read_image_reduced, write_image

# Red and blue above, green and white below, in whole blocks of JPEG; 48 wide, 32 high.
COLOURS = [[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [255, 255, 255]]]
IMAGE = np.kron(np.array(COLOURS, np.uint8), np.ones((16, 24, 1), np.uint8))
LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}


def save(path: Path, image: Image.Image, format: str, **options: object) -> Path:
    image.save(path, format, **LOSSLESS.get(format, {}), **options)
    return path


def refusal(path: str | os.PathLike[str]) -> str:
    with pytest.raises(ImageFileError) as refused:
        read_image(path)
    assert str(refused.value).endswith(refused.value.reason)
    assert "\n" not in str(refused.value)
    return refused.value.reason


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return begin + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_format_is_detected_from_content(tmp_path: Path, format: str) -> None:
    image = read_image(save(tmp_path / "name.data", Image.fromarray(IMAGE), format))
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_allclose(image.astype(int), IMAGE, atol=3 if format == "JPEG" else 0)


# What the orientation says was done to the upright image (Exif 2.32, tag 0x0112).
STORED = {
    1: IMAGE,
    2: IMAGE[:, ::-1],
    3: IMAGE[::-1, ::-1],
    4: IMAGE[::-1],
    5: IMAGE.swapaxes(0, 1),
    6: np.rot90(IMAGE),
    7: np.rot90(IMAGE, 2).swapaxes(0, 1),
    8: np.rot90(IMAGE, -1),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    image = read_image(save(tmp_path / "turned", stored, format, exif=exif))
    assert image.shape == IMAGE.shape
    inside = image[8::16, 12::24].astype(int)
    np.testing.assert_allclose(inside, IMAGE[8::16, 12::24], atol=3)


def test_sample_formats(tmp_path: Path) -> None:
    picture = Image.fromarray(IMAGE)
    # Pillow writes CMYK as Adobe's programs do: inverted.
    for image, format in (
        (picture.convert("CMYK"), "JPEG"),
        (picture.convert("CMYK"), "TIFF"),
        (picture.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    ):
        read = read_image(save(tmp_path / "picture", image, format)).astype(int)
        np.testing.assert_allclose(read, IMAGE, atol=3)
    grey = np.asarray(picture.convert("L"))
    for image in (Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        for format in ("PNG", "TIFF"):
            read = read_image(save(tmp_path / "grey", image, format))
            np.testing.assert_array_equal(read, np.stack([grey] * 3, axis=-1))
    read = read_image(save(tmp_path / "bits", Image.new("1", (3, 2), 1), "PNG"))
    np.testing.assert_array_equal(read, np.full((2, 3, 3), 255))
    floats = save(tmp_path / "floats", Image.new("F", (3, 2)), "TIFF")
    assert "32 bits" in refusal(floats)


def test_transparency_is_blended_with_white(tmp_path: Path) -> None:
    opacity = np.repeat([[0], [0], [255], [51]], 48, axis=1).repeat(8, axis=0)
    cut_out = Image.fromarray(np.dstack([IMAGE, opacity.astype(np.uint8)]))
    for format in ("PNG", "WEBP"):
        read = read_image(save(tmp_path / "cut_out", cut_out, format, exact=True))
        np.testing.assert_array_equal(read[:16], 255)
        np.testing.assert_array_equal(read[16, 0], [0, 255, 0])
        np.testing.assert_array_equal(read[24, 0], [204, 255, 204])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    for format in ("PNG", "GIF"):
        read = read_image(save(tmp_path / "palette", palette, format, transparency=1))
        np.testing.assert_array_equal(read, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "clip", frames[0], format, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


def test_one_pixel(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "pixel", Image.new("L", (1, 1)), "JPEG")).shape == (1, 1, 3)


def test_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    for width, height in ((10_000, 10_001), (2**31 - 1, 2**31 - 1)):
        path.write_bytes(png(width, height))
        assert "more than the 100,000,000 pixels" in refusal(path)
    path.write_bytes(png(5_000, 5_000))
    assert refusal(path) == "damaged or cut short"
    monkeypatch.setattr(image_io, "FULL_SIZE_PIXELS", 47 * 32)
    for format in ("JPEG", "PNG", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = Image.fromarray(np.ascontiguousarray(STORED[6]))
        image, reduction = read_image_reduced(save(tmp_path / "large", stored, format, exif=exif))
        assert reduction == 2
        np.testing.assert_allclose(image.astype(int), IMAGE[::2, ::2], atol=3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_damaged_files(tmp_path: Path, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    whole = save(tmp_path / "whole", Image.fromarray(noise), format).read_bytes()
    path = tmp_path / "part"
    for length in (1, 8, len(whole) // 4, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(path)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "odd", Image.fromarray(IMAGE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff")
    assert read_image(path).shape == IMAGE.shape


def test_files_that_are_not_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.jpg"
    assert refusal(path) == "no such file or directory"
    assert refusal(tmp_path) == "is a directory"
    path.write_bytes(b"")
    assert refusal(path) == "empty file"
    path.write_text("no picture")
    assert refusal(path).startswith("not a JPEG, PNG")
    Image.new("L", (8, 8)).save(path, "PPM")
    assert refusal(path).startswith("not a JPEG, PNG")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == refusal(os.devnull) == "neither a file nor a folder"
    assert refusal("zero\0byte") == "embedded null byte"
    Image.new("L", (8, 8)).save(path, "PNG")
    path.chmod(0)
    if os.access(path, os.R_OK):  # Nothing is forbidden to root.
        monkeypatch.setattr(os, "open", _forbidden)
    assert refusal(path) == "permission denied"


def _forbidden(path: str, flags: int) -> int:
    raise PermissionError(13, os.strerror(13), path)


def test_decoding_time_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fill bytes before a marker; each is read by itself.
    path = tmp_path / "slow.jpg"
    path.write_bytes(b"\xff\xd8" + b"\xff" * 10_000_000)
    monkeypatch.setattr(image_io, "MAX_SECONDS", 0.1)
    began = time.monotonic()
    assert refusal(path) == "not read within 0.1 seconds"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a.webp", "a.bmp", "a.tiff", "a.gif", "a"])
def test_image_is_written_in_format_of_suffix(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    write_image(path, IMAGE)
    with Image.open(path) as image:
        assert image.format == image_io.FORMATS.get(path.suffix.lower(), "PNG")
    inside = read_image(path)[8::16, 12::24].astype(int)
    np.testing.assert_allclose(inside, IMAGE[8::16, 12::24], atol=6)
    assert list(tmp_path.iterdir()) == [path]


def test_image_too_large_for_format(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="a WEBP file cannot hold it"):
        write_image(tmp_path / "wide.webp", np.zeros((1, 17_000, 3), np.uint8))
    assert not list(tmp_path.iterdir())
