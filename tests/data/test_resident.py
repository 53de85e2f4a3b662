import dataclasses
import re
from collections.abc import Callable
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from agenet.data.decoding import allocate_images, decode_image, load_faces
from agenet.data.records import Records
from agenet.data.resident import ResidentImages
from agenet.distributed.mesh import batch_sharded, create_mesh
from agenet.errors import UserError

SIZE = 20
ROWS = np.array([3, 0, 40, 40, 17, 8, 9, 21, 2, 5, 7, 11, 13, 1, 39, 30])  # 40 is the last one


@pytest.fixture
def records(make_records: Callable[..., Records]) -> Records:
    return make_records(41)  # which eight devices do not divide


def reference(records: Records, rows: np.ndarray) -> np.ndarray:
    decoded = [cv2.imdecode(np.frombuffer(p, np.uint8), cv2.IMREAD_COLOR) for p in records.images]
    return np.stack(decoded)[rows][..., ::-1]


def create(records: Records, *, on_device: bool = True, devices: int = 8, **more) -> ResidentImages:
    mesh = create_mesh(jax.devices()[:devices])
    return ResidentImages(records, size=SIZE, mesh=mesh, on_device=on_device, **more)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("on_device", [True, False])
def test_batches_have_the_requested_rows(records: Records, on_device: bool, devices: int) -> None:
    resident = create(records, on_device=on_device, devices=devices)
    mask = np.arange(16) < 13
    batch = resident.batch(ROWS, mask)
    assert batch.keys() == {"image", "row", "age", "gender", "age_low", "age_high", "mask"}
    assert batch["image"].dtype == np.uint8 and batch["age"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"], reference(records, ROWS))
    for task in ("age", "gender"):
        np.testing.assert_array_equal(batch[task], records.labels[task][ROWS])
    np.testing.assert_array_equal(batch["mask"], mask)
    assert all(len(column.addressable_shards) == devices for column in batch.values())
    assert np.asarray(resident.batch(ROWS)["mask"]).all()
    np.testing.assert_array_equal(batch["row"], ROWS)


def test_load_faces(records: Records) -> None:
    faces = load_faces(records, ROWS[:3], SIZE)
    np.testing.assert_array_equal(faces, reference(records, ROWS[:3]))


def test_no_device_has_a_whole_batch(records: Records) -> None:
    resident = create(records)
    compiled: Any = resident._take.lower(resident._images, ROWS).compile()
    exchanges = re.findall(r"= (\S+?)\{\S* (?:all-|collective-|reduce-)", compiled.as_text())
    assert exchanges == [f"u8[2,{SIZE},{SIZE},3]"]
    share = 2 * SIZE * SIZE * 3
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * share < len(ROWS) * SIZE * SIZE * 3


def test_cpu_devices_share_the_hosts_memory() -> None:
    images = allocate_images(16, 64)
    assert images.shape == (16, 64, 64, 3) and not images.any()
    placed = jax.device_put(images, batch_sharded(create_mesh()))
    for shard in placed.addressable_shards:
        assert shard.data.unsafe_buffer_pointer() == images[shard.index].ctypes.data


def test_broken_images_are_listed(records: Records) -> None:
    images = [*records.images]
    images[7], images[30] = b"", images[30][:40]
    with pytest.raises(UserError, match=r"2 of 41 prepared images do not decode \(rows 7, 30\)"):
        create(dataclasses.replace(records, images=images))


def test_progress(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    create(records, progress=True)
    assert "41/41" in capsys.readouterr().err


RGB = np.zeros((8, 8, 3), np.uint8)
RGB[:4], RGB[4:] = (200, 100, 50), (10, 20, 30)
GREY = np.repeat(RGB[..., :1], 3, axis=-1)
# One entry: orientation 6, a quarter turn clockwise.
TIFF = bytes.fromhex("4d4d002a00000008 0001 0112 0003 00000001 0006 0000 00000000")
EXIF_ROTATED = b"\xff\xe1" + (8 + len(TIFF)).to_bytes(2, "big") + b"Exif\0\0" + TIFF


def png(pixels: np.ndarray) -> bytes:
    """Encodes pixels in OpenCV's order of channels."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def decode(image: bytes, size: int = 8) -> np.ndarray:
    out = np.full((3, size, size, 3), 7, np.uint8)
    assert decode_image(image, out[1])
    assert (out[[0, 2]] == 7).all()
    return out[1]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(png(RGB[..., ::-1]), RGB, id="colour"),
        pytest.param(png(RGB[..., 0]), GREY, id="grey"),
        pytest.param(png(np.dstack([RGB[..., ::-1], RGB[..., 0]])), RGB, id="alpha"),
        pytest.param(png(RGB[..., ::-1].astype(np.uint16) * 257), RGB, id="16 bits"),
        pytest.param(png(RGB[..., 0].astype(np.uint16) * 257), GREY, id="grey, 16 bits"),
    ],
)
def test_image_formats(image: bytes, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(image), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_opencv(channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, channels), np.uint8)
    jpeg = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (5, 5), 0))[1]
    expected = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode(jpeg.tobytes(), 30), expected)
    for size, interpolation in ((47, cv2.INTER_LINEAR), (13, cv2.INTER_AREA)):
        resized = cv2.resize(expected, (size, size), interpolation=interpolation)
        np.testing.assert_array_equal(decode(jpeg.tobytes(), size), resized)


def test_exif_orientation_is_ignored() -> None:
    jpeg = cv2.imencode(".jpg", RGB)[1].tobytes()
    rotated = jpeg[:2] + EXIF_ROTATED + jpeg[2:]
    turned = cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR)
    assert turned[0, 0, 0] < 100 < decode(jpeg)[0, 0, 2]  # OpenCV understands the tag
    np.testing.assert_array_equal(decode(rotated), decode(jpeg))


def test_one_pixel_fills_the_square() -> None:
    assert (decode(png(RGB[:1, :1, ::-1])) == RGB[0, 0]).all()


@pytest.mark.parametrize("tall", [False, True])
def test_the_middle_square_is_kept(tall: bool) -> None:
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = RGB
    expected = RGB
    if tall:
        pixels, expected = pixels.transpose(1, 0, 2), RGB.transpose(1, 0, 2)
    np.testing.assert_array_equal(decode(png(pixels[..., ::-1])), expected)


def test_not_an_image() -> None:
    out = np.zeros((8, 8, 3), np.uint8)
    assert not decode_image(b"", out) and not decode_image(b"GIF89a", out)
