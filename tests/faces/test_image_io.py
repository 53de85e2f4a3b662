import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from agenet.faces import image_formats, image_io, image_limits
from agenet.faces.image_io import (
    ImageFileError,
    name_to_write,
    read_image,
    read_image_file,
    write_image,
)

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
    path.write_bytes(png(1, 70_000))
    assert refusal(path) == "1x70000: a side of more than 65,535 pixels"
    path.write_bytes(png(5_000, 5_000))
    assert refusal(path) == "damaged or cut short: 69 bytes do not hold 5000x5000 pixels"
    path.write_bytes(png(300, 200))
    assert refusal(path) == "damaged or cut short"
    monkeypatch.setattr(image_io, "FULL_SIZE_PIXELS", 47 * 32)
    for format in ("JPEG", "PNG", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = Image.fromarray(np.ascontiguousarray(STORED[6]))
        read = read_image_file(save(tmp_path / "large", stored, format, exif=exif))
        assert (read.reduction, read.size, read.to_detect) == (2, (48, 32), False)
        np.testing.assert_allclose(read.pixels.astype(int), IMAGE[::2, ::2], atol=3)


def test_largest_jpeg_files_are_decoded_at_an_eighth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "large", Image.fromarray(IMAGE).resize((101, 67)), "JPEG")
    for pixels, reduction in ((101 * 67, 1), (1700, 2), (1600, 4), (106, 8)):
        monkeypatch.setattr(image_io, "FULL_SIZE_PIXELS", pixels)
        read = read_image_file(path)
        assert (read.reduction, read.size) == (reduction, (101, 67))
        assert read.pixels.shape == (-(-67 // reduction), -(-101 // reduction), 3)
    monkeypatch.setattr(image_limits, "MAX_PIXELS", 105)
    assert "101x67: more than the 105 pixels" in refusal(path)


def test_bands_give_the_same_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    for mode in ("RGB", "RGBA", "L", "P"):
        path = save(tmp_path / "noise", Image.fromarray(noise).convert(mode), "PNG")
        for pixels in (10**9, 23 * 36):
            monkeypatch.setattr(image_io, "FULL_SIZE_PIXELS", pixels)
            monkeypatch.setattr(image_io, "_BAND_PIXELS", 10**9)
            whole = read_image(path)
            monkeypatch.setattr(image_io, "_BAND_PIXELS", 23 * 5)
            np.testing.assert_array_equal(read_image(path), whole)


def test_half_the_size_is_read_to_detect(tmp_path: Path) -> None:
    for side, format, reduction in (
        (2559, "JPEG", 1),
        (2560, "JPEG", 2),
        (4096, "JPEG", 2),
        (4097, "JPEG", 1),
        (4000, "PNG", 1),
    ):
        path = save(tmp_path / "photo", Image.new("L", (9, side)), format)
        read = read_image_file(path, to_detect=True)
        assert (read.reduction, read.size) == (reduction, (9, side))
        assert read.to_detect is (reduction == 2)
        assert read_image_file(path).reduction == 1


def test_webp_size_is_checked_before_the_decoder_is_created(tmp_path: Path) -> None:
    for options in ({"lossless": True}, {"lossless": False}, {"exif": b"Exif\0\0"}):
        path = tmp_path / "image.webp"
        Image.new("RGB", (501, 307)).save(path, **options)
        assert image_limits.webp_size(path.read_bytes()[:30]) == (501, 307)
    header = b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2
    path.write_bytes(header + bytes(200))
    assert "16384x16384: more than the 52,000,000 pixels" in refusal(path)


def test_length_of_files_that_are_read_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "long", Image.fromarray(IMAGE), "WEBP")
    with path.open("ab") as file:
        file.truncate(10**9)  # without taking space
    assert refusal(path) == "a file of 1.0 GB; 0.2 GB are read at most"


def scans_of(path: Path) -> list[bytes]:
    """The parts of a progressive JPEG file: what is before its last scan, that scan, its end."""
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    return [content[:last], content[last:-2], content[-2:]]


def test_scans_of_jpeg_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.fromarray(IMAGE)
    path = save(tmp_path / "usual.jpg", photo, "JPEG", progressive=True)
    before, scan, end = scans_of(path)
    with path.open("rb") as file:
        assert image_limits.check_scans(file, photo.size, []) == before.count(b"\xff\xda") + 1
    # Segments and trailing data may contain the marker; in a scan it is no other byte.
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 400) + b"\xff\xda\0\x04" * 100
    path.write_bytes(before[:2] + thumbnail + before[2:] + scan + end + b"\xff\xda" * 400)
    np.testing.assert_allclose(read_image(path).astype(int), IMAGE, atol=3)
    for segment in (b"", b"\xff\xe1" + struct.pack(">H", 65_535) + bytes(65_533), thumbnail):
        path.write_bytes(before + segment + scan * 20_000 + end)
        assert refusal(path).startswith("more than 100 scans")
    monkeypatch.setattr(image_limits, "_MAX_COEFFICIENT_BYTES", 2 * 3 * photo.width * photo.height)
    save(path, photo, "JPEG", progressive=True)
    assert read_image(path).shape == IMAGE.shape
    monkeypatch.setattr(image_limits, "_MAX_COEFFICIENT_BYTES", 2 * 3 * photo.width * 31)
    assert "too large for a progressive JPEG" in refusal(path)
    assert read_image(save(path, photo, "JPEG")).shape == IMAGE.shape


