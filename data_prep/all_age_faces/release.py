"""Reads a release of All-Age-Faces: two lists of files and the folders of its images."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenet.errors import UserError, printable
from agenet.labels import GENDERS, nearest_age_group
from data_prep.release import hash_number

# Splits of the prepared set and the lists of the release.
SPLITS = {"train": "train.txt", "test": "val.txt"}
# Number of images in the release, and of those of each gender.
RELEASED = {"train": 6_637, "test": 6_685}
RELEASED_GENDERS = (7_381, 5_941)
_TOP = "All-Age-Faces Dataset"
_LISTS = "image sets"
_MAX_LIST_BYTES = 1 << 20
_MAX_AGE = 100


@dataclass(frozen=True)
class Face:
    """One line of a list.

    Attributes:
        path: such as "original images/00000A02.jpg".
        age: in years.
        gender: 0 female, 1 male.
    """

    path: str
    age: int
    gender: int

    def features(self) -> dict[str, Any]:
        """Returns all features of the prepared set except the image."""
        group = nearest_age_group(self.age)
        return {
            "path": self.path,
            # The release does not identify persons, so every image is its own subject.
            "subject_id": hash_number(self.path),
            "age_official": group,
            "age_extended": group,
            "age_low": self.age,
            "age_high": self.age,
            "gender": self.gender,
        }


def _below(folder: Path, name: str) -> Path:
    """A part of the release in the user's folder, or in the top folder of the release in it."""
    inner = folder / _TOP / name
    return inner if inner.exists() else folder / name


def image_source(folder: Path, images: str) -> Path:
    return _below(folder, images)


def missing_files(folder: Path, images: str) -> list[str]:
    """Names of what `folder` lacks."""
    wanted = [images, *(f"{_LISTS}/{name}" for name in SPLITS.values())]
    return [name for name in wanted if not _below(folder, name).exists()]


def read_lists(folder: Path, images: str) -> dict[str, dict[str, Face]]:
    """Reads the faces of each split, by path.

    Raises:
        UserError: a line does not parse, a face is listed twice, or the counts are not those of the
            release; names the line.
    """
    splits: dict[str, dict[str, Face]] = {}
    seen: set[str] = set()
    for split, name in SPLITS.items():
        path = _below(folder, f"{_LISTS}/{name}")
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise UserError(f"{path}: larger than a list of All-Age-Faces: is it the right file?")
        faces = splits[split] = {}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if line.strip():
                face = _parse(f"{path}, line {number}", line, images)
                if face.path in seen:
                    raise UserError(f"{path}, line {number}: {face.path} was listed before")
                seen.add(face.path)
                faces[face.path] = face
    _check_counts(folder, splits)
    return splits


def _parse(where: str, line: str, images: str) -> Face:
    match = re.fullmatch(r"(\d{5}A(\d{1,3})\.jpg)\s+([01])", line.strip())
    if not match or int(match[2]) > _MAX_AGE:
        raise UserError(f"{where}: {printable(line)!r} is not like 00000A02.jpg 0")
    return Face(f"{images}/{match[1]}", int(match[2]), int(match[3]))


def _check_counts(folder: Path, splits: dict[str, dict[str, Face]]) -> None:
    counts = {split: len(faces) for split, faces in splits.items()}
    faces = [face for rows in splits.values() for face in rows.values()]
    genders = tuple(sum(face.gender == i for face in faces) for i in range(len(GENDERS)))
    if counts != RELEASED or genders != RELEASED_GENDERS:
        raise UserError(
            f"{folder}: the lists have {counts['train']:,} and {counts['test']:,} faces, "
            f"{genders[0]:,} of them female, where the release has {RELEASED['train']:,} and "
            f"{RELEASED['test']:,}, {RELEASED_GENDERS[0]:,} female: download them again"
        )
