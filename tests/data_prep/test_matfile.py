import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from agenet.errors import UserError
from data_prep.imdb_wiki import matfile
from data_prep.imdb_wiki.matfile import Matrix, read_matrices
from data_prep.imdb_wiki.matlab import parse_metadata

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def element(kind: int, content: bytes, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    return struct.pack("<II", kind, size) + content + bytes(-len(content) % 8)


def array(kind: int, shape: tuple[int, ...], content: bytes = b"", name: bytes = b"") -> bytes:
    parts = [
        element(6, struct.pack("<II", kind, 0)),
        element(5, struct.pack(f"<{len(shape)}i", *shape)),
        element(1, name),
        content,
    ]
    return element(14, b"".join(parts))


def structure(**fields: bytes) -> bytes:
    names = b"".join(name.encode().ljust(32, b"\0") for name in fields)
    content = element(5, struct.pack("<i", 32)) + element(1, names) + b"".join(fields.values())
    return HEADER + array(2, (1, 1), content, b"wiki")


def fields(data: bytes) -> dict[str, Matrix]:
    (matrix,) = read_matrices(data)
    return matrix.fields()


def saved(table: dict[str, Any], compressed: bool = True) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, {"wiki": table}, do_compression=compressed, oned_as="row")
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_values_are_those_that_scipy_wrote(compressed: bool) -> None:
    kinds = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
    table: dict[str, Any] = {kind: np.arange(3).astype(kind) for kind in kinds}
    table |= {"one": 7.5, "matrix": np.arange(6.0).reshape(2, 3), "bool": np.array([True, False])}
    texts = ["a", "Ωmega", "ascii, longer than eight", ""]
    table["texts"] = np.array(texts, object)
    found = fields(saved(table, compressed))
    for kind in kinds:
        assert found[kind].is_number and found[kind].numbers().tolist() == [0, 1, 2]
    assert found["one"].numbers() == 7.5 and found["bool"].numbers().tolist() == [1, 0]
    assert found["matrix"].shape == (2, 3)
    assert found["matrix"].numbers().tolist() == table["matrix"].T.ravel().tolist()
    assert found["texts"].is_cell and [cell.text() for cell in found["texts"].cells()] == texts
    assert not fields(saved({"complex": np.array([1j])}))["complex"].is_number


def test_big_endian() -> None:
    def word(*values: int) -> bytes:
        return struct.pack(f">{len(values)}I", *values)

    number = word(6, 8, 9, 0, 5, 8, 1, 1, 1, 0) + struct.pack(">II", 2 << 16 | 3, 258 << 16)
    data = HEADER[:126] + b"MI" + word(14, len(number)) + number
    assert next(read_matrices(data)).numbers() == 258


def test_real_metadata_are_those_of_scipy(real_data: Path) -> None:
    data = (real_data / "imdb_wiki" / "wiki.mat").read_bytes()
    expected = scipy.io.loadmat(io.BytesIO(data))["wiki"][0, 0]
    found = parse_metadata(data, "wiki", "wiki.mat")
    for name in ("dob", "photo_taken", "gender", "face_score", "second_face_score"):
        np.testing.assert_array_equal(getattr(found, name), expected[name].ravel())
    for name in ("full_path", "name"):
        texts = [cell.item() if cell.size else "" for cell in expected[name].ravel()]
        assert getattr(found, name) == texts


def bomb(kind: int, *shape: int) -> bytes:
    return structure(full_path=array(kind, shape), name=array(kind, shape))


HUGE = {
    "cells": bomb(1, 1, 2**31 - 1),
    "cells in many dimensions": bomb(1, *[2**31 - 1] * 4),
    "too many dimensions": bomb(1, *[2] * 100_000),
    "numbers": structure(full_path=array(6, (1, 2**31 - 1), element(9, b"8 bytes."))),
    "a claimed size": HEADER + struct.pack("<II", 14, 2**32 - 1),
    "a compressed claim": HEADER + element(15, zlib.compress(struct.pack("<II", 14, 2**32 - 1))),
    "structures": HEADER + array(2, (1, 2**31 - 1), b"", b"wiki"),
    "names of fields": HEADER
    + array(2, (1, 1), element(5, struct.pack("<i", 2**31 - 1)) + element(1, b"abc"), b"wiki"),
    "zeros": HEADER + element(15, zlib.compress(bytes(64 << 20))),
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE)
def test_claims_allocate_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            parse_metadata(data, "wiki", "wiki.mat")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("wiki.mat: ") and "\n" not in str(caught.value)


def test_case_of_a_large_cell_array(real_data: Path) -> None:
    data = (real_data / "cases" / "cells_wiki.mat").read_bytes()
    with pytest.raises(UserError, match="wiki is not one structure"):
        parse_metadata(data, "wiki", "wiki.mat")


def test_damaged_files_are_one_line() -> None:
    table = {"full_path": np.array(["00/a.jpg"] * 40, object), "dob": np.arange(40.0)}
    whole = saved(table, compressed=False)
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        data = data[: rng.integers(len(data) // 2, len(data) + 1)]
        with pytest.raises(UserError) as caught:
            parse_metadata(bytes(data), "wiki", "wiki.mat")
        assert "\n" not in str(caught.value)


def test_limit_grows_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matfile, "_SMALL", 1000)
    data = saved({"dob": np.random.default_rng(0).random(1000)})
    assert fields(data)["dob"].count == 1000
    with pytest.raises(UserError, match="refused, because it holds more than"):
        parse_metadata(saved({"dob": np.zeros(100_000)}), "wiki", "wiki.mat")
