"""Reads the metadata of IMDb-Wiki, a MATLAB structure with one column per property.

The file is untrusted. `scipy.io.loadmat` parses it and executes nothing, but it has no size limit:
from a file of 2 MB it allocated 2 GB. So the file is decompressed here first, up to `MAX_BYTES`.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from agenet.errors import UserError

MAX_BYTES = 1 << 29  # decompressed; wiki.mat has 17 MB, imdb.mat some ten times as much
_HEADER_BYTES = 128
_COMPRESSED = 15  # data type miCOMPRESSED of "MAT-File Format", table 1-1
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
    rows = columns["full_path"].size
    for name in wanted:
        if columns[name].size != rows or rows == 0:
            raise UserError(
                f"{where}: {name} has {columns[name].size:,} values, full_path {rows:,}{_ADVICE}"
            )
        if columns[name].dtype.kind not in ("O" if name in _TEXTS else "biuf"):
            kind = "texts" if name in _TEXTS else "numbers"
            raise UserError(f"{where}: {name} holds no {kind}{_ADVICE}")
    texts = {name: [_text(cell) for cell in columns[name].ravel()] for name in _TEXTS}
    numbers = {
        name: columns[name].ravel().astype(np.float64) for name in wanted if name not in _TEXTS
    }
    return Metadata(**{"celeb_id": np.full(rows, -1.0), **numbers, **texts})  # type: ignore[arg-type]


_ADVICE = ": is it the file as released?"


def _structure(data: bytes, name: str, where: str) -> dict[str, np.ndarray]:
    """Returns the fields of the structure."""
    from scipy.io import loadmat

    if b"MATLAB 7.3" in data[:_HEADER_BYTES] or data.startswith(b"\x89HDF"):
        raise UserError(
            f"{where}: a MATLAB file of version 7.3, but the released one is of version 5: use "
            "that, or save this one again in MATLAB with save(FILE, NAME, '-v7')"
        )
    try:
        structure = loadmat(io.BytesIO(_decompressed(data, where)), variable_names=[name])[name]
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{where}: holds no structure {name}{_ADVICE}") from None
    # SciPy raises errors of any type for damaged files.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"{where}: not a MATLAB file, or a damaged one ({reason}): download it again"
        ) from None
    if structure.dtype.names is None or structure.size != 1:
        raise UserError(f"{where}: {name} is not one structure{_ADVICE}")
    fields: Any = structure.ravel()[0]
    return {field: np.asarray(fields[field]) for field in structure.dtype.names}


def _decompressed(data: bytes, where: str) -> bytes:
    """Returns the same file without compression.

    Raises:
        UserError: it is larger than `MAX_BYTES`.
        zlib.error, struct.error: it is damaged.
    """
    order = ">" if data[126:128] == b"MI" else "<"
    parts = [data[:_HEADER_BYTES]]
    position, left = _HEADER_BYTES, MAX_BYTES
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        part = data[position : position + 8 + size]
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            part = stream.decompress(part[8:], max_length=left)
            if not stream.eof and len(part) < left:
                raise zlib.error("cut short")
        left -= len(part)
        if left <= 0:
            raise UserError(
                f"{where}: refused, because it holds more than {MAX_BYTES >> 20} MiB{_ADVICE}"
            )
        parts.append(part)
        position += 8 + size
    return b"".join(parts)


def _text(cell: Any) -> str:
    """Returns the text of a cell; empty if it contains none."""
    value = cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else ""
    return value if isinstance(value, str) else ""
