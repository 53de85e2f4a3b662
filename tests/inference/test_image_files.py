import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from agenet.cli import options
from agenet.cli.app import run_command
from agenet.errors import UserError, one_line_errors
from agenet.faces import image_formats, image_io
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.faces.image_io import FileImage, read_image, read_image_file
from agenet.inference import image_files
from agenet.inference.engines import MAX_BATCH
from agenet.inference.image_files import ImagePredictor, predict_files
from agenet.inference.inputs import ImageSearch
from agenet.inference.predictor import Predictor
from agenet.inference.results import JsonLinesWriter, Result, TableWriter
from tests.faces.test_image_io import png


class BrightFaces:
    """Finds as many faces as the red of the first pixel says; age and gender from the colours."""

    name = "bright"

    def detect(self, image: np.ndarray) -> list[Detection]:
        boxes = [Box(i, 1.25, i + 4, 6) for i in range(image[0, 0, 0])]
        return [Detection(box, score=0.5) for box in boxes]

    def is_coarse(self, detection: Detection) -> bool:
        return False

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        return [
            Prediction(
                age=float(image[..., 1].mean()),
                age_group="25-32",
                age_interval=(24, 38),
                age_distribution=(0.5, 0.5),
                gender="female" if image[0, 0, 2] > 99 else "male",
                gender_probability=0.75,
            )
            for image in images
        ]

    def crop(self, image: np.ndarray, detections: Sequence[Detection]) -> list[np.ndarray]:
        return [image] * len(detections)

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        found = self.detect(image) if detections is None else detections
        return [Face(detection, self.predict([image])[0]) for detection in found]


def picture(path: Path, faces: int, green: int = 30) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), (faces, green, 200)).save(path, "PNG")
    return str(path)


def run_predict(
    *arguments: object, load: Callable[..., ImagePredictor] = lambda *_: BrightFaces()
) -> None:
    """Runs `agenet predict` with the predictor that `load` returns."""
    with one_line_errors(), mock.patch.object(options, "load_predictor", load):
        run_command(["predict", *map(str, arguments)])


