"""Reads the metadata of IMDb-Wiki, a MATLAB structure with one column per property."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from agenet.errors import UserError, printable
from data_prep.imdb_wiki.matfile import Matrix, TooLargeError, read_matrices

MAX_ROWS = 1_000_000  # imdb.mat has 460,723
_ADVICE = ": is it the file as released?"
_NUMBERS = ("dob", "photo_taken", "gender", "face_score", "second_face_score")
_TEXTS = ("full_path", "name")


@dataclass(frozen=True)
class Metadata:
    """The N rows of one database, as released.

    Attributes:
        full_path: N paths below the folder of the database.
        name: N names of persons; empty if unknown.
        dob: float64 [N], date of birth as MATLAB's datenum, 366 more than Python's ordinals.
        photo_taken: float64 [N], year.
        gender: float64 [N]: 0 female, 1 male, NaN unknown.
        face_score: float64 [N], detector score; -inf where no face was found.
        second_face_score: float64 [N], NaN where there is no second face.
        celeb_id: float64 [N], IMDb's number of the person; -1 in the Wikipedia database.
    """

    full_path: list[str]
    name: list[str]
    dob: np.ndarray
    photo_taken: np.ndarray
    gender: np.ndarray
    face_score: np.ndarray
    second_face_score: np.ndarray
    celeb_id: np.ndarray


def parse_metadata(data: bytes, database: str, where: str) -> Metadata:
    """Parses `imdb.mat` or `wiki.mat`.

    Args:
        data: content of the file.
        database: "imdb" or "wiki", the name of the structure.
        where: name of the file, for messages.

    Raises:
        UserError: it is not such a file.
    """
    columns = _structure(data, database, where)
    wanted = [*_TEXTS, *_NUMBERS, *(["celeb_id"] if database == "imdb" else [])]
    if missing := [name for name in wanted if name not in columns]:
        raise UserError(f"{where}: the structure {database} lacks {', '.join(missing)}{_ADVICE}")
    rows = columns["full_path"].count
    for name in wanted:
        if columns[name].count != rows or not 0 < rows <= MAX_ROWS:
            raise UserError(
                f"{where}: {name} has {columns[name].count:,} values, full_path {rows:,}{_ADVICE}"
            )
        if max(columns[name].shape) != rows:  # Its values could be in any order.
            shape = "x".join(map(str, columns[name].shape))
            raise UserError(f"{where}: {name} is {shape}, not one column{_ADVICE}")
        if not (columns[name].is_cell if name in _TEXTS else columns[name].is_number):
            kind = "texts" if name in _TEXTS else "numbers"
            raise UserError(f"{where}: {name} holds no {kind}{_ADVICE}")
    with _damage_explained(where):
        texts = {name: [cell.text() for cell in columns[name].cells()] for name in _TEXTS}
        numbers = {name: columns[name].numbers() for name in wanted if name not in _TEXTS}
    return Metadata(**{"celeb_id": np.full(rows, -1.0), **numbers, **texts})  # type: ignore[arg-type]


def _structure(data: bytes, name: str, where: str) -> dict[str, Matrix]:
    """Returns the fields of the structure."""
    if b"MATLAB 7.3" in data[:128] or data.startswith(b"\x89HDF"):
        raise UserError(
            f"{where}: a MATLAB file of version 7.3, but the released one is of version 5: use "
            "that, or save this one again in MATLAB with save(FILE, NAME, '-v7')"
        )
    with _damage_explained(where):
        found = next((each for each in read_matrices(data) if each.name == name), None)
        if found is None:
            raise UserError(f"{where}: holds no structure {name}{_ADVICE}")
        if not found.is_structure or found.count != 1:
            raise UserError(f"{where}: {name} is not one structure{_ADVICE}")
        return found.fields()


@contextmanager
def _damage_explained(where: str) -> Iterator[None]:
    try:
        yield
    except TooLargeError as error:
        raise UserError(
            f"{where}: refused, because it holds more than {error.limit >> 20} MiB{_ADVICE}"
        ) from None
    except (ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{where}: not a MATLAB file, or a damaged one ({printable(str(error))}): download it "
            "again"
        ) from None
