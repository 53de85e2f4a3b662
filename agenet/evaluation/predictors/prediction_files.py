"""Reads predictions of other programs from tables: ages and genders by image file or by row."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agenet.data.face_table import plain_path
from agenet.data.table_columns import ColumnOptions, find_columns
from agenet.data.table_rows import read_chunks
from agenet.errors import UserError, printable
from agenet.evaluation.predictors.faces import LabelledFaces
from agenet.evaluation.predictors.predictions import Predictions, from_predictions
from agenet.faces.face import Prediction
from agenet.labels import AGE_GROUPS, GENDERS, MAX_AGE, UNKNOWN, parse_age, parse_gender

MAX_ROWS = 2_000_000
_SHOWN = 5  # names in a message
_EXTRA = ("age_low", "age_high", "age_group", "gender_probability")


@dataclass(frozen=True)
class _Row:
    """One row of the file: its line, what it is about, and the prediction."""

    line: int
    key: str
    prediction: Prediction


def read_predictions(name: str, path: Path, faces: LabelledFaces) -> Predictions:
    """Reads a table of predictions, such as `agenet predict --csv` writes.

    The column `row`, or one that is named like the path of an image, says which face a row is
    about. `age` is a number or a range, `gender` female or male; either may be missing, as may be
    `age_low` and `age_high`, the interval of 80 %, `age_group` and `gender_probability`. Paths are
    compared as they are or, if none is the same, by the names of the files. Of several rows about
    one face the first counts, which is the largest face in `agenet predict --csv`.

    Args:
        name: of the predictor.
        path: the table, see `agenet.data.table_rows.read_chunks`.
        faces: the faces that are evaluated.

    Raises:
        UserError: it is no such table, a value is wrong, or no row is about any of the faces.
    """
    by_row, rows = _read(path, faces)
    places = _places_by_row(faces) if by_row else _places_by_path(path, faces, rows)
    found: list[Prediction | None] = [None] * len(faces)
    strangers: list[str] = []
    repeated = 0
    for row in rows:
        place = places.get(row.key)
        if place is None:
            strangers.append(row.key)
        elif found[place] is None:
            found[place] = row.prediction
        else:
            repeated += 1
    if len(strangers) == len(rows):
        what = "rows" if by_row else "image files"
        there = [_key_of(faces, at, by_row) for at in range(min(len(faces), 2))]
        raise UserError(
            f"{path}: none of its {len(rows):,} {what} is in {faces.name}: {_first(strangers)}; "
            f"there it is {_first(there)}"
        )
    notes = []
    if strangers:
        notes.append(
            f"{len(strangers):,} of {len(rows):,} rows of the file are about no face of "
            f"{faces.name} and were left out: {_first(strangers)}."
        )
    if repeated:
        notes.append(
            f"{repeated:,} rows of the file are about a face that an earlier row is about; the "
            "first counts."
        )
    source = f"predictions in {printable(path.name)}"
    return from_predictions(name, found, source).with_notes(*notes)


def _read(path: Path, faces: LabelledFaces) -> tuple[bool, list[_Row]]:
    """Whether the rows are named by their numbers, and the rows."""
    rows: list[_Row] = []
    chunks = read_chunks(path)
    first = next(chunks)
    header = [name for name in first.header if name]
    by_row = "row" in header and not faces.path
    names = {"path": "row"} if by_row else {}
    if not faces.path and not by_row:
        raise UserError(
            f'{path} needs a column "row": the faces of {faces.name} have no files. The rows are '
            "those of predictions.csv"
        )
    of = find_columns(header, ColumnOptions(names=names), str(path)).of
    fields_of = ("path", "age", "gender")
    columns: dict[str, str] = {
        str(name): column for name, column in of.items() if name in fields_of
    }
    columns |= {name: name for name in _EXTRA if name in header}
    if not {"age", "gender"} & columns.keys():
        shown = ", ".join(printable(name) for name in header[:20])
        raise UserError(f'{path} needs a column "age" or "gender": it has {shown}')
    if "predictor" in header and len({*first.column("predictor")}) > 1:
        raise UserError(
            f"{path} holds predictions of several predictors: keep the rows of one in each file"
        )
    for chunk in itertools.chain([first], chunks):
        try:
            texts = {name: chunk.column(column) for name, column in columns.items()}
        except ValueError as error:
            raise UserError(f"{path}, {error}") from None
        for at, line in enumerate(chunk.rows):
            fields = {name: values[at] for name, values in texts.items()}
            try:
                prediction = _parse(fields)
            except ValueError as error:
                raise UserError(f"{path}, {chunk.unit} {line}: {error}") from None
            key = fields["path"] if by_row else plain_path(fields["path"])
            rows.append(_Row(line, key, prediction))
        if len(rows) > MAX_ROWS:
            raise UserError(f"{path} has more than {MAX_ROWS:,} rows: divide it")
    if not rows:
        raise UserError(f"{path} has a header, but no rows")
    return by_row, rows


def _parse(fields: Mapping[str, str]) -> Prediction:
    age = _age(fields.get("age", ""))
    low, high = (_number(fields.get(name, ""), name, 150) for name in ("age_low", "age_high"))
    group = fields.get("age_group", "")
    gender = parse_gender(fields.get("gender", ""))
    probability = _number(fields.get("gender_probability", ""), "gender_probability", 1)
    return Prediction(
        age=age,
        age_group=group if group in AGE_GROUPS else None,
        age_interval=None if low is None or high is None else (int(low), int(high)),
        gender=None if gender == UNKNOWN else GENDERS[gender],
        gender_probability=None if gender == UNKNOWN else probability,
    )


def _age(text: str) -> float | None:
    """Years; of a range such as 25-32 the middle."""
    try:
        return _number(text, "age", 150)
    except ValueError:
        low, high = parse_age(text)
        return None if low == UNKNOWN else (low + high) / 2


def _number(text: str, what: str, largest: float) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what} is {text[:40]!r}, not a number") from None
    if math.isnan(value):
        return None
    if not 0 <= value <= largest:
        raise ValueError(f"{what} is {text[:40]}: it must be from 0 to {largest:g}")
    return min(value, MAX_AGE) if largest > 1 else value


def _places_by_row(faces: LabelledFaces) -> dict[str, int]:
    return {str(row): place for place, row in enumerate(faces.row.tolist())}


def _places_by_path(path: Path, faces: LabelledFaces, rows: Sequence[_Row]) -> dict[str, int]:
    """The place of each face by what the file calls it."""
    places = _unique([plain_path(name) for name in faces.path])
    if any(row.key in places for row in rows):
        return places
    # Another program may have seen the same files in another folder.
    by_name = _unique([_name(name) for name in faces.path])
    keys = {row.key for row in rows}
    shared = Counter(map(_name, keys))
    return {
        key: by_name[name] for key in keys if shared[name := _name(key)] == 1 and name in by_name
    }


def _unique(names: Sequence[str]) -> dict[str, int]:
    """The places of names that occur once."""
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _key_of(faces: LabelledFaces, position: int, by_row: bool) -> str:
    return str(faces.row[position]) if by_row else faces.path[position]


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
