"""Reads a release of Adience: five fold lists and the locations of its images.

The files are untrusted: names, sizes and numbers are checked before use.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from agenet.errors import UserError
from data_prep.kinds import find_archive
from data_prep.release import is_file_name
from data_prep.tables import read_table

FOLDS = 5
COLUMNS = [
    *("user_id", "original_image", "face_id", "age", "gender", "x", "y", "dx", "dy"),
    *("tilt_ang", "fiducial_yaw_angle", "fiducial_score"),
]
# Paths of faces in the two releases: <kind>/<user_id>/<prefix>.<face_id>.<original_image>
PREFIXES = {"faces": "coarse_tilt_aligned_face", "aligned": "landmark_aligned_face"}


@dataclass(frozen=True)
class Face:
    """One row of a fold list.

    Attributes:
        age: the string as released, such as "(25, 32)", "35" or "None".
        gender: the string as released: "f", "m", "u" or "".
        yaw: estimated yaw of the head in degrees.
    """

    user_id: str
    original_image: str
    face_id: int
    age: str
    gender: str
    yaw: float

    def path(self, kind: str) -> str:
        """Path of the image in the archive of a kind, "faces" or "aligned"."""
        name = f"{PREFIXES[kind]}.{self.face_id}.{self.original_image}"
        return f"{kind}/{self.user_id}/{name}"


def fold_list(folder: Path, fold: int) -> Path:
    return folder / f"fold_{fold}_data.txt"


def missing_files(folder: Path, kind: str) -> list[str]:
    """Names of the files of a release of `kind` that `folder` lacks."""
    missing = [
        path.name for path in (fold_list(folder, i) for i in range(FOLDS)) if not path.is_file()
    ]
    if not image_source(folder, kind).exists():
        missing.insert(0, f"{kind}.tar.gz (or the folder {kind})")
    return missing


def read_fold_lists(folder: Path) -> tuple[list[list[Face]], int]:
    """Returns the faces of each fold, and the number of exact duplicate rows dropped.

    Raises:
        UserError: a row does not parse, a fold is empty, or two rows contradict each other.
    """
    folds: list[list[Face]] = []
    seen: dict[tuple[str, str, int], tuple[int, list[str]]] = {}
    duplicates = 0
    for fold in range(FOLDS):
        faces = []
        for where, row in read_table(fold_list(folder, fold), COLUMNS, "a fold list of Adience"):
            face = _parse_row(where, row)
            key = (face.user_id, face.original_image, face.face_id)
            if key not in seen:
                seen[key] = (fold, row)
                faces.append(face)
            elif seen[key] == (fold, row):
                duplicates += 1
            else:
                raise UserError(
                    f"{where}: this face of {face.user_id!r} in {face.original_image!r} was listed "
                    f"before, in fold {seen[key][0]}, with another fold or other labels"
                )
        if not faces:
            raise UserError(f"{fold_list(folder, fold)}: no rows: is it the whole file?")
        folds.append(faces)
    return folds, duplicates


def _parse_row(where: str, row: list[str]) -> Face:
    values = dict(zip(COLUMNS, row, strict=True))
    for column in ("user_id", "original_image"):
        # They become parts of a path, which must not leave the release.
        if not is_file_name(values[column]):
            raise UserError(f"{where}: {column} {values[column][:200]!r} is not a plain file name")
    if not re.fullmatch(r"[0-9]{1,18}", values["face_id"]):
        raise UserError(f"{where}: face_id {values['face_id'][:200]!r} is not a number")
    try:
        yaw = float(values["fiducial_yaw_angle"])
    except ValueError:
        yaw = math.nan
    if not math.isfinite(yaw):
        angle = values["fiducial_yaw_angle"][:200]
        raise UserError(f"{where}: fiducial_yaw_angle {angle!r} is not a number")
    return Face(
        user_id=values["user_id"],
        original_image=values["original_image"],
        face_id=int(values["face_id"]),
        age=values["age"],
        gender=values["gender"],
        yaw=yaw,
    )


def image_source(folder: Path, kind: str) -> Path:
    """The archive of the images, or the folder if there is no archive."""
    return find_archive(folder, kind) or folder / kind
