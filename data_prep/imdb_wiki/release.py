"""Selects the usable rows of a release of IMDb-Wiki and splits them by person."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.labels import nearest_age_group
from data_prep.archives import MAX_FILE_BYTES, read_files
from data_prep.kinds import find_archive
from data_prep.release import hash_number, is_file_name

from .matlab import Metadata, parse_metadata
from .noise import NoiseFilter, ages

RELEASED = {"imdb": 460_723, "wiki": 62_328}  # rows


@dataclass(frozen=True)
class Row:
    """One usable image.

    Attributes:
        path: within the archive, such as "wiki_crop/17/10000217_1981-05-05_2009.jpg".
        name: of the person; empty where it is unknown.
        celeb_id: IMDb's number of the person; -1 in the Wikipedia database.
        age: years; None if the date of birth is invalid.
        gender: 0 female, 1 male, -1 unknown.
        face_score: score of the detector that cropped the face.
    """

    path: str
    name: str
    celeb_id: int
    age: int | None
    gender: int
    face_score: float

    @property
    def person(self) -> str:
        """Identifies the person across both databases: by name if there is one."""
        if name := " ".join(self.name.casefold().split()):
            return name
        return f"celebrity {self.celeb_id}" if self.celeb_id >= 0 else self.path

    @property
    def age_group(self) -> int:
        return -1 if self.age is None else nearest_age_group(self.age)

    def features(self) -> dict[str, Any]:
        """Returns all features of the prepared set except the image."""
        age = -1 if self.age is None else self.age
        return {
            "path": self.path,
            "name": self.name,
            "celeb_id": self.celeb_id,
            "subject_id": hash_number(self.person),
            "age": age,
            "age_official": self.age_group,
            "age_extended": self.age_group,
            "age_low": age,
            "age_high": age,
            "gender": self.gender,
            "face_score": self.face_score,
        }


def missing_files(folder: Path, database: str) -> list[str]:
    """Names of the files of a database that `folder` lacks."""
    source = image_source(folder, database)
    if not source.exists():
        return [f"{database}_crop.tar (or the folder {database}_crop)"]
    found = _metadata_file(folder, database) or not source.is_dir()
    return [] if found else [f"{database}.mat"]


def image_source(folder: Path, database: str) -> Path:
    """The archive of the images, or the folder if there is no archive."""
    return find_archive(folder, f"{database}_crop") or folder / f"{database}_crop"


def _metadata_file(folder: Path, database: str) -> Path | None:
    name, crops = f"{database}.mat", f"{database}_crop"
    paths = (folder / name, folder / crops / name, folder / crops / crops / name)
    return next((path for path in paths if path.is_file()), None)


def read_metadata(folder: Path, database: str) -> Metadata:
    """Reads `wiki.mat` or `imdb.mat`, beside the images or inside their archive.

    Raises:
        UserError: it is missing, or is not the released file.
    """
    if path := _metadata_file(folder, database):
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than the released one: is it the right file?")
        return parse_metadata(path.read_bytes(), database, str(path))
    archive, member = image_source(folder, database), f"{database}_crop/{database}.mat"
    for name, data in read_files(archive, {member}):
        return parse_metadata(data, database, f"{archive}, {name}")
    raise UserError(f"{archive}: holds no {member}: put {database}.mat beside it")


def usable_rows(
    metadata: Metadata, database: str, noise: NoiseFilter, where: str
) -> tuple[list[Row], dict[str, int]]:
    """Returns the rows that the filter keeps, and the number dropped by each of its rules.

    Raises:
        UserError: a path is not that of a crop and could point outside the release.
    """
    kept, dropped = noise.apply(metadata)
    age = ages(metadata.dob, metadata.photo_taken)
    rows: dict[str, Row] = {}
    for i in np.flatnonzero(kept).tolist():
        path = metadata.full_path[i]
        if not (re.match(r"\d{2}/", path) and is_file_name(path[3:])):
            raise UserError(
                f"{where}, row {i + 1}: full_path {path[:200]!r} is not the path of a crop"
            )
        row = Row(
            path=f"{database}_crop/{path}",
            name=metadata.name[i][:200],
            celeb_id=int(metadata.celeb_id[i]) if 0 <= metadata.celeb_id[i] < 2**53 else -1,
            age=int(age[i]) if np.isfinite(age[i]) else None,
            gender=int(metadata.gender[i]) if metadata.gender[i] in (0, 1) else -1,
            face_score=float(metadata.face_score[i]),
        )
        rows.setdefault(row.path, row)
    dropped["image listed before"] = int(kept.sum()) - len(rows)
    return list(rows.values()), dropped


def sample(rows: list[Row], count: int, seed: int) -> list[Row]:
    """Samples `count` rows, in the order of `rows`; independent of library versions."""
    chosen = sorted(range(len(rows)), key=lambda i: hash_number(f"draw {seed} {rows[i].path}"))
    return [rows[i] for i in sorted(chosen[:count])]


def split_by_person(rows: list[Row], test_share: float, seed: int) -> dict[str, dict[str, Row]]:
    """Splits rows by person; a person's split depends on the name and the seed alone.

    Args:
        rows: any rows.
        test_share: fraction of persons in the test set.
        seed: of the split.

    Returns:
        "train" and "test", each path to row.
    """
    splits: dict[str, dict[str, Row]] = {"train": {}, "test": {}}
    for row in rows:
        is_test = hash_number(f"split {seed} {row.person}") < test_share * 2**63
        splits["test" if is_test else "train"][row.path] = row
    return splits
