"""Reads a release of APPA-REAL: tables of ages, and of genders where there are any."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenet.errors import UserError, printable
from agenet.labels import UNKNOWN, nearest_age_group, parse_gender
from data_prep.release import hash_number
from data_prep.tables import MAX_TABLE_BYTES, read_table

# Parts of the release with the number of their images; `valid` is a part of train in the prepared
# set, of which a run samples its own validation set.
RELEASED = {"train": 4_113, "valid": 1_500, "test": 1_978}
SPLIT_OF = {"train": "train", "valid": "train", "test": "test"}
_FOLDERS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_AGES = ["file_name", "apparent_age_avg", "apparent_age_std", "real_age"]
_GENDERS = ["file_full", "apparent_age", "gender", "ethnicity"]
_NAME = r"\d{6}\.jpg"
_MAX_AGE = 120


@dataclass(frozen=True)
class Labels:
    """What the tables say about an image.

    Attributes:
        part: of the release, a key of `RELEASED`.
        real_age: in years.
        apparent_age: mean of the guessed ages, -1 if unknown.
        apparent_age_std: their standard deviation, -1 if unknown.
        gender: 0 female, 1 male, -1 unknown.
        ethnicity: as released; "" if unknown.
    """

    part: str
    real_age: int
    apparent_age: float = UNKNOWN
    apparent_age_std: float = UNKNOWN
    gender: int = UNKNOWN
    ethnicity: str = ""


@dataclass(frozen=True)
class Photo:
    """A photograph and its labels; `path` is within the release, such as "valid/004113.jpg"."""

    path: str
    labels: Labels

    def features(self) -> dict[str, Any]:
        """Returns all features of the prepared set except the image."""
        labels = self.labels
        group = nearest_age_group(labels.real_age)
        return {
            "path": self.path,
            # The release does not identify persons, so every image is its own subject.
            "subject_id": hash_number(self.path),
            "split": labels.part,
            "age_official": group,
            "age_extended": group,
            "age_low": labels.real_age,
            "age_high": labels.real_age,
            "apparent_age": labels.apparent_age,
            "apparent_age_std": labels.apparent_age_std,
            "gender": labels.gender,
            "ethnicity": labels.ethnicity,
        }


def image_folder(folder: Path, part: str) -> Path | None:
    """The folder of the images of a part; None if it is missing."""
    return next((folder / name for name in _FOLDERS[part] if (folder / name).is_dir()), None)


def age_table(folder: Path, part: str) -> Path | None:
    """The table of ages as released, or one of file name and real age without a header."""
    names = [f"gt_avg_{part}.csv", *(f"{name}_labels.csv" for name in _FOLDERS[part])]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def gender_table(folder: Path, part: str) -> Path:
    return folder / f"appa_real_joined_{part}.csv"


def missing_files(folder: Path) -> list[str]:
    """Names of what `folder` lacks; tables of genders may be missing."""
    missing = []
    for part in RELEASED:
        if image_folder(folder, part) is None:
            missing.append(f"the folder {part}")
        if age_table(folder, part) is None:
            missing.append(f"gt_avg_{part}.csv (or {_FOLDERS[part][-1]}_labels.csv)")
    return missing


def read_labels(folder: Path, part: str) -> dict[str, Labels]:
    """Reads the labels of a part of the release, by the name of the file.

    Raises:
        UserError: a row does not parse or a file is listed twice, or the count is not that of the
            release; names the row.
    """
    path = age_table(folder, part)
    assert path
    labels = (
        _read_released(path, part) if path.name.startswith("gt_avg") else _read_bare(path, part)
    )
    if len(labels) != RELEASED[part]:
        raise UserError(
            f"{path}: {len(labels):,} rows, where the release has {RELEASED[part]:,}: download it "
            "again"
        )
    genders = gender_table(folder, part)
    return _add_genders(genders, labels) if genders.is_file() else labels


def _read_released(path: Path, part: str) -> dict[str, Labels]:
    labels: dict[str, Labels] = {}
    for where, (name, mean, std, real) in read_table(path, _AGES, "a table of APPA-REAL's ages"):
        _check_name(where, name, labels)
        labels[name] = Labels(part, _age(where, real), _number(where, mean), _number(where, std))
    return labels


def _read_bare(path: Path, part: str) -> dict[str, Labels]:
    labels: dict[str, Labels] = {}
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise UserError(f"{path}: larger than a table of APPA-REAL: is it the right file?")
    with path.open(newline="", errors="replace") as file:
        for number, row in enumerate(csv.reader(file), 1):
            where = f"{path}, line {number}"
            if not row:
                continue
            if len(row) != 2:
                raise UserError(f"{where}: {len(row)} fields, where there are two, as 000000.jpg,4")
            _check_name(where, row[0], labels)
            labels[row[0]] = Labels(part, _age(where, row[1]))
    return labels


def _add_genders(path: Path, labels: dict[str, Labels]) -> dict[str, Labels]:
    added = dict(labels)
    rows = read_table(path, _GENDERS, "a table of APPA-REAL's genders")
    for where, (full, apparent, gender, ethnicity) in rows:
        name = full.rpartition("/")[2]
        if name not in labels:
            raise UserError(f"{where}: {printable(full)} is not in the table of ages")
        own = labels[name]
        try:
            number = parse_gender(gender)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        mean = own.apparent_age if own.apparent_age >= 0 else _number(where, apparent)
        added[name] = Labels(
            own.part, own.real_age, mean, own.apparent_age_std, number, printable(ethnicity)
        )
    return added


def _check_name(where: str, name: str, labels: dict[str, Labels]) -> None:
    if not re.fullmatch(_NAME, name):
        raise UserError(f"{where}: file {printable(name)!r} is not like 000000.jpg")
    if name in labels:
        raise UserError(f"{where}: {name} was listed before")


def _age(where: str, text: str) -> int:
    age = _number(where, text)
    if age > _MAX_AGE:
        raise UserError(f"{where}: the age {printable(text)} is above {_MAX_AGE}")
    return int(age)


def _number(where: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1000:
        raise UserError(f"{where}: {printable(text)!r} is not a number of years")
    return number