def status(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run_predict(*arguments)
    if isinstance(end.value.code, str):
        print(end.value.code, file=sys.stderr)
        return 1
    return end.value.code or 0


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_table_csv_json_lines_and_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, copies = tmp_path / "photos", tmp_path / "copies"
    two, none = picture(photos / "two.png", 2), picture(photos / "below" / "none.JPG", 0)
    picture(photos / ".hidden.png", 1)
    (photos / "bad.gif").write_bytes(b"GIF89a")
    (photos / "notes.txt").write_text("no picture")
    outputs = ["--csv", tmp_path / "faces.csv", "--jsonl", tmp_path / "faces.jsonl"]
    outputs += ["--annotated", copies]
    assert status(photos, *outputs) == 0
    table, summary = capsys.readouterr()
    head, *body = [line.split() for line in table.splitlines()]
    assert head[:3] == ["file", "face", "left"]
    assert [line[1:] for line in body[1:3]] == [
        ["1", "0", "1", "4", "6", "30", "24-38", "25-32", "female", "0.75"],
        ["2", "1", "1", "5", "6", "30", "24-38", "25-32", "female", "0.75"],
    ]
    assert body[3] == [none, "-", "no", "face", "found"]
    first = "2 images, 2 faces, 1 image without a face, 1 problem\n"
    assert summary.startswith(f"{first}  {photos / 'bad.gif'}: not a JPEG, PNG")
    results = rows(tmp_path / "faces.csv")
    assert [(row["file"], row["face"], row["age"]) for row in results] == [
        (str(photos / "bad.gif"), "", ""),
        (two, "1", "30.0"),
        (two, "2", "30.0"),
        (none, "", ""),
    ]
    intervals = [(row["age_low"], row["age_high"]) for row in results]
    assert intervals == [("", ""), ("24", "38"), ("24", "38"), ("", "")]
    assert results[0]["error"] and not any(row["error"] for row in results[1:])
    bad, good, empty = lines(tmp_path / "faces.jsonl")
    assert bad.keys() == {"file", "error"}
    assert (good["width"], good["height"], len(good["faces"])) == (60, 40, 2)
    assert good["faces"][1]["box"] == [1, 1.2, 5, 6]
    assert good["faces"][1]["age_interval"] == [24, 38]
    assert "age_distribution" not in good["faces"][1]
    assert empty["faces"] == []
    assert sorted(path.name for path in copies.rglob("*.*")) == ["none.JPG", "two.png"]
    assert not np.array_equal(read_image(copies / "two.png"), read_image(two))
    same = read_image(copies / "below" / "none.JPG")[9, 9]
    np.testing.assert_allclose(same.astype(int), [0, 30, 200], atol=2)


def test_probabilities_of_years_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, output = picture(tmp_path / "one.png", 1), tmp_path / "faces.jsonl"
    assert status(one, "--jsonl", output, "--distribution") == 0
    assert lines(output)[0]["faces"][0]["age_distribution"] == [0.5, 0.5]
    assert status(one, "--distribution") == 1
    assert "--distribution goes with --jsonl" in capsys.readouterr().err


def test_existing_files_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = picture(tmp_path / "photos" / "one.png", 1)
    table, copies = tmp_path / "faces.csv", tmp_path / "copies"
    kept = Path(picture(copies / "one.png", 7)).read_bytes()
    assert status(one, "--csv", table) == 0
    before = table.read_bytes()
    assert status(one, "--csv", table) == 1
    assert "faces.csv exists: name another file, or add --overwrite" in capsys.readouterr().err
    assert status(one, "--annotated", copies) == 0
    assert "copy not written" in capsys.readouterr().err
    assert (copies / "one.png").read_bytes() == kept and table.read_bytes() == before
    assert status(one, "--csv", table, "--annotated", copies, "--overwrite") == 0
    assert (copies / "one.png").read_bytes() != kept
    assert not list(tmp_path.rglob(".*"))


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = picture(tmp_path / "one.png", 1)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "empty"], "no images in this folder"),
        ([tmp_path / "gone", f"{tmp_path}/*.gif"], "no such file or folder; "),
        ([""], "no such file or folder"),
        ([], "PATH"),
        ([one, "--csv", tmp_path / "gone" / "faces.csv"], "no such folder"),
        ([one, "--csv", os.devnull, "--overwrite"], "is not a file"),
        ([one, "--csv", "x", "--jsonl", "x"], "name two"),
        ([one, "--csv", one, "--overwrite"], "is an image that is read"),
        ([one, "--annotated", tmp_path], "name another folder"),
        ([tmp_path / "empty", one, "--annotated", tmp_path.parent], "name another folder"),
    ):
        assert status(*arguments) == 1
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and message in err and err.count("\n") == 1 and not out
    assert Path(os.devnull).is_char_device()


def test_no_readable_file_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(10_000, 10_001))
    os.mkfifo(tmp_path / "pipe.png")
    assert status(tmp_path, "--jsonl", "-") == 1
    out, err = capsys.readouterr()
    assert [set(json.loads(line)) for line in out.splitlines()] == [{"file", "error"}] * 13
    assert err.startswith("0 images, 0 faces, 0 images without a face, 13 problems\n")
    assert err.splitlines()[1].endswith(
        "10000x10001: more than the 100,000,000 pixels that are decoded"
    )
    assert err.endswith("\n  and 3 more\n")


def test_cropped_images_are_one_face_each(tmp_path: Path) -> None:
    for number in range(70):
        picture(tmp_path / "crops" / f"{number:02}.png", 0, green=number)
    (tmp_path / "crops" / "40.png").write_bytes(b"")
    assert status("--cropped", tmp_path / "crops", "--jsonl", tmp_path / "crops.jsonl") == 0
    results = lines(tmp_path / "crops.jsonl")
    assert [line["faces"][0]["age"] for line in results if "faces" in line] == [
        *range(40), *range(41, 70)
    ]  # fmt: skip
    assert results[0]["faces"][0]["box"] == [0, 0, 60, 40]
    assert results[40]["error"] == "empty file"


