import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from agenet.errors import UserError
from agenet.faces.face import Prediction
from agenet.inference import parquet as parquet_module
from agenet.inference.parquet import ParquetWriter
from agenet.inference.results import COLUMNS, Result
from tests.inference.test_image_files import BrightFaces, picture, rows, run_predict, status


def test_parquet_has_the_rows_and_columns_of_the_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "h\udcff.png", "家族.png"]
    for faces, name in enumerate(names):
        picture(Path(name), faces)
    Path("bad.gif").write_bytes(b"GIF89a")
    assert status(*names, "bad.gif", "--csv=faces.csv", "--parquet=faces.parquet") == 0
    table = parquet.read_table("faces.parquet")
    assert table.column_names == list(COLUMNS)
    found = table.to_pylist()
    assert [row["file"] for row in found] == [
        "=1+1.png",
        "h\\udcff.png",
        *["家族.png"] * 2,
        "bad.gif",
    ]
    assert found[0]["face"] is found[0]["age"] is found[0]["error"] is None
    expected = rows(Path("faces.csv"))
    assert [row["error"] or "" for row in found] == [row["error"] for row in expected]
    for row, text in zip(found, expected, strict=True):
        for column in COLUMNS[1:-1]:
            value = "" if row[column] is None else row[column]
            assert value == (type(value)(text[column])), column
    assert table.schema.field("age_low").type == pa.int32()
    assert table.schema.field("gender_probability").type == pa.float64()


def test_row_groups_bound_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "ROWS", 10)
    with ParquetWriter(tmp_path / "a.parquet", overwrite=False) as writer:
        for number in range(35):
            writer.write(Result(f"{number}.png", (1, 1)))
    with parquet.ParquetFile(tmp_path / "a.parquet") as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [10, 10, 10, 5]


def test_existing_tables_are_kept_until_the_new_one_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, table = picture(tmp_path / "one.png", 1), tmp_path / "faces.parquet"
    table.write_bytes(b"old")
    assert status(one, "--parquet", table) == 1
    assert "exists: name another file, or add --overwrite" in capsys.readouterr().err

    class Looks(BrightFaces):
        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            assert table.read_bytes() == b"old"
            return super().predict(images)

    def fail(*_: object) -> BrightFaces:
        raise UserError("no such weights")

    for load in fail, lambda *_: Looks():
        with pytest.raises(SystemExit):
            run_predict(one, "--parquet", table, "--overwrite", load=load)
        assert (table.read_bytes() == b"old") == (load is fail)
        assert not list(tmp_path.glob(".*"))
    assert parquet.read_table(table).num_rows == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_results_are_kept_when_interrupted(tmp_path: Path, end: type[BaseException]) -> None:
    class Ends(BrightFaces):
        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            raise end

    for number, faces in enumerate([0, 0, 1]):
        picture(tmp_path / "photos" / f"{number}.png", faces)
    output = tmp_path / "faces.parquet"
    with pytest.raises((SystemExit, end)):
        run_predict(tmp_path / "photos", "--parquet", output, load=lambda *_: Ends())
    assert parquet.read_table(output).num_rows == 2


def test_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    random = np.random.default_rng(0)
    writer = ParquetWriter(tmp_path / "a.parquet", overwrite=False)
    for _ in range(2000):
        writer.write(Result(random.bytes(20).hex()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(UserError, match=r"a\.parquet could not be written completely"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = picture(tmp_path / "one.png", 1)
    for arguments, message in (
        (["--parquet=-"], "name a file"),
        (["--parquet=x", "--jsonl=x"], "--jsonl and --parquet name the same file: name two"),
        ([f"--parquet={one}", "--overwrite"], "is an image that is read"),
        ([f"--parquet={tmp_path}/gone/x"], "no such folder"),
    ):
        assert status(one, *arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    with mock.patch.dict(sys.modules, {"pyarrow": None}):
        assert status(one, "--parquet", tmp_path / "x") == 1
    error = capsys.readouterr().err
    assert 'needs the extra "parquet" (pyarrow is not installed)' in error
    assert error.count("\n") == 1
