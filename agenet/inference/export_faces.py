"""Finds faces to check an exported network on, and others to calibrate its integers with."""

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agenet.data.decoding import load_faces, to_square
from agenet.data.records import open_records
from agenet.errors import UserError
from agenet.faces.image_io import FORMATS as IMAGE_FORMATS
from agenet.faces.image_io import read_image
from agenet.files import make_shipped_importable
from agenet.labels import AGE_GROUPS, GENDERS

MAX_CHECKED = 2000  # faces
MAX_CALIBRATION = 200  # faces
MIN_FACES = 40  # for calibration and checking together


@dataclass(frozen=True)
class Faces:
    """Faces for checking, and others for calibration.

    Attributes:
        what: a description, for messages.
        images: for checking, uint8 [N, S, S, 3].
        labels: task to int32 [N], -1 if unknown; empty without labels.
        others: for calibration, uint8 [M, S, S, 3].
    """

    what: str
    images: np.ndarray
    labels: dict[str, np.ndarray]
    others: np.ndarray


def find_faces(check: str, data_dir: str, size: int, to_calibrate: bool) -> Faces:
    """Reads the faces that `check` names, or draws some if it is empty.

    Raises:
        UserError: there are none, or too few for calibration and checking.
    """
    if not check:
        images = draw_faces(size)
        return Faces(f"{len(images)} drawn faces", images, {}, images)
    rng = np.random.default_rng(0)
    faces = read_folder(Path(check), size, rng) if Path(check).is_dir() else None
    faces = faces or read_data_set(check, data_dir, size, rng)
    count = len(faces.images) + len(faces.others)
    if not count:
        raise UserError(f"--check={check}: no faces to check on")
    if to_calibrate and count < MIN_FACES:
        raise UserError(
            f"--check={check}: has {count} faces, at least {MIN_FACES} are needed, half of them to "
            "calibrate integers with: name more faces"
        )
    return faces


def draw_faces(size: int) -> np.ndarray:
    """Draws a person of every age group and gender, uint8 [16, size, size, 3]."""
    make_shipped_importable()
    draw = importlib.import_module("data_prep.drawn_faces.draw")
    person = importlib.import_module("data_prep.drawn_faces.person")
    rng = np.random.default_rng(0)
    return np.stack(
        [
            draw.draw_face(person.create_person(age, gender, rng), person.create_view(rng), size)
            for age in range(len(AGE_GROUPS))
            for gender in range(len(GENDERS))
        ]
    )


def read_folder(folder: Path, size: int, rng: np.random.Generator) -> Faces:
    """Uses half of a folder's images for checking, the other half for calibration."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_FORMATS)
    paths = [paths[i] for i in rng.permutation(len(paths))[: MAX_CHECKED + MAX_CALIBRATION]]
    images = [to_square(read_image(path), size) for path in paths]
    others = min(len(images) // 2, MAX_CALIBRATION)
    what = f"{len(images) - others} faces of {folder}"
    faces = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return Faces(what, faces[others:], {}, faces[:others])


def read_data_set(name: str, data_dir: str, size: int, rng: np.random.Generator) -> Faces:
    """Uses test faces of a prepared data set for checking, other faces for calibration.

    Where one kind is missing, the faces are divided as those of a folder.
    """
    if "/" not in name:
        raise UserError(f"--check={name}: neither a folder nor a data set such as adience/faces")
    records = open_records(name, data_dir)
    rows, others = (
        rng.permutation(np.flatnonzero(chosen)) for chosen in (records.fold == 0, records.fold > 0)
    )
    what = "test faces"
    if min(len(rows), len(others)) < MIN_FACES // 2:
        # Only the test images were prepared, or only others: some of them calibrate.
        what = "faces"
        rows = rng.permutation(len(records.fold))
        others, rows = np.split(rows, [min(len(rows) // 2, MAX_CALIBRATION)])
    rows, others = rows[:MAX_CHECKED], others[:MAX_CALIBRATION]
    labels = {task: values[rows] for task, values in records.labels.items()}
    images, calibration = (load_faces(records, chosen, size) for chosen in (rows, others))
    return Faces(f"{len(rows)} {what} of {records.name}", images, labels, calibration)