def test_boxes_of_large_image_are_in_its_own_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_io, "FULL_SIZE_PIXELS", 1000)
    file = io.StringIO()
    path = picture(tmp_path / "large.png", 1)
    predict_files([Result(path)], BrightFaces(), [JsonLinesWriter(file)])
    results = json.loads(file.getvalue())
    assert (results["width"], results["height"]) == (60, 40)
    assert results["faces"][0]["box"] == [0, 2.5, 8, 12]


def test_500_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Crowd(BrightFaces):
        def detect(self, image: np.ndarray) -> list[Detection]:
            return super().detect(image) * 2

    path = picture(tmp_path / "crowd.png", 250)
    with pytest.raises(SystemExit, match="0"):
        run_predict(path, "--csv", tmp_path / "crowd.csv", load=lambda *_: Crowd())
    assert len(capsys.readouterr().out.splitlines()) == 501
    assert [int(row["face"]) for row in rows(tmp_path / "crowd.csv")] == [*range(1, 501)]


def test_file_names_are_escaped_for_terminal_and_spreadsheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["=1+1.png", "a\nb.png", 'c"d,e.png', "f\x1b[2Jg.png", "h\udcff.png", "家族.png"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        picture(Path(name), 1)
    assert status(*names, "--csv", "names.csv", "--jsonl", "names.jsonl") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 7 and "\x1b" not in out and "家族.png" in out
    written = [row["file"] for row in rows(Path("names.csv"))]
    assert written[:3] == ["./=1+1.png", "a\\nb.png", 'c"d,e.png']
    assert written[3:] == ["f\\x1b[2Jg.png", "h\\udcff.png", "家族.png"]
    assert len(Path("names.csv").read_text("utf-8").splitlines()) == 7
    assert [line["file"] for line in lines(Path("names.jsonl"))] == names


def test_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "90")
    file = Terminal()
    table = TableWriter(file)
    face = BrightFaces().predict_faces(np.full((9, 9, 3), 1, np.uint8))[0]
    table.write(Result("a" * 99 + "end.png", (9, 9), [face]))
    table.write(Result("家" * 8 + ".png", (9, 9), [Face(face.detection, Prediction())]))
    head, long, wide = file.getvalue().splitlines()
    assert len(head) == len(long) == len(wide) + 8 == 90
    assert long.startswith("…aaa") and "end.png  " in long
    assert wide.split()[-4:] == ["-"] * 4


def test_faces_are_cropped_from_the_whole_image_where_half_has_too_few_pixels(
    tmp_path: Path,
) -> None:
    class Small(BrightFaces):
        seen: list[int] = []

        def detect(self, image: np.ndarray) -> list[Detection]:
            self.seen.append(image.shape[1])
            side = image.shape[1] / 100
            points = np.full((5, 2), side)
            return [Detection(Box(side, side, 2 * side, 3 * side), 0.5, points)]

        def is_coarse(self, detection: Detection) -> bool:
            self.seen.append(round(detection.box.width))
            return detection.box.width < 14

        def crop(self, image: np.ndarray, detections: Sequence[Detection]) -> list[np.ndarray]:
            assert detections[0].landmarks is not None
            assert detections[0].landmarks[0, 0] == detections[0].box.left
            self.seen.append(image.shape[1])
            return super().crop(image, detections)

    for width, seen in ((2600, [1300, 13, 2600]), (2801, [1401, 14, 1401]), (5000, [5000, 5000])):
        path = tmp_path / "photo.jpg"
        Image.new("RGB", (width, 90), (1, 30, 200)).save(path)
        file = io.StringIO()
        Small.seen.clear()
        predict_files([Result(str(path))], Small(), [JsonLinesWriter(file)])
        assert Small.seen == seen
        result = json.loads(file.getvalue())
        assert (result["width"], result["height"]) == (width, 90)
        np.testing.assert_allclose(
            result["faces"][0]["box"], np.array([1, 1, 2, 3]) * width / 100, atol=0.1
        )


