"""Opens labelled faces to evaluate on: a prepared data set, or a table of image files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agenet.data.config import AgeLabels
from agenet.data.face_table import FaceTable, read_face_table
from agenet.data.records import FACES_CONFIG, Records, open_records
from agenet.data.table_columns import ColumnOptions
from agenet.errors import UserError, printable
from agenet.evaluation.predictors.faces import LabelledFaces
from agenet.faces.face import Box
from agenet.files import is_address
from agenet.inference.face_crops import FaceFiles, FaceSource, PreparedFaces
from agenet.labels import RACES, UNKNOWN
from agenet.places.fetching import fetch, fetch_files
from agenet.places.stores import parse_address

ALL, TEST = "all", "test"
_SEED = 0  # of a random choice of faces


@dataclass(frozen=True)
class TestFaces:
    """Labelled faces and where their images are.

    Attributes:
        faces: the labels.
        source: the images.
        records: the prepared data set that they are from, if they are from one.
        notes: what readers must know about them.
    """

    __test__ = False  # pytest would take it for a test.

    faces: LabelledFaces
    source: FaceSource
    records: Records | None = None
    notes: tuple[str, ...] = ()


def open_prepared(
    data: str, data_dir: str = "", labels: AgeLabels = "official", count: int = 0
) -> TestFaces:
    """Opens a part of a prepared data set.

    Args:
        data: DATA_SET[/CONFIG][:SPLIT]. The config is "faces" by default. The split is "test",
            "train", "fold_0", ... or "all"; by default "test" if there is one, else "all".
        data_dir: the folder of prepared data sets; empty for TFDS's default.
        labels: which age labels count, see `agenet.labels`.
        count: so many faces of it, chosen at random but always the same; 0: all.

    Raises:
        UserError: it is not prepared, or there is no such split.
    """
    name, _, split = data.partition(":")
    records = open_records(name if "/" in name else f"{name}/{FACES_CONFIG}", data_dir, labels)
    splits = _splits_of(records)
    split = split or (TEST if TEST in splits else ALL)
    rows = _choose(_rows_of(split, splits, records.name), count)
    columns = {}
    if records.race is not None:
        names = {UNKNOWN: "", **dict(enumerate(RACES))}
        columns["race"] = [names[race] for race in records.race[rows].tolist()]
    where = "" if split == ALL else f", {split}"
    some = f", {len(rows):,} at random" if count else ""
    faces = LabelledFaces(
        name=f"{records.name}{where}{some}",
        notice=records.notice,
        row=rows,
        path=(),
        subject=records.subject_id[rows],
        age_low=records.age_low[rows],
        age_high=records.age_high[rows],
        age_group=records.labels["age"][rows],
        gender=records.labels["gender"][rows],
        columns=columns,
    )
    return TestFaces(faces, PreparedFaces(records, rows), records)


def open_table(
    path: Path,
    *,
    split: str = "",
    images: Path | None = None,
    by: Sequence[str] = (),
    detector: str | None = None,
    columns: ColumnOptions | None = None,
    count: int = 0,
) -> TestFaces:
    """Opens the faces of a table.

    Args:
        path: the table, see `agenet.data.face_table.read_face_table`, or the address of one.
        split: a value of its column of splits, or "all"; by default "test" if there is one, else
            "all".
        images: the folder that paths in the table are relative to, or an address, from which the
            images of the table are fetched; by default that of the table.
        by: further columns to keep.
        detector: finds the faces that have no box, see `FaceFiles`; None: each image is a face.
        columns: which columns hold what.
        count: as for `open_prepared`.

    Raises:
        UserError: it is no such table, there is no such split, or no label.
    """
    images = images or path.parent
    path = fetch(path) if is_address(path) else path
    table = read_face_table(path, columns, keep=[name for name in by if name not in _ALWAYS])
    splits: dict[str, np.ndarray] = {}
    if table.split is not None:
        values = table.split.tolist()
        for value in sorted({*values} - {""}):
            splits[value] = np.array([at for at, v in enumerate(values) if v == value])
    splits[ALL] = np.arange(len(table))
    split = split or (TEST if TEST in splits else ALL)
    table = table.select(_choose(_rows_of(split, splits, str(path)), count))
    where = "" if split == ALL else f", {split}"
    some = f", {len(table):,} at random" if count else ""
    folder = images
    if is_address(images):
        folder = fetch_files(parse_address(images), table.path.tolist())
    files = [folder / name for name in table.path.tolist()]
    faces = _label(table, f"{path.name}{where}{some}")
    source = FaceFiles(files, _boxes(table), detector)
    return TestFaces(faces, source, notes=(_describe_faces(table, detector),))


_ALWAYS = ("age", "gender")


def _splits_of(records: Records) -> dict[str, np.ndarray]:
    """The rows of each split, by its name."""
    folds = np.unique(records.fold[records.fold >= 0]).tolist()
    names = {f"fold_{fold}": fold for fold in folds}
    if {*folds} <= {0, 1}:  # Fold 0 is the test set, and fold 1 the rest.
        names = {("test", "train")[fold]: fold for fold in folds}
    found = {name: np.flatnonzero(records.fold == fold) for name, fold in names.items()}
    return found | {ALL: np.arange(len(records.fold))}


def _rows_of(split: str, splits: dict[str, np.ndarray], where: str) -> np.ndarray:
    if split not in splits:
        known = ", ".join(map(printable, splits))
        has = f"has the splits {known}" if len(splits) > 1 else "is not divided into splits"
        raise UserError(f'there is no split "{printable(split)}": {where} {has}')
    return splits[split]


def _choose(rows: np.ndarray, count: int) -> np.ndarray:
    if not 0 < count < len(rows):
        return rows
    return np.sort(np.random.default_rng(_SEED).permutation(rows)[:count])


def _label(table: FaceTable, name: str) -> LabelledFaces:
    subject = np.full(len(table), UNKNOWN)
    if table.subject is not None:
        texts = table.subject.tolist()
        place = {text: at for at, text in enumerate(dict.fromkeys(texts))} | {"": UNKNOWN}
        subject = np.array([place[text] for text in texts])
    return LabelledFaces(
        name=printable(name),
        notice="",
        row=table.row,
        path=[str(path) for path in table.path.tolist()],
        subject=subject,
        age_low=table.age_low,
        age_high=table.age_high,
        age_group=table.age_group,
        gender=table.gender,
        columns={name: [*map(str, values.tolist())] for name, values in table.other.items()},
    )


def _boxes(table: FaceTable) -> list[Box | None] | None:
    if table.box is None:
        return None
    return [None if np.isnan(box).any() else Box(*box.tolist()) for box in table.box]


def _describe_faces(table: FaceTable, detector: str | None) -> str:
    """How the faces are cut from the images."""
    boxed = 0 if table.box is None else int((~np.isnan(table.box).any(axis=1)).sum())
    rest = len(table) - boxed
    how = "found by the detector" if detector else "whole images"
    parts = [f"{boxed:,} are cut at the boxes of the table"] * bool(boxed)
    parts += [f"{rest:,} are {how}"] * bool(rest)
    columns = table.columns.partition("; not used")[0]
    return f"Columns of the table: {columns}. Of the faces, {' and '.join(parts)}."
