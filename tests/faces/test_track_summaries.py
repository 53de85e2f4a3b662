import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.faces.image_io import read_image
from agenet.faces.track_summaries import COLUMNS, TrackSummaries, TrackWriter, face_quality
from agenet.faces.tracking import KEEP_SECONDS, Tracker
from agenet.faces.webcam import run
from tests.faces.test_pipeline import Camera, Fake
from tests.faces.test_tracking import at, texture
from tests.faces.test_webcam import film, status  # noqa: F401 (a fixture)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_summary_of_each_track() -> None:
    """Of all frames and predictions alike, and once the face is missing for a second."""
    summaries = TrackSummaries()
    tracker = Tracker(8, summaries)
    image = texture()
    for number, (score, years) in enumerate([(0.6, 20.0), (0.9, 30.0), (0.6, 50.0)]):
        found = [at(100, 100, score=score), *([at(400, 100)] if number == 0 else [])]
        tracker.update(image, float(number), found)
        due = tracker.due_tracks()
        faces = [Face(track.detection, Prediction(age=years)) for track in due]
        tracker.add_predictions(due, faces, float(number))
    (gone,) = summaries.ended
    assert (gone.number, gone.first, gone.last, gone.frames) == (2, 0.0, 0.0, 1)
    assert gone.prediction.age == 20
    tracker.update(image, 2.0 + KEEP_SECONDS + 0.1, [])
    tracker.update(image, 9.0, [at(300, 300)])
    assert [summary.number for summary in summaries.ended] == [2, 1]
    summary = summaries.ended[1]
    assert (summary.first, summary.last, summary.frames) == (0.0, 2.0, 3)
    assert summary.score == pytest.approx(0.7)
    # Weighted by score alone: what was seen last counts no more.
    assert summary.prediction.age == pytest.approx((0.6 * 20 + 0.9 * 30 + 0.6 * 50) / 2.1)
    assert not summary.crop
    summaries.end_all()
    assert [summary.number for summary in summaries.ended] == [2, 1, 3]


def test_prediction_that_comes_after_the_end_is_ignored() -> None:
    summaries = TrackSummaries()
    summaries.saw(1, texture(), 0.0, at(1, 1))
    summaries.end(1)
    summaries.predicted(1, Face(at(1, 1), Prediction(age=9.0)), 0.0)
    assert summaries.ended[0].prediction == Prediction()


def test_the_largest_and_sharpest_crop_is_kept(tmp_path: Path) -> None:
    sharp = texture()
    blurred = cv2.GaussianBlur(sharp, (0, 0), 9)
    small, large = at(200, 200, side=40), at(200, 200, side=120)
    qualities = [
        face_quality(image, detection, "yunet")
        for image, detection in ((blurred, small), (blurred, large), (sharp, large))
    ]
    assert qualities == sorted(qualities) and qualities[2] > 2 * qualities[1]
    summaries = TrackSummaries("yunet")
    for number, (image, detection) in enumerate(
        ((blurred, small), (sharp, large), (blurred, large))
    ):
        summaries.saw(1, image, float(number), detection)
    summaries.end_all()
    with TrackWriter(tmp_path / "a.json", False, tmp_path / "crops") as writer:
        writer.write(summaries.ended[0])
        writer.finish()
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert found["crop"] == str(tmp_path / "crops" / "track-000001.jpg")
    crop = read_image(found["crop"])
    assert crop.shape[0] == crop.shape[1] > 100
    assert cv2.Laplacian(crop, cv2.CV_32F).std() > 5 * cv2.Laplacian(blurred, cv2.CV_32F).std()


def test_crops_are_of_bounded_size() -> None:
    summaries = TrackSummaries("yunet")
    image = np.zeros((3000, 3000, 3), np.uint8)
    summaries.saw(1, image, 0.0, Detection(Box(0, 0, 2900, 2900), 0.9))
    summaries.end_all()
    crop = cv2.imdecode(np.frombuffer(summaries.ended[0].crop, np.uint8), cv2.IMREAD_COLOR)
    assert crop.shape == (512, 512, 3)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_video_without_a_face(tmp_path: Path, film: Path, suffix: str) -> None:  # noqa: F811
    output = tmp_path / f"tracks{suffix}"
    assert status(film, "--tracks", output, fake=Fake(0)) == 0
    if suffix == ".json":
        assert json.loads(output.read_text()) == []
    else:
        assert output.read_text() == ",".join(COLUMNS) + "\n"


