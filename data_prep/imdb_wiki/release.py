"""Which pictures of IMDb-Wiki are wanted, where they lie, and what is known of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.labels import nearest_age_group
from data_prep.archives import MAX_FILE_BYTES, read_files
from data_prep.release import hash_number

from .matlab import Metadata, parse_metadata
from .noise import NoiseFilter, ages


@dataclass(frozen=True)
class Row:
    """One usable picture.

    Attributes:
        path: as the archive has it, such as "wiki_crop/17/10000217_1981-05-05_2009.jpg".
        name: of the person; empty where it is unknown.
        celeb_id: IMDb's number of the person; -1 in the Wikipedia database.
        age: years; None where the date of birth is not valid.
        gender: 0 female, 1 male, -1 unknown.
    """

    path: str
    name: str
    celeb_id: int
    age: int | None
    gender: int
    face_score: float

    @property
    def person(self) -> str:
        """Tells persons apart, across both databases: whoever is in both is one person."""
        if name := " ".join(self.name.casefold().split()):
            return name
        return f"celebrity {self.celeb_id}" if self.celeb_id >= 0 else self.path

    @property
    def age_group(self) -> int:
        return -1 if self.age is None else nearest_age_group(self.age)

    def features(self) -> dict[str, Any]:
        """All features of the prepared set but the picture."""
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


def missing_files(folder: Path, databases: tuple[str, ...]) -> list[str]:
    """What of the release is not in `folder`; empty if all is there."""
    missing = []
    for database in databases:
        if not image_source(folder, database).exists():
            missing.append(f"{database}_crop.tar (or the folder {database}_crop)")
        elif _metadata_file(folder, database) is None and not _archive(folder, database).is_file():
            missing.append(f"{database}.mat")
    return missing


def image_source(folder: Path, database: str) -> Path:
    """Where pictures are read from: the archive, or the folder where there is no archive."""
    archive = _archive(folder, database)
    return archive if archive.is_file() else folder / f"{database}_crop"


def _archive(folder: Path, database: str) -> Path:
    return folder / f"{database}_crop.tar"


def _metadata_file(folder: Path, database: str) -> Path | None:
    name = f"{database}.mat"
    paths = (folder / name, folder / f"{database}_crop" / name)
    return next((path for path in paths if path.is_file()), None)


def read_metadata(folder: Path, database: str) -> Metadata:
    """Reads `wiki.mat` or `imdb.mat`: a file beside the pictures, or within their archive.

    Raises:
        UserError: there is none, or it is not as released.
    """
    if path := _metadata_file(folder, database):
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than the released one: is it the right file?")
        return parse_metadata(path.read_bytes(), database, str(path))
    archive, member = _archive(folder, database), f"{database}_crop/{database}.mat"
    for name, data in read_files(archive, {member}):
        return parse_metadata(data, database, f"{archive}, {name}")
    raise UserError(f"{archive}: holds no {member}: put {database}.mat beside it")


def usable_rows(
    metadata: Metadata, database: str, noise: NoiseFilter, where: str
) -> tuple[list[Row], dict[str, int]]:
    """The rows that the filter keeps, and how many each of its rules dropped.

    Raises:
        UserError: a path could lead out of the release.
    """
    kept, dropped = noise.apply(metadata)
    age = ages(metadata.dob, metadata.photo_taken)
    rows: dict[str, Row] = {}
    for i in np.flatnonzero(kept).tolist():
        path = metadata.full_path[i]
        if not re.fullmatch(r"\d{2}/(?!\.+$)[^/\\\x00-\x1f\x7f]{1,200}", path):
            raise UserError(f"{where}, row {i + 1}: full_path {path[:200]!r} is no path of a crop")
        row = Row(
            path=f"{database}_crop/{path}",
            name=metadata.name[i][:200],
            celeb_id=int(metadata.celeb_id[i]) if 0 <= metadata.celeb_id[i] < 2**53 else -1,
            age=int(age[i]) if np.isfinite(age[i]) else None,
            gender=int(metadata.gender[i]) if metadata.gender[i] in (0, 1) else -1,
            face_score=float(metadata.face_score[i]),
        )
        rows.setdefault(row.path, row)
    dropped["picture listed before"] = int(kept.sum()) - len(rows)
    return list(rows.values()), dropped


def draw(rows: list[Row], count: int, seed: int) -> list[Row]:
    """`count` rows at random, in the order of `rows`; the same whatever the library's version."""
    chosen = sorted(range(len(rows)), key=lambda i: hash_number(f"draw {seed} {rows[i].path}"))
    return [rows[i] for i in sorted(chosen[:count])]


def split_by_person(rows: list[Row], test_share: float, seed: int) -> dict[str, dict[str, Row]]:
    """Splits "train" and "test", path to row; who is in which depends on person and seed alone.

    Args:
        rows: any pictures.
        test_share: the share of persons in the test set.
        seed: of the draw.
    """
    splits: dict[str, dict[str, Row]] = {"train": {}, "test": {}}
    for row in rows:
        is_test = hash_number(f"split {seed} {row.person}") < test_share * 2**63
        splits["test" if is_test else "train"][row.path] = row
    return splits
