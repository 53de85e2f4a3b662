from pathlib import Path

import cv2
import numpy as np

from data_prep.images import MAX_PIXELS, MAX_SCANS, MAX_STORED_BYTES, encode_for_storage, jpeg_size


def noise_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def test_small_image_is_stored_unchanged_and_large_one_resized() -> None:
    small, large = noise_jpeg(256, 300), noise_jpeg(512, 640)
    assert jpeg_size(small) == (256, 300)
    assert encode_for_storage(small, 256) is small
    assert encode_for_storage(large, None) is large
    shrunk = encode_for_storage(large, 256)
    assert shrunk is not None and jpeg_size(shrunk) == (256, 320)
    grey = cv2.imencode(".jpg", np.full((40, 40), 99, np.uint8))[1].tobytes()
    assert encode_for_storage(grey, 256) is grey


def test_exif_orientation_is_ignored() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    plain = noise_jpeg(300, 400)
    turned = plain[:2] + segment + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (300, 400)
    assert encode_for_storage(turned, 256) == encode_for_storage(plain, 256)


def test_images_that_cannot_be_decoded() -> None:
    jpeg = noise_jpeg(64, 64)
    start_of_frame = jpeg.index(b"\xff\xc0")
    side = (int(MAX_PIXELS**0.5) + 1).to_bytes(2, "big")
    huge = jpeg[: start_of_frame + 5] + side + side + jpeg[start_of_frame + 9 :]
    assert jpeg_size(huge) == (5001, 5001)
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    no_tables = (
        jpeg[:2] + jpeg[start_of_frame : start_of_frame + 19] + jpeg[jpeg.index(b"\xff\xda") :]
    )
    scans = jpeg[:-2] + b"\xff\xda" * MAX_SCANS + jpeg[-2:]
    segments = jpeg[:2] + b"\xff\xfe\x00\x02" * 2000 + jpeg[2:]
    assert jpeg_size(jpeg[:2] + b"\xff" * 50 + jpeg[2:]) == (64, 64)
    padding = (b"\xff\xfe\xff\xff" + bytes(0xFFFD)) * 200
    assert len(padding) > MAX_STORED_BYTES
    for data in (
        jpeg[:2] + padding + jpeg[2:],
        scans,
        segments,
        jpeg[:2] + b"\xff" * 2000 + jpeg[2:],
    ):
        assert encode_for_storage(data, 256) is None
    for data in (huge, png, no_tables, jpeg[: len(jpeg) // 2], jpeg[:-2], jpeg[:3], b"", b"text"):
        assert encode_for_storage(data, 256) is None


def test_case_of_many_scans(real_data: Path) -> None:
    assert encode_for_storage((real_data / "cases" / "h_prog_scans.jpg").read_bytes(), 256) is None