def test_real_clip(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "media" / "classroom.gif"
    tables = tmp_path / "tracks.csv", tmp_path / "tracks.json"
    assert status(path, "--tracks", tables[0], fake=None) == 0
    assert status(path, "--tracks", tables[1], "--crops", tmp_path / "crops", fake=None) == 0
    by_row, by_object = rows(tables[0]), json.loads(tables[1].read_text())
    assert [int(row["track"]) for row in by_row] == [1, 2, 3, 4]
    for row, found in zip(by_row, by_object, strict=True):
        assert float(row["last_seconds"]) == found["last_seconds"] == 2.93
        assert int(row["frames"]) == found["frames"] == 45
        assert float(row["age"]) == found["age"] == 33
        assert row["crop"] == "" and found["crop"]
    assert len(list((tmp_path / "crops").iterdir())) == 4


def test_rows_are_written_when_faces_leave(tmp_path: Path, film: Path) -> None:  # noqa: F811
    output, seen = tmp_path / "tracks.csv", list[int]()

    class Leaves(Fake):
        def detect(self, image: np.ndarray) -> list[Detection]:
            seen.append(len(rows(output)) if output.exists() else 0)
            return super().detect(image) if self.detected < 2 or len(seen) > 18 else []

    assert status(film, "--tracks", output, fake=Leaves(1)) == 0  # two seconds
    assert seen[0] == 0 and seen[-1] == 1
    assert [row["frames"] for row in rows(output)] == ["2", "2"]


def test_interrupted_file_keeps_what_was_seen(tmp_path: Path, film: Path) -> None:  # noqa: F811
    class Ends(Fake):
        def detect(self, image: np.ndarray) -> list[Detection]:
            if self.detected == 8:
                raise KeyboardInterrupt
            return super().detect(image)

    output = tmp_path / "tracks.json"
    assert status(film, "--tracks", output, fake=Ends(2)) == 1
    found = json.loads(output.read_text())
    assert [(line["track"], line["frames"]) for line in found] == [(1, 8), (2, 8)]


def test_error_leaves_an_older_file(tmp_path: Path, film: Path) -> None:  # noqa: F811
    class Broken(Fake):
        def predict_faces(
            self, image: np.ndarray, detections: Sequence[Detection] | None = None
        ) -> list[Face]:
            raise UserError("no such weights")

    output = tmp_path / "tracks.json"
    output.write_text("old")
    assert status(film, "--tracks", output, "--overwrite", fake=Broken()) == 1
    assert output.read_text() == "old"


def test_camera(tmp_path: Path) -> None:
    output, fake = tmp_path / "tracks.csv", Fake(2)
    with TrackWriter(output, overwrite=False) as writer:
        run(Camera(40, 0.01), fake, fake.load, tracks=writer)
    found = rows(output)
    assert [row["track"] for row in found] == ["1", "2"]
    assert {row["age"] for row in found} == {"33.0"} and int(found[0]["frames"]) > 5


def test_mistakes_are_one_line(
    tmp_path: Path,
    film: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "track-000001.jpg").write_bytes(b"kept")
    (tmp_path / "a.csv").write_text("kept")
    tracks = f"--tracks={tmp_path}/b.csv"
    for arguments, message in (
        ([f"--tracks={tmp_path}/a.txt"], "name a file that ends in .csv or .json"),
        ([f"--tracks={tmp_path}/a.csv"], "exists: name another file, or add --overwrite"),
        ([f"--json={tmp_path}/b.csv", tracks], "--tracks and --json name the same file: name two"),
        (["--json=-", "--crops=x"], "--crops goes with --tracks FILE"),
        ([tracks, f"--crops={tmp_path}/crops"], "holds crops already: name another"),
        ([tracks, f"--crops={film}"], "is not a folder"),
    ):
        assert status(film, *arguments) == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert (tmp_path / "crops" / "track-000001.jpg").read_bytes() == b"kept"
    assert (tmp_path / "a.csv").read_text() == "kept"