def test_files_that_are_not_read_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for name in ("a.JPE", "b.apng", "c.mpo", "d.avif"):
        picture(photos / name, 1)
    for name in ("e.jp2", "f.JP2", "g.cr2", "h.mp4", "i.txt", "j", ".hidden.jp2", "k.\x1bm"):
        (photos / name).write_bytes(b"?")
    picture(tmp_path / "album" / "linked.png", 1)
    (photos / "link").symlink_to(tmp_path / "album")
    (photos / "loop").symlink_to(photos)
    assert status(photos) == 0
    error = capsys.readouterr().err
    assert error.splitlines() == [
        "4 images, 4 faces, 0 images without a face, 0 problems",
        "not read: 2 .jp2, 1 .cr2 (convert to JPEG); 2 linked folders (name it to search it); "
        "1 .mp4 (use agenet webcam); 3 others (.txt, .?m)",
    ]
    assert status(photos / "link") == 0
    assert "1 image," in capsys.readouterr().err
    for path in photos.glob("*.[aJm]*"):
        if path.suffix != ".mp4":
            path.unlink()
    (photos / "l.heic").write_bytes(b"?")
    with mock.patch.object(image_formats, "is_installed", return_value=False):
        image_formats.advice.cache_clear()
        assert status(photos) == 1
    image_formats.advice.cache_clear()
    assert "no images in this folder; not read: " in (error := capsys.readouterr().err)
    assert "1 .heic (pip install pillow-heif, or convert to JPEG)" in error


def test_outputs_are_kept_until_there_is_a_result(tmp_path: Path) -> None:
    one, table = picture(tmp_path / "one.png", 1), tmp_path / "faces.csv"
    table.write_text("old")

    def fail(*_: object) -> ImagePredictor:
        raise UserError("no such weights")

    with pytest.raises(SystemExit):
        run_predict(one, "--csv", table, "--overwrite", load=fail)
    assert table.read_text() == "old"

    class Looks(BrightFaces):
        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            written.append(len(rows(table)) if table.read_text() != "old" else -1)
            return super().predict(images)

    written: list[int] = []
    paths = [one] * (2 * MAX_BATCH + 1)
    with pytest.raises(SystemExit, match="0"):
        run_predict(*paths, "--csv", table, "--overwrite", load=lambda *_: Looks())
    assert written[0] == -1 and written[-1] > 0 and len(rows(table)) == len(paths)


def test_two_runs_with_one_output_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, table = picture(tmp_path / "one.png", 1), tmp_path / "faces.csv"

    class Meanwhile(BrightFaces):
        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            assert status(one, one, "--csv", table) == 0
            return super().predict(images)

    with pytest.raises(SystemExit) as end:
        run_predict(one, "--csv", table, load=lambda *_: Meanwhile())
    assert str(end.value.code).startswith(f"error: {table} exists: name another file")
    assert len(rows(table)) == 2


