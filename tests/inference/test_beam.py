"""Needs the extra "beam", in an environment of its own: elsewhere these tests are skipped."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenet.distributed.beam import parse_beam_options
from agenet.errors import UserError
from agenet.faces.face import Prediction
from tests.conftest import run_program
from tests.inference.test_image_files import BrightFaces, lines, picture, status

try:
    from apache_beam.io.localfilesystem import LocalFileSystem

    from agenet.inference import beam
except ImportError:
    pytest.skip("Apache Beam is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # Beam's own

RUNNER = "--runner=DirectRunner"
SETTINGS = {"model": "bright"}


def run(
    *paths: object,
    out: Path | str,
    load: Callable[[], Any] = BrightFaces,
    settings: dict[str, Any] = SETTINGS,
    **work: Any,
) -> list[str]:
    return list(
        beam.predict_with_beam(
            list(map(str, paths)),
            str(out),
            beam.Work(load, **work),
            settings,
            parse_beam_options(RUNNER),
        )
    )


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """23 images with 0, 1 or 2 faces, and two that are none; lists hold ten."""
    monkeypatch.setattr(beam, "FILES", 10)
    for number in range(23):
        picture(tmp_path / "photos" / f"{number:02}.png", number % 3, green=number)
    for name in ("30.png", "31.png"):
        (tmp_path / "photos" / name).write_bytes(b"GIF89a")
    return tmp_path / "photos"


def results(out: Path) -> list[dict[str, Any]]:
    return [line for path in sorted(out.glob("faces-*.jsonl")) for line in lines(path)]


def test_results_are_those_of_the_plain_command(tmp_path: Path, photos: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain.jsonl"
    (summary, where) = run(photos, out=out)
    assert summary == "23 images, 22 faces, 8 images without a face, 2 problems"
    assert where == f"problems are in {out}/bad-*.jsonl"
    assert status(photos, "--jsonl", plain) == 0
    expected = lines(plain)
    assert results(out) == [line for line in expected if "error" not in line]
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "bad-00002.jsonl", *(f"faces-0000{n}.jsonl" for n in range(3)), "settings.json",
    ]  # fmt: skip
    assert lines(out / "bad-00002.jsonl") == [line for line in expected if "error" in line]


class Counts(BrightFaces):
    seen: Counter[int] = Counter()
    stops_at = -1

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        ages = [int(image[..., 1].mean()) for image in images]
        if self.stops_at in ages:
            raise UserError("the power is gone")
        self.seen.update(ages)
        return super().predict(images)


def test_a_run_that_was_ended_resumes(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    Counts.seen.clear()
    monkeypatch.setattr(Counts, "stops_at", 14)
    with pytest.raises(UserError, match=r"^the power is gone; what is done is kept"):
        run(photos, out=out, load=Counts)
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("faces-*")}
    assert "faces-00001.jsonl" not in done and not list(out.glob("*.tmp"))
    # Of lists that are done, nothing is predicted again; whichever came before the second.
    (out / "faces-00000.jsonl").touch()
    monkeypatch.setattr(Counts, "stops_at", -1)
    Counts.seen.clear()
    first, summary, _ = run(photos, out=out, load=Counts)
    assert first.endswith("of 3 lists are done already")
    assert not any(age < 10 for age in Counts.seen) and Counts.seen[14] == 2
    for name, changed in done.items():
        if name != "faces-00000.jsonl":
            assert (out / name).stat().st_mtime_ns == changed
    # New images get lists of their own.
    picture(photos / "05b.png", 1, green=99)
    Counts.seen.clear()
    first, summary = run(photos, out=out, load=Counts)
    assert first == "3 of 4 lists are done already"
    assert summary.startswith("1 image, 1 face,") and Counts.seen == {99: 1}
    assert run(photos, out=out, load=Counts)[0] == "4 of 4 lists are done already"
    assert Counts.seen == {99: 1}


def test_predictor_is_loaded_once(tmp_path: Path, photos: Path) -> None:
    loads = tmp_path / "loads"
    run(photos, out=tmp_path / "out", load=partial(counted, str(loads)))
    assert loads.read_text() == "xx"  # and once to find mistakes


def counted(path: str) -> BrightFaces:
    with Path(path).open("a") as file:
        file.write("x")
    return BrightFaces()


def test_parquet(tmp_path: Path, photos: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run(photos, out=tmp_path / "out", format="parquet")
    tables = [parquet.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [table.num_rows for table in tables] == [13, 13, 4]
    assert tables[0]["age"].to_pylist()[:4] == [None, 1.0, 2.0, 2.0]


class Shelf(LocalFileSystem):
    """A file system of another machine, which is a folder here."""

    folder = Path()

    @classmethod
    def scheme(cls) -> str:
        return "shelf"

    def _here(self, path: str) -> str:
        return str(self.folder / path.removeprefix("shelf://"))

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def exists(self, path: str) -> bool:
        return super().exists(self._here(path))

    def mkdirs(self, path: str) -> None:
        super().mkdirs(self._here(path))

    def open(self, path: str, *args: Any, **options: Any) -> Any:
        return super().open(self._here(path), *args, **options)

    def create(self, path: str, *args: Any, **options: Any) -> Any:
        return super().create(self._here(path), *args, **options)

    def rename(self, sources: list[str], targets: list[str]) -> None:
        super().rename([*map(self._here, sources)], [*map(self._here, targets)])

    def match(self, patterns: list[str], limits: Any = None) -> Any:
        found = super().match([*map(self._here, patterns)], limits)
        for match in found:
            for metadata in match.metadata_list:
                metadata.path = f"shelf://{Path(metadata.path).relative_to(self.folder)}"
        return found


@pytest.fixture
def shelf(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Shelf, "folder", tmp_path)
    return tmp_path


def test_files_and_results_elsewhere(shelf: Path, photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    plain, out = shelf / "plain", shelf / "out"
    run(photos, out=plain)
    summary, where = run("shelf://photos/", out="shelf://out")
    assert summary == "23 images, 22 faces, 8 images without a face, 2 problems"
    assert where == "problems are in shelf://out/bad-*.jsonl"
    here = [line | {"file": f"shelf://photos/{Path(line['file']).name}"} for line in results(plain)]
    assert results(out) == here
    assert run("shelf://photos/1?.png", out="shelf://some")[0].startswith("10 images")
    (photos / "22.png").unlink()
    (out / "faces-00002.jsonl").unlink()
    assert run("shelf://photos/**", out="shelf://out")[1].startswith("2 images, 2 faces")
    bad = lines(out / "bad-00002.jsonl")
    assert [Path(line["file"]).name for line in bad][:1] == ["22.png"] and bad[0]["error"]


def test_large_files_elsewhere_are_refused(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "MAX_BYTES", 50)
    assert run("shelf://photos/0*.png", out=shelf / "out")[0].startswith("0 images")
    assert "larger than" in lines(shelf / "out" / "bad-00000.jsonl")[0]["error"]


def test_mistakes(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(photos, out=out)
    with pytest.raises(UserError, match="holds results with another model: name another folder"):
        run(photos, out=out, settings={"model": "other"})
    with pytest.raises(UserError, match="holds other files: name another folder"):
        run(photos, out=photos)
    for path, message in (
        (tmp_path / "gone", "no such file or folder"),
        (f"{photos}/*.gif", "matches no file"),
    ):
        with pytest.raises(UserError, match=message):
            run(path, out=tmp_path / "new")
    for arguments, message in (
        (["--out=x", "--csv=y"], "leave out --csv"),
        (["--beam_options="], "goes with --out FOLDER"),
        (["--out=x", "--beam_options=--runner=NoRunner"], "--beam_options '--runner=NoRunner': "),
    ):
        assert status(photos, *arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_nothing_is_written_where_the_predictor_cannot_be_loaded(
    tmp_path: Path, photos: Path
) -> None:
    def fail() -> BrightFaces:
        raise UserError("no such weights")

    with pytest.raises(UserError, match="no such weights"):
        run(photos, out=tmp_path / "out", load=fail)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_command_says_so_in_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "one.png", 1)
    code = (
        "import os, signal, sys\n"
        "from agenet.cli import main\n"
        "from agenet.inference import beam\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def interrupt(*_, **__): os.kill(os.getpid(), signal.SIGINT)\n"
        "beam.predict_files = interrupt\n"
        f"main('predict', {str(tmp_path / 'one.png')!r}, '--out', {str(tmp_path / 'out')!r})"
    )
    printed = run_program("-c", code, fails=True)
    assert printed.splitlines()[-1] == "interrupted" and "Traceback" not in printed


@pytest.mark.slow
def test_command_with_processes(real_data: Path, tmp_path: Path) -> None:
    arguments = ["-m", "agenet.cli", "predict", str(real_data / "media")]
    workers = "--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing"
    outputs = ["--out", str(tmp_path / "out"), f"--beam_options={workers}"]
    printed = run_program(*arguments, *outputs)
    assert printed.splitlines()[-1].startswith("5 images, 10 faces, 0 images without a face")
    run_program(*arguments, "--jsonl", str(tmp_path / "plain.jsonl"))
    expected = lines(tmp_path / "plain.jsonl")
    for found, plain in zip(results(tmp_path / "out"), expected, strict=True):
        assert found["file"] == plain["file"]
        for face, other in zip(found["faces"], plain["faces"], strict=True):
            assert face["age"] == other["age"] and face["gender"] == other["gender"]
    # Beam's processes log when they end.
    again = [line for line in run_program(*arguments, *outputs).splitlines() if ":" not in line]
    assert again == [
        "1 of 1 lists are done already",
        "0 images, 0 faces, 0 images without a face, 0 problems",
    ]