def test_time_is_looked_at_between_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "slow.jpg", Image.fromarray(IMAGE), "JPEG", progressive=True)
    before, scan, end = scans_of(path)
    path.write_bytes(before + scan * 40 + end)
    times = iter(range(10**6))
    monkeypatch.setattr(image_io.time, "monotonic", lambda: 0.1 * next(times))
    assert read_image(path).shape == IMAGE.shape
    reads = next(times)
    assert reads > path.stat().st_size / 1024
    monkeypatch.setattr(image_io, "MAX_SECONDS", 0.1 * (reads - 3))
    assert "not read within" in refusal(path)


def test_tiff_samples_and_tiles(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    cv2.imwrite(str(path), IMAGE.astype(np.float32))
    assert refusal(path) == "32 bits per sample; convert it to 8"
    Image.fromarray(IMAGE).save(path)
    with Image.open(path) as image:
        image_limits.check_tiles(image)
        image.tag_v2[322] = image.tag_v2[323] = 30_000
        with pytest.raises(image_limits.RefusedError, match="tiles of 30000x30000: more than"):
            image_limits.check_tiles(image)


def test_two_images_in_one_file(tmp_path: Path) -> None:
    first, second = Image.fromarray(IMAGE), Image.new("RGB", (48, 32))
    path = save(tmp_path / "stereo.mpo", first, "MPO", save_all=True, append_images=[second])
    inside = read_image(path)[4::24, 4::36]
    np.testing.assert_allclose(inside.astype(int), COLOURS, atol=4)


def test_avif_and_heic(tmp_path: Path, real_data: Path) -> None:
    path = tmp_path / "photo.avif"
    Image.fromarray(IMAGE).resize((96, 64), Image.Resampling.NEAREST).save(path, quality=95)
    np.testing.assert_allclose(read_image(path)[16::32, 24::48], COLOURS, atol=9)
    assert name_to_write(path).name == "photo.avif.jpg"
    assert name_to_write(tmp_path / "photo.mpo").name == "photo.mpo"
    heic = real_data / "cases" / "photo.heic"
    if image_formats.advice("HEIF"):
        assert refusal(heic).endswith("pip install pillow-heif, or convert to JPEG")
        pytest.skip("pillow-heif is not installed")
    photo = read_image(real_data / "media" / "astronaut.png")
    read = read_image(heic)
    assert read.shape[2] == 3 and abs(read.mean() - photo.mean()) < 9


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


def test_waiting_to_be_admitted_does_not_count_as_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (2600, 90)).save(path)
    monkeypatch.setattr(image_io, "MAX_SECONDS", 0.3)
    asked: list[int] = []

    def admit(pixels: int) -> None:
        asked.append(pixels)
        time.sleep(0.5)

    assert read_image_file(path, to_detect=True, admit=admit).pixels.shape == (45, 1300, 3)
    assert read_image_file(path, admit=admit).pixels.shape == (90, 2600, 3)
    assert asked == [1300 * 45, 2600 * 90]