def test_copies_that_cannot_be_written_are_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    noise[0, 0] = 0
    Image.fromarray(noise).save(tmp_path / "large.png")
    picture(tmp_path / "small.png", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        assert status(tmp_path, "--annotated", tmp_path / "copies") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert "2 images" in error and "annotated copy not written: File too large" in error
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["small.png"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_results_are_kept_when_interrupted(tmp_path: Path, end: type[BaseException]) -> None:
    class Ends(BrightFaces):
        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            if any(image[0, 0, 0] == 3 for image in images):
                raise end
            return super().predict(images)

    some = MAX_BATCH // 2
    for number, faces in enumerate([2] * some + [3] * some):
        picture(tmp_path / "photos" / f"{number:03}.png", faces)
    output = tmp_path / "faces.csv"
    with pytest.raises(SystemExit if end is KeyboardInterrupt else end) as stop:
        run_predict(tmp_path / "photos", "--csv", output, load=lambda *_: Ends())
    assert getattr(stop.value, "code", 130) == 130
    assert [row["face"] for row in rows(output)] == ["1", "2"] * some
    assert not list(tmp_path.glob(".*"))


def test_selected_faces(tmp_path: Path) -> None:
    """Of an image that is reduced to be searched, too, sizes are in pixels of the file."""
    small, large = picture(tmp_path / "small.png", 5), str(tmp_path / "large.jpg")
    Image.new("RGB", (2600, 200), (4, 30, 200)).save(large, quality=100, subsampling=0)

    def counts(*options: object) -> list[int]:
        output = tmp_path / "faces.jsonl"
        assert status(small, large, "--jsonl", output, "--overwrite", *options) == 0
        return [len(line["faces"]) for line in lines(output)]

    assert counts() == [5, 4]
    assert counts("--max-faces=2") == [2, 2]
    assert counts("--min-score=0.6") == [0, 0]
    assert counts("--min-size=5") == [0, 4]  # 4 pixels, and 8
    assert counts("--min-size=8.5") == [0, 0]
    assert counts("--min-size=4", "--min-score=0.5", "--max-faces=9") == [5, 4]


def test_cropped_images_are_not_selected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(picture(tmp_path / "one.png", 1), "--cropped", "--min-score=0.6") == 1
    assert "--cropped takes each image as one face" in capsys.readouterr().err


def test_closed_pipe_ends_the_run(tmp_path: Path) -> None:
    class Left:
        def write(self, result: Result) -> None:
            raise BrokenPipeError

    found = [Result(picture(tmp_path / "one.png", 1))] * 2
    assert predict_files(found, BrightFaces(), [Left()]).stopped is BrokenPipeError


def test_patterns_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.jpeg", "b/sub/3.webp", "b/out/4.png", "[x].png", "b/odd.data"):
        picture(Path(name), 1)

    def found(*paths: str, leave_out: str | None = None) -> list[str]:
        return [result.path for result in ImageSearch(paths, leave_out)]

    inside = ["b/1.jpeg", "b/2.png"]
    assert found("b") == [*inside, "b/out/4.png", "b/sub/3.webp"]
    assert found("b/", leave_out="b/out") == [*inside, "b/sub/3.webp"]
    assert found("[x].png", "b/*.data") == ["[x].png", "b/odd.data"]
    assert found(f"{tmp_path}/**/*.web?") == [f"{tmp_path}/b/sub/3.webp"]
    assert found("b/?.*") == inside


def test_image_that_is_deleted_meanwhile_is_skipped(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.jpg")
    Image.new("RGB", (2600, 90), (1, 30, 200)).save(gone)

    class Deletes(BrightFaces):
        def is_coarse(self, detection: Detection) -> bool:
            Path(gone).unlink()
            return True

    one = picture(tmp_path / "one.png", 1)
    found = [Result(path) for path in (one, gone, one)]
    summary = predict_files(found, Deletes(), [])
    assert (summary.images, summary.problems) == (2, 1)
    assert summary.first_problems == [f"{gone}: no such file or directory"]


def test_faces_of_several_images_go_through_the_network_together(tmp_path: Path) -> None:
    class Counts(BrightFaces):
        sizes: list[int] = []

        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            self.sizes.append(len(images))
            return super().predict(images)

    paths = [picture(tmp_path / f"{n:03}.png", n % 3, green=n) for n in range(90)]
    paths[40] = picture(tmp_path / "crowd.png", MAX_BATCH + 1, green=40)
    paths[50] = str(tmp_path / "gone.png")
    file = io.StringIO()
    summary = predict_files(map(Result, paths), Counts(), [JsonLinesWriter(file)], threads=3)
    results = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [result["file"] for result in results] == paths
    ages = [[face["age"] for face in result.get("faces", ())] for result in results]
    expected = [[float(n)] * (n % 3) for n in range(90)]
    expected[40], expected[50] = [40.0] * (MAX_BATCH + 1), []
    assert ages == expected
    assert summary.faces == sum(map(len, expected)) == sum(Counts.sizes)
    # The crowd's faces go one by one in this fake; the rest shares batches.
    assert len(Counts.sizes) - (MAX_BATCH + 1) <= 20


def test_a_slow_image_does_not_hold_up_the_results_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [picture(tmp_path / f"{number}.png", 1) for number in range(3)]
    written, waits = threading.Event(), []

    class Written:
        def write(self, result: Result) -> None:
            if result.path == paths[1]:
                written.set()

    def read(path: str, **options: Any) -> FileImage:
        if path == paths[2]:
            waits.append(written.wait(20))
        return read_image_file(path, **options)

    monkeypatch.setattr(image_files, "read_image_file", read)
    assert predict_files(map(Result, paths), BrightFaces(), [Written()]).images == 3
    assert waits == [True]


def test_decoder_that_does_not_return_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [picture(tmp_path / f"{number}.png", 1) for number in range(4)]
    monkeypatch.setattr(image_files, "PATIENCE", 0.2)
    stuck = threading.Event()

    def read(path: str, **options: Any) -> FileImage:
        if path == paths[1]:
            stuck.wait()
        return read_image_file(path, **options)

    monkeypatch.setattr(image_files, "read_image_file", read)
    summary = predict_files(ImageSearch(paths), BrightFaces(), [])
    stuck.set()
    assert (summary.images, summary.first_problems) == (
        3,
        [f"{paths[1]}: not read within 0.2 seconds"],
    )


def test_interrupt_does_not_wait_for_a_decoder(tmp_path: Path) -> None:
    path = picture(tmp_path / "one.png", 1)
    code = (
        "import signal, sys, threading, time\n"
        "from agenet.inference import image_files\n"
        "from agenet.inference.results import Result\n"
        "def read(path, **options):\n"
        "    print('reads', flush=True)\n"
        "    threading.Event().wait()\n"
        "image_files.read_image_file = read\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"print(image_files.predict_files([Result({path!r})], None, []).stopped)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "reads\n"
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=20)[0] == "<class 'KeyboardInterrupt'>\n"
        assert child.returncode == 0


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = picture(tmp_path / "one.png", 1)
    found = (Result(path if n % 2 else path + str(n)) for n in range(4000))
    tracemalloc.start()
    try:
        predict_files(found, BrightFaces(), [])
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_starts_without_jax() -> None:
    code = (
        "import sys; from agenet.cli import main\n"
        "sys.argv[1:] = ['predict', '/nowhere']\n"
        "try: main()\n"
        "finally: print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: /nowhere: no such file or folder\n"
    assert "'agenet'" in done.stdout
    assert not any(f"'{name}'" in done.stdout for name in ("jax", "PIL", "cv2", "onnxruntime"))


def test_real_images(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Real(BrightFaces):
        def __init__(self, model: str, detector: str, *_: str) -> None:
            self.detect = create_detector(detector).detect

    detector = str(real_data / "models" / "face_detection_yunet_2023mar.onnx")
    outputs = ["--detector", detector, "--jsonl", "-", "--annotated", str(tmp_path / "copies")]
    with pytest.raises(SystemExit, match="0"):
        run_predict(real_data / "media", *outputs, load=Real)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(line["file"]).name: len(line["faces"]) for line in results} == {
        "astronaut.png": 1,
        "classroom.gif": 4,
        "face-demographics-walking.gif": 2,
        "grace_hopper.jpg": 1,
        "head-pose-face-detection-female-and-male.gif": 2,
    }
    assert len(list((tmp_path / "copies").iterdir())) == 5


def test_half_the_size_changes_predictions_little(real_data: Path, tmp_path: Path) -> None:
    detector = real_data / "models" / "face_detection_yunet_2023mar.onnx"
    predictor = Predictor.load(detector=detector)
    path = tmp_path / "photo.jpg"
    with Image.open(real_data / "media" / "astronaut.png") as image:
        image.convert("RGB").resize((3072, 3072), Image.Resampling.BILINEAR).save(path)
    found = []
    for to_detect in (False, True):
        read = read_image_file(path, to_detect=to_detect)
        assert read.reduction == 1 + to_detect
        (face,) = predictor.predict_faces(read.pixels)
        assert not predictor.is_coarse(face.detection)
        found.append((np.array(face.detection.box) * read.reduction, face.prediction))
    (box, whole), (half_box, half) = found
    np.testing.assert_allclose(half_box, box, atol=0.03 * (box[2] - box[0]))
    assert whole.gender == half.gender and whole.age is not None and half.age is not None
    assert abs(whole.age - half.age) < 3
