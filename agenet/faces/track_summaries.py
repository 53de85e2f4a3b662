"""Summarises each face of a video over all its frames, and writes the summaries."""

import csv
import io
import json
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agenet.errors import UserError
from agenet.faces.crop import crop_face, face_square
from agenet.faces.face import Detection, Face, Prediction
from agenet.faces.tracking import AveragedPrediction
from agenet.files import LineFile, check_output, write_file

SUFFIXES = (".csv", ".json")
COLUMNS = (
    *("track", "first_seconds", "last_seconds", "frames", "score", "age", "age_low", "age_high"),
    *("age_group", "gender", "gender_probability", "crop"),
)
MAX_CROP = 512  # pixels, side of the crop that is kept
_SHARP_SIDE = 112  # pixels, side at which sharpness is measured
# A crop that is better by less is not worth the time to encode it.
_BETTER = 1.1


@dataclass(frozen=True)
class TrackSummary:
    """One face over all frames of a video.

    Attributes:
        number: of its track, from 1.
        first, last: the times at which it was found first and last, in seconds.
        frames: the number of frames in which it was found.
        score: mean of the detector's scores in these frames.
        prediction: the average of all its predictions, weighted by score.
        crop: its best crop as a JPEG file, or b"".
    """

    number: int
    first: float
    last: float
    frames: int
    score: float
    prediction: Prediction
    crop: bytes = b""

    def asdict(self) -> dict[str, Any]:
        """The fields without the crop, for JSON."""
        times = {"first_seconds": round(self.first, 3), "last_seconds": round(self.last, 3)}
        found = {"frames": self.frames, "score": self.score}
        return {"track": self.number} | times | found | self.prediction.asdict()


@dataclass
class _Record:
    first: float
    last: float = 0.0
    frames: int = 0
    scores: float = 0.0
    average: AveragedPrediction = field(default_factory=lambda: AveragedPrediction(math.inf))
    quality: float = 0.0
    crop: bytes = b""


class TrackSummaries:
    """Collects what a `Tracker` reports of its tracks.

    Args:
        detector: name of the one whose boxes are tracked; None keeps no crops.

    Attributes:
        ended: summaries of tracks that have ended; another thread may take them.
    """

    def __init__(self, detector: str | None = None) -> None:
        self._detector = detector
        self._records: dict[int, _Record] = {}
        self.ended: deque[TrackSummary] = deque()

    def saw(self, number: int, image: np.ndarray, seconds: float, detection: Detection) -> None:
        """The face of this track was found in a frame, RGB uint8 [H, W, 3]."""
        record = self._records.setdefault(number, _Record(seconds))
        record.last = seconds
        record.frames += 1
        record.scores += detection.score
        if self._detector is None:
            return
        quality = face_quality(image, detection, self._detector)
        if quality > _BETTER * record.quality or not record.crop:
            record.quality, record.crop = quality, _encoded(image, detection, self._detector)

    def predicted(self, number: int, face: Face, seconds: float) -> None:
        """The face of this track was predicted."""
        if record := self._records.get(number):  # Else it ended meanwhile.
            record.average.add(face.prediction, face.detection.score, seconds)

    def end(self, number: int) -> None:
        """This track has ended."""
        record = self._records.pop(number)
        score = record.scores / record.frames
        self.ended.append(
            TrackSummary(
                number,
                record.first,
                record.last,
                record.frames,
                score,
                record.average.get(),
                record.crop,
            )
        )

    def end_all(self) -> None:
        """The video has ended."""
        for number in sorted(self._records):
            self.end(number)


def face_quality(image: np.ndarray, detection: Detection, detector: str) -> float:
    """How large and sharp a face is; comparable within a video.

    The side of its crop in pixels, times the standard deviation of the Laplacian of the crop at a
    fixed size (the measure of J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy", ICPR 2000), times the detector's score.
    """
    crop = crop_face(image, detection, _SHARP_SIDE, detector_name=detector)
    edges = cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    side = face_square(detection, detector).side
    return float(side * edges.std() * detection.score)


def _encoded(image: np.ndarray, detection: Detection, detector: str) -> bytes:
    side = min(max(1, round(face_square(detection, detector).side)), MAX_CROP)
    crop = crop_face(image, detection, side, detector_name=detector)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), options)[1].tobytes()


class TrackWriter:
    """Writes summaries as CSV, or as one JSON array, and their crops as JPEG files.

    A context manager. Each track is written when it has ended; the array is closed at the end.

    Args:
        path: ends in one of `SUFFIXES`.
        overwrite: whether existing files are replaced.
        crops: a folder for `track-000001.jpg` and so on; created if it is missing.

    Attributes:
        crops: as given.
        has_begun: whether something was written.

    Raises:
        UserError: the files may not be written.
    """

    def __init__(self, path: Path, overwrite: bool, crops: Path | None = None) -> None:
        check_tracks(path, overwrite, crops)
        self.crops = crops
        self._is_json = path.suffix.lower() == ".json"
        self._lines = LineFile(path, overwrite)
        self.has_begun = False
        self._is_empty = True

    def write(self, summary: TrackSummary) -> None:
        """Writes a summary.

        Raises:
            OSError: it cannot be written.
        """
        name = None
        if self.crops is not None and summary.crop:
            self.crops.mkdir(parents=True, exist_ok=True)
            path = self.crops / f"track-{summary.number:06}.jpg"
            write_file(path, summary.crop)
            name = str(path)
        fields = summary.asdict() | {"crop": name}
        self._begin()
        if self._is_json:
            separator = "" if self._is_empty else ","
            self._lines.write(f"{separator}\n{json.dumps(fields)}")
        else:
            fields["age_low"], fields["age_high"] = fields["age_interval"] or (None, None)
            self._write_row(fields.get(column) for column in COLUMNS)
        self._is_empty = False

    def _begin(self) -> None:
        if self.has_begun:
            return
        self.has_begun = True
        if self._is_json:
            self._lines.write("[")
        else:
            self._write_row(COLUMNS)

    def _write_row(self, values: Any) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        self._lines.write(line.getvalue())

    def finish(self) -> None:
        """Completes the file; without a track it is an empty array, or a header alone."""
        self._begin()
        if self._is_json:
            self._lines.write("\n]\n")

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> "TrackWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_tracks(path: Path, overwrite: bool, crops: Path | None) -> None:
    """Checks where summaries and crops are to be written.

    Raises:
        UserError: the files may not be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--tracks {path}: name a file that ends in {' or '.join(SUFFIXES)}")
    check_output(path, overwrite)
    if crops is None:
        return
    if crops.exists() and not crops.is_dir():
        raise UserError(f"--crops {crops} is not a folder: name one")
    if not overwrite and crops.is_dir() and any(crops.glob("track-*.jpg")):
        raise UserError(f"--crops {crops} holds crops already: name another, or add --overwrite")
