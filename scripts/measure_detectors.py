"""Measures what each face detector costs: faces not found, and predictions from its crops.

python scripts/measure_detectors.py FAIRFACE_FOLDER ADIENCE_FOLDER [--count=1000]

The folders hold releases, as for `agenet prepare`; of FairFace the validation set is used. Each
face is placed at a random size and position in a grey image of 640x480. The geometry of
`agenet.faces.crop` was tuned by `measure_margins.py` on 1,000 faces of FairFace's validation set,
and none of these is used here.
"""

import argparse
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.faces.crop import Square, crop_face, crop_square
from agenet.faces.detectors import create_detector
from agenet.faces.face import Prediction
from agenet.inference.predictor import Predictor
from agenet.labels import GENDERS, adience_age_range, adience_gender
from agenet.runs.series import table
from data_prep.adience.release import read_fold_lists
from data_prep.fairface.release import read_labels

DETECTORS = ("yunet", "hog")
TUNED = 1000  # faces, by measure_margins.py
_SIDES = (80, 300)  # pixels, of the placed images
_SIZE = 146  # pixels, of crops
_GREY = 100


@dataclass(frozen=True)
class Labelled:
    """A face with its gender (0 female, 1 male) and the first and last year of its age or -1."""

    image: np.ndarray
    gender: int
    low: int
    high: int


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fairface", type=Path)
    parser.add_argument("adience", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="of each (default: 1000)")
    args = parser.parse_args()
    predictor = Predictor.load(detector=None)
    finders = {name: create_detector(name) for name in DETECTORS}
    sources = {
        "FairFace": read_fairface(args.fairface, args.count),
        "Adience": read_adience(args.adience, args.count),
    }
    for title, labelled in sources.items():
        rng = np.random.default_rng(1)
        crops: dict[str, list[np.ndarray | None]] = {name: [] for name in ("placed", *DETECTORS)}
        faces, extra = [], dict.fromkeys(DETECTORS, 0)
        for face in tqdm(labelled, total=args.count, desc=title, disable=None):
            image, square = place(face.image, rng)
            faces.append(face)
            crops["placed"].append(crop_square(image, square, _SIZE))
            for name, finder in finders.items():
                found = finder.detect(image)
                at = nearest(found, square)
                extra[name] += len(found) - (at is not None)
                crops[name].append(
                    None if at is None else crop_face(image, at, _SIZE, detector_name=name)
                )
        predictions = {name: predict(predictor, some) for name, some in crops.items()}
        for name in DETECTORS:
            seen = sum(crop is not None for crop in crops[name])
            print(f"{name}: {seen} of {len(faces)} found, {extra[name]} other boxes")
        both = [all(crops[name][i] is not None for name in crops) for i in range(len(faces))]
        rows = [line(name, faces, predictions, both) for name in crops]
        header = ["gender, %", "age error, years", "other gender, %", "age differs, years"]
        print(f"\n{table([f'{title}, {sum(both)} faces that both find', *header], rows)}\n")


def place(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Square]:
    """Places an image in a larger one; returns that, and where the image lies in it."""
    side = round(np.exp(rng.uniform(*np.log(_SIDES))))
    method = cv2.INTER_AREA if side < image.shape[0] else cv2.INTER_LINEAR
    larger = np.full((480, 640, 3), _GREY, np.uint8)
    left, top = (int(rng.integers(length - side + 1)) for length in (640, 480))
    larger[top : top + side, left : left + side] = cv2.resize(
        image, (side, side), interpolation=method
    )
    return larger, Square(left + side / 2, top + side / 2, side)


def nearest(found: Sequence[Any], square: Square) -> Any:
    """The detection in the middle of the placed image, or None."""
    distances = [np.hypot(f.box.center[0] - square.x, f.box.center[1] - square.y) for f in found]
    best = int(np.argmin(distances)) if found else -1
    return found[best] if found and distances[best] < square.side / 4 else None


def predict(predictor: Predictor, crops: list[np.ndarray | None]) -> list[Prediction | None]:
    """Predictions, None where there is no crop."""
    known = iter(predictor.predict([crop for crop in crops if crop is not None]))
    return [None if crop is None else next(known) for crop in crops]


def line(
    name: str,
    faces: list[Labelled],
    predictions: dict[str, list[Prediction | None]],
    chosen: list[bool],
) -> list[str]:
    """A row of the table: agreement with the labels, and with predictions for the placed images."""
    right, error, other, differs = [], [], [], []
    for face, found, placed, use in zip(
        faces, predictions[name], predictions["placed"], chosen, strict=True
    ):
        if not use or found is None or placed is None or found.age is None or placed.age is None:
            continue
        right.append(found.gender == GENDERS[face.gender])
        if face.low >= 0:
            error.append(max(face.low - found.age, found.age - face.high, 0.0))
        other.append(found.gender != placed.gender)
        differs.append(abs(found.age - placed.age))
    return [
        name,
        f"{100 * np.mean(right):.1f}",
        f"{np.mean(error):.2f}",
        f"{100 * np.mean(other):.1f}",
        f"{np.mean(differs):.2f}",
    ]


def read_fairface(folder: Path, count: int) -> Iterator[Labelled]:
    """Yields faces of the validation set that `measure_margins.py` does not use."""
    labels = read_labels(folder, "test")
    with tarfile.open(folder / "fairface_val.tar") as archive:
        members = sorted((m for m in archive if m.name.endswith(".jpg")), key=lambda m: m.name)
        tuned = np.random.default_rng(0).choice(len(members), TUNED, replace=False)
        others = np.setdiff1d(np.arange(len(members)), tuned)
        for index in np.random.default_rng(1).choice(others, count, replace=False):
            face = labels[members[index].name]
            image = _decode(archive, members[index])
            yield Labelled(image, face.gender, *face.age_range)


def read_adience(folder: Path, count: int) -> Iterator[Labelled]:
    """Yields faces with a gender."""
    folds, _ = read_fold_lists(folder)
    faces = {face.path("faces"): face for fold in folds for face in fold}
    known = sorted(path for path, face in faces.items() if adience_gender(face.gender) >= 0)
    chosen = set(np.random.default_rng(1).choice(known, count, replace=False).tolist())
    with tarfile.open(folder / "faces.tar.gz") as archive:
        for member in archive:
            if member.name in chosen:
                face = faces[member.name]
                image = _decode(archive, member)
                ages = adience_age_range(face.age)
                yield Labelled(image, adience_gender(face.gender), *ages)


def _decode(archive: tarfile.TarFile, member: tarfile.TarInfo) -> np.ndarray:
    file = archive.extractfile(member)
    coded = np.frombuffer(file.read() if file else b"", np.uint8)
    image = cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f"{member.name} is not an image")
    return image


if __name__ == "__main__":
    with one_line_errors():
        main()
