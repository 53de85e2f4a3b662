"""Reads a release of FairFace: two tables of labels and the locations of its images."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenet.errors import UserError
from agenet.labels import (
    RACES,
    fairface_age_range,
    fairface_gender,
    nearest_age_group_of_range,
)
from data_prep.kinds import find_archive
from data_prep.release import hash_number
from data_prep.tables import read_table

COLUMNS = ["file", "age", "gender", "race", "service_test"]
# Splits of the prepared set and their names in the release.
SPLITS = {"train": "train", "test": "val"}
# Number of images in the release.
RELEASED = {"train": 86_744, "test": 10_954}
_ADVICE = ": are these FairFace's labels?"


@dataclass(frozen=True)
class Face:
    """One row of a table.

    Attributes:
        path: within the archive, such as "val/1.jpg".
        age: the age range as released, such as "3-9".
        age_range: its first and last year, both included.
        gender: 0 female, 1 male.
        race: index into `agenet.labels.RACES`.
        service_test: whether the release counts it among those balanced for testing services.
    """

    path: str
    age: str
    age_range: tuple[int, int]
    gender: int
    race: int
    service_test: bool

    def features(self) -> dict[str, Any]:
        """Returns all features of the prepared set except the image."""
        low, high = self.age_range
        group = nearest_age_group_of_range(low, high)
        return {
            "path": self.path,
            # The release does not identify persons, so every image is its own subject.
            "subject_id": hash_number(self.path),
            "age": self.age,
            "age_official": group,
            "age_extended": group,
            "age_low": low,
            "age_high": high,
            "gender": self.gender,
            "race": self.race,
            "service_test": self.service_test,
        }


def label_file(folder: Path, split: str) -> Path:
    return folder / f"fairface_label_{SPLITS[split]}.csv"


def image_source(folder: Path, split: str, margin: str) -> Path | None:
    """The archive or folder of a split's images: the first of these that exists."""
    whole, part = f"fairface-img-margin{margin}-trainval", SPLITS[split]
    extracted = (folder / part, folder / whole / part)
    return (
        find_archive(folder, whole)
        or find_archive(folder, f"fairface_{part}")
        or next((path for path in extracted if path.is_dir()), None)
    )


def missing_files(folder: Path, split: str, margin: str) -> list[str]:
    """Names of the files of a split that `folder` lacks."""
    missing = []
    if image_source(folder, split, margin) is None:
        missing.append(
            f"fairface-img-margin{margin}-trainval.zip (or fairface_{SPLITS[split]}.tar, or the "
            f"folder {SPLITS[split]})"
        )
    if not label_file(folder, split).is_file():
        missing.append(label_file(folder, split).name)
    return missing


def read_labels(folder: Path, split: str) -> dict[str, Face]:
    """Reads the faces of a split, by path.

    Raises:
        UserError: a row does not parse or a face is listed twice; names the row.
    """
    path = label_file(folder, split)
    faces: dict[str, Face] = {}
    for where, row in read_table(path, COLUMNS, "a table of FairFace's labels"):
        face = _parse_row(where, row, SPLITS[split])
        if face.path in faces:
            raise UserError(f"{where}: {face.path} was listed before")
        faces[face.path] = face
    if not faces:
        raise UserError(f"{path}: no rows: is it the whole file?")
    return faces


def _parse_row(where: str, row: list[str], folder: str) -> Face:
    path, age, gender, race, service_test = row
    if not re.fullmatch(rf"{folder}/\d{{1,9}}\.jpg", path):
        raise UserError(f"{where}: file {path[:200]!r} is not like {folder}/1.jpg")
    age_range = fairface_age_range(age)
    if age_range is None:
        raise UserError(f"{where}: age {age[:200]!r} is not known{_ADVICE}")
    if fairface_gender(gender) < 0:
        raise UserError(f"{where}: gender {gender[:200]!r} is neither Male nor Female{_ADVICE}")
    if race not in RACES:
        raise UserError(f"{where}: race {race[:200]!r} is not one of {', '.join(RACES)}")
    if service_test.lower() not in ("true", "false"):
        raise UserError(f"{where}: service_test {service_test[:200]!r} is neither True nor False")
    return Face(
        path=path,
        age="more than 70" if age == "more than 70" else "{}-{}".format(*age_range),
        age_range=age_range,
        gender=fairface_gender(gender),
        race=RACES.index(race),
        service_test=service_test.lower() == "true",
    )
