import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from agenet.data import claims
from agenet.data.claims import check_image, check_records

# As TFDS writes, and as ArrayRecord does by default.
OPTIONS = ["group_size:1", "group_size:65536,brotli:6", "group_size:7,uncompressed"]


def write(path: Path, records: list[bytes], options: str = OPTIONS[0]) -> Path:
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.mark.parametrize("options", OPTIONS)
def test_records_of_any_size(tmp_path: Path, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk is found: the claims of all of them are the sizes of the records."""
    rng = np.random.default_rng(0)
    for i in range(30):
        sizes = rng.integers(0, rng.choice([1, 30, 3000, 70_000]), rng.integers(300), endpoint=True)
        path = write(tmp_path / str(i), [rng.bytes(size) for size in sizes], options)
        check_records(path)
        monkeypatch.setattr(claims, "_SMALL", int(sizes.sum()) - 1 - 20 * path.stat().st_size)
        if sizes.sum():
            with pytest.raises(ValueError, match="claims far more bytes"):
                check_records(path)
        monkeypatch.undo()


def test_records_that_become_far_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "one", [bytes(17 << 20)])
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="one claims far more bytes than it has"):
        check_records(path)
    monkeypatch.setattr(claims, "_SMALL", 1 << 20)
    with pytest.raises(ValueError, match="many claims far more bytes than it has"):
        check_records(write(tmp_path / "many", [bytes(2 << 20)] * 10))


def test_files_without_records(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"x" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file is"):
            check_records(path)


def encoded(suffix: str, width: int = 40, height: int = 30) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def test_images() -> None:
    for suffix in (".jpg", ".png"):
        check_image(encoded(suffix), 3)
    jpeg, png = encoded(".jpg"), encoded(".png")
    start = jpeg.index(b"\xff\xc0")
    large_jpeg = jpeg[: start + 5] + struct.pack(">HH", 65_000, 400) + jpeg[start + 9 :]
    large_png = png[:16] + struct.pack(">II", 1, 100_000_000) + png[24:]
    for image, message in (
        (b"", "image 3 is neither JPEG nor PNG"),
        (b"\xff\xd8", "image 3 is neither JPEG nor PNG"),
        (b"\xff\xd8" + b"\xff" * 2000, "image 3 is neither JPEG nor PNG"),
        (jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :], "image 3 is neither JPEG nor PNG"),
        (encoded(".webp"), "image 3 is neither JPEG nor PNG"),
        (large_jpeg, "image 3 claims 400 x 65000 pixels"),
        (large_png, "image 3 claims 1 x 100000000 pixels"),
        (jpeg + b"\xff\xda" * 100, "image 3 has more than 100 scans"),
    ):
        with pytest.raises(ValueError, match=message):
            check_image(image, 3)
