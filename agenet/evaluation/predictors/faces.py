"""Labelled faces to evaluate predictors on, and their divisions into subgroups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agenet.errors import UserError, printable
from agenet.labels import GENDERS, MAX_AGE, UNKNOWN

MAX_GROUPS = 30  # values of a column that divides the faces
_NAMED = 20  # names in a message
# FairFace's ranges, for ages that are known to the year.
_RANGES = ((0, 2), (3, 9), *((low, low + 9) for low in range(10, 70, 10)), (70, MAX_AGE))
_LOWEST = np.array([low for low, _ in _RANGES])


@dataclass(frozen=True)
class LabelledFaces:
    """N faces with labels, of a prepared data set or of a table.

    Attributes:
        name: of the data set or table, and of the part of it that these faces are.
        notice: a caveat about the data that the report repeats; often empty.
        row: int64 [N], the rows of the data set or of the table, from 0.
        path: the image files [N]; empty for a prepared data set, whose images have none.
        subject: int64 [N], the person shown; `UNKNOWN` where nobody knows.
        age_low, age_high: int32 [N], the range of the age in whole years, both ends included;
            equal if the age is known exactly, -1 if it is unknown.
        age_group: int32 [N], index into `agenet.labels.AGE_GROUPS`, or `UNKNOWN`.
        gender: int32 [N], index into `agenet.labels.GENDERS`, or `UNKNOWN`.
        columns: further columns that may divide the faces, each a text for every face, "" if
            unknown.
    """

    name: str
    notice: str
    row: np.ndarray
    path: Sequence[str]
    subject: np.ndarray
    age_low: np.ndarray
    age_high: np.ndarray
    age_group: np.ndarray
    gender: np.ndarray
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    def label(self, task: str) -> np.ndarray:
        """True classes of "age" or "gender", int32 [N]."""
        return self.gender if task == "gender" else self.age_group

    @property
    def is_range(self) -> np.ndarray:
        """Whether the age is known as a range of several years, bool [N]."""
        return self.age_low != self.age_high

    @property
    def is_exact(self) -> np.ndarray:
        """Whether the age is known to the year, bool [N]."""
        return (self.age_low == self.age_high) & (self.age_low != UNKNOWN)

    def describe(self, position: int) -> str:
        """The face's file, or its row."""
        return self.path[position] if self.path else f"row {self.row[position]}"

    def describe_age(self, position: int) -> str:
        """The labelled age or range in years; empty if it is unknown."""
        low, high = int(self.age_low[position]), int(self.age_high[position])
        if low == UNKNOWN:
            return ""
        return str(low) if low == high else f"{low}-{high}"

    def resampled(self) -> np.ndarray:
        """Who is drawn together by a bootstrap, int64 [N]: a face of an unknown subject alone."""
        unknown = self.subject == UNKNOWN
        first = int(self.subject.max(initial=0)) + 1
        return np.where(unknown, first + np.arange(len(self)), self.subject)


@dataclass(frozen=True)
class Division:
    """The faces by the values of one label or column.

    Attributes:
        name: such as "race".
        groups: the values, G.
        member: int [N], index into `groups`, or `UNKNOWN`.
    """

    name: str
    groups: tuple[str, ...]
    member: np.ndarray


def divide_faces(faces: LabelledFaces, by: Sequence[str] = ()) -> list[Division]:
    """Divides the faces by gender, by age, and by columns; groups without a face are left out.

    Args:
        faces: the faces.
        by: names of columns.

    Raises:
        UserError: there is no such column, or it has no value or more than `MAX_GROUPS`.
    """
    divisions = [
        Division("gender", GENDERS, faces.gender),
        _divide_by_range(faces),
        _divide_by_year("exact age", np.where(faces.is_exact, faces.age_low, UNKNOWN)),
    ]
    own = {division.name for division in divisions} | {"age"}
    divisions += [_divide_by_column(faces, name) for name in dict.fromkeys(by) if name not in own]
    return [kept for division in divisions if (kept := _without_empty(division)).groups]


def _divide_by_range(faces: LabelledFaces) -> Division:
    low, high = (np.where(faces.is_range, end, UNKNOWN) for end in (faces.age_low, faces.age_high))
    ranges = np.unique(np.stack([low, high], 1)[faces.is_range], axis=0).tolist()
    if len(ranges) > MAX_GROUPS:  # Such as 18-21 for one face and 17-23 for the next.
        middle = np.where(faces.is_range, (low + high) // 2, UNKNOWN)
        return _divide_by_year("middle of the age range", middle)
    member = np.full(len(faces), UNKNOWN)
    for index, (first, last) in enumerate(ranges):
        member[(low == first) & (high == last)] = index
    return Division("age range", tuple(f"{a}-{b}" for a, b in ranges), member)


def _divide_by_year(name: str, age: np.ndarray) -> Division:
    member = np.where(age == UNKNOWN, UNKNOWN, np.searchsorted(_LOWEST, age, "right") - 1)
    return Division(name, tuple(f"{a}-{b}" for a, b in _RANGES), member)


def _divide_by_column(faces: LabelledFaces, name: str) -> Division:
    if name not in faces.columns:
        known = ", ".join(printable(column) for column in [*faces.columns][:_NAMED])
        known = f"of {known}" if known else "no further columns"
        raise UserError(f"--by {name}: {faces.name} has {known}; gender and age are always used")
    values = [printable(value.strip()) for value in faces.columns[name]]
    groups = sorted({*values} - {""})
    if not 0 < len(groups) <= MAX_GROUPS:
        raise UserError(
            f"--by {name}: {len(groups):,} values in {faces.name}, 1 to {MAX_GROUPS} are possible"
        )
    place = {value: index for index, value in enumerate(groups)} | {"": UNKNOWN}
    return Division(name, tuple(groups), np.array([place[value] for value in values]))


def _without_empty(division: Division) -> Division:
    known = division.member != UNKNOWN
    present, member = np.unique(division.member[known], return_inverse=True)
    found = np.full(len(known), UNKNOWN)
    found[known] = member
    return Division(division.name, tuple(division.groups[i] for i in present), found)
