"""The faces of a table, in columns, and checks that take all of its rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agenet.errors import UserError, printable
from agenet.labels import UNKNOWN, nearest_age_group_of_range


@dataclass(frozen=True)
class FaceTable:
    """The N faces of a table, in its order.

    Attributes:
        source: the table, for messages.
        path: strings [N], of the images, with "/" between folders.
        row: int64 [N], the line or row of each face in the table, counted from 1.
        unit: what `row` counts, "line" or "row".
        age_low, age_high: int32 [N], first and last year of the age, inclusive; equal if it is
            known to the year, -1 if it is unknown.
        gender: int32 [N], index into `agenet.labels.GENDERS`, -1 if unknown.
        subject: strings [N], the person; "" if unknown. None without such a column.
        split: strings [N]: "train", "validation", "test", "fold_0", "fold_1", ...; "" if unknown.
            None without such a column.
        box: float32 [N, 4], left, top, right and bottom of the face in pixels of the image; NaN
            where there is none. None without such a column.
        other: strings [N] of further columns, by name.
        columns: one line on which columns were taken for what.
    """

    source: str
    path: np.ndarray
    row: np.ndarray
    age_low: np.ndarray
    age_high: np.ndarray
    gender: np.ndarray
    subject: np.ndarray | None = None
    split: np.ndarray | None = None
    box: np.ndarray | None = None
    other: Mapping[str, np.ndarray] = field(default_factory=dict)
    columns: str = ""
    unit: str = "line"

    @property
    def age_group(self) -> np.ndarray:
        """The group nearest to each age, int32 [N]: an index into `AGE_GROUPS`, or `UNKNOWN`."""
        ranges, index = np.unique(
            np.stack([self.age_low, self.age_high], axis=1), axis=0, return_inverse=True
        )
        groups = [
            UNKNOWN if low == UNKNOWN else nearest_age_group_of_range(low, high)
            for low, high in ranges.tolist()
        ]
        return np.array(groups, np.int32)[index.ravel()]

    def __len__(self) -> int:
        return len(self.path)

    def where(self, index: int) -> str:
        """The place of a face in the table, for messages."""
        return f"{self.source}, {self.unit} {self.row[index]}"

    def select(self, rows: np.ndarray) -> "FaceTable":
        """The faces of some rows, int or bool [K]."""
        columns = ("path", "row", "age_low", "age_high", "gender", "subject", "split", "box")
        chosen: dict[str, Any] = {}
        for name in columns:
            values = getattr(self, name)
            chosen[name] = None if values is None else values[rows]
        return replace(self, **chosen, other={n: v[rows] for n, v in self.other.items()})


def check_rows(table: FaceTable) -> None:
    """Checks that no face is listed twice and that no subject is in two splits.

    Raises:
        UserError: one is; names the rows.
    """
    _check_unique(table)
    if table.subject is not None and table.split is not None:
        _check_subjects(table, table.subject, table.split)


def _check_unique(table: FaceTable) -> None:
    # By hashes, because sorting texts takes longer and a set of them more memory.
    hashes = np.fromiter(map(hash, table.path), np.int64, len(table))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    seen: dict[tuple, int] = {}
    for place in same.tolist():
        for index in order[place : place + 2].tolist():
            box = () if table.box is None else tuple(table.box[index].tolist())
            # Several faces of one image are told apart by their boxes.
            key = (table.path[index], *(() if any(map(math.isnan, box)) else box))
            first = seen.setdefault(key, index)
            if first != index:
                name = printable(table.path[index], 200)
                place_of_first = f"in {table.unit} {table.row[first]}"
                raise UserError(
                    f"{table.where(index)}: {name} was listed before, {place_of_first}: leave one "
                    "row for each image, or give each face of it a box"
                )


def _check_subjects(table: FaceTable, subject: np.ndarray, split: np.ndarray) -> None:
    splits: dict[str, int] = {}
    for index, (person, part) in enumerate(zip(subject.tolist(), split.tolist(), strict=True)):
        if not person or not part:
            continue
        first = splits.setdefault(person, index)
        if split[first] != part:
            raise UserError(
                f"{table.where(index)}: subject {printable(person)} is in {part}, but in "
                f"{split[first]} in {table.unit} {table.row[first]}: put each subject into one "
                "split, or leave the column out with --column split= to make folds by subject"
            )
