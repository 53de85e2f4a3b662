"""Prepares a user's own images: reads labels, cuts faces, divides them and writes a data set."""

import importlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agenet.data.divide_images import (
    all_subjects_known,
    describe_groups,
    describe_leakage,
    describe_other_labels,
    divide,
    find_groups,
    leave_out_copies,
    name_groups,
    plan_splits,
)
from agenet.data.face_table import STRINGS, read_face_table
from agenet.data.name_labels import read_folder
from agenet.data.near_duplicates import find_pairs
from agenet.data.own_images import EncodedFaces, encode_faces
from agenet.data.prepare import (
    already_prepared,
    data_set_names,
    full_disk_explained,
    require_builders,
    show_prepared,
)
from agenet.data.records import FACES_CONFIG, default_data_dir
from agenet.data.table_columns import ColumnOptions
from agenet.data.table_faces import FaceTable
from agenet.data.table_files import describe_missing, find_missing
from agenet.errors import UserError, printable
from agenet.files import expand_home, is_address, make_shipped_importable
from agenet.labels import TASK_CLASSES, UNKNOWN
from agenet.places.fetching import fetch, fetch_files, fetch_folder
from agenet.places.stores import parse_address
from agenet.places.working import open_data_dir

MIN_IMAGES = 50
NAMES_KEPT = 100  # of images that are left out, in the metadata
_MAX_LEFT_OUT = 0.5  # share of the images that may be unusable

_NO_SUBJECTS = "No subjects are known: "
NO_SUBJECTS_IN_FOLDS = (
    f"{_NO_SUBJECTS}near-duplicates are kept together, but a person may be in several folds, so "
    "that results are optimistic."
)
NO_SUBJECTS_IN_SPLITS = (
    f"{_NO_SUBJECTS}a person may be in several splits, so that results may be optimistic."
)


@dataclass(frozen=True)
class ImagesOptions:
    """What to prepare, see `agenet prepare images --help`.

    Attributes:
        name: of the data set.
        images: the folder of the images, or an address; that of the table by default.
        table: None takes the labels from names of folders or files.
        pattern: of the names of files, see `agenet.data.name_labels`.
        columns: of the table.
        strip_prefix: removed from the paths of the table.
        detect: whether faces are searched for.
        size: shorter side of the stored images in pixels, at most.
        folds: their number, where there are no splits.
        seed: of the folds.
        allow_missing: whether any number of images may be missing.
        data_dir: folder of the prepared data sets.
        overwrite: prepare it again if it is prepared already.
    """

    name: str
    images: Path | None = None
    table: Path | None = None
    pattern: str = ""
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    strip_prefix: str = ""
    detect: bool = False
    size: int = 256
    folds: int = 5
    seed: int = 0
    allow_missing: bool = False
    data_dir: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PreparedImages:
    """What was prepared, for the report.

    Attributes:
        name: of the data set, such as "mine/faces".
        folder: of the data set.
        splits: names of the splits with their rows.
        table: the faces that were kept and those that were left out.
        encoded: their images.
        left_out: paths of the images that are left out, by reason.
        near: pairs of rows int64 [P, 2] that show the same photograph.
        lines: what was printed about them.
        notice: a caveat that every result repeats; often empty.
        tasks: what can be learnt from it.
    """

    name: str
    folder: Path
    splits: dict[str, np.ndarray]
    table: FaceTable
    encoded: EncodedFaces
    left_out: dict[str, list[str]]
    near: np.ndarray
    lines: list[str]
    notice: str
    tasks: list[str]


def prepare_images(
    options: ImagesOptions, write_report: Callable[[PreparedImages], Path] | None = None
) -> None:
    """Prepares a data set, unless it is prepared already, and prints what it did.

    Args:
        options: what to prepare, from what and how.
        write_report: writes a page about the data set into its folder and returns its path.

    Raises:
        UserError: a mistake that the user can correct; nothing is left behind.
    """
    _check_name(options.name)
    make_shipped_importable()
    data_dir = options.data_dir or default_data_dir()
    with open_data_dir(data_dir, f"{options.name}/{FACES_CONFIG}") as root:
        path = root / options.name / FACES_CONFIG / "1.0.0"
        if already_prepared(path, options.overwrite):
            show_prepared(path, f"{options.name}/{FACES_CONFIG}", options.data_dir)
            return
        prepared = _prepare(options, path)
        if write_report:
            print(f"report: {write_report(prepared)}")


def _prepare(options: ImagesOptions, path: Path) -> PreparedImages:
    """Prepares a data set at `path`."""
    require_builders()
    start = time.monotonic()
    table, folder, left_out = _read_labels(options)
    # Before anything is decoded: it takes long to import.
    own = importlib.import_module("data_prep.own_images.builder")
    shared = importlib.import_module("data_prep.exclusive")
    with shared.exclusively(path.parent):
        unfinished = Path(tempfile.mkdtemp(prefix=shared.UNFINISHED, dir=path.parent))
        try:
            with full_disk_explained(path):
                prepared = _write(own, options, table, folder, left_out, unfinished)
                shared.replace(path, prepared.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{prepared.name} prepared in {time.monotonic() - start:.0f} s: {path}")
    show_prepared(path, prepared.name, options.data_dir, prepared.tasks)
    return replace(prepared, folder=path)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z]\w{0,59}", name):
        raise UserError(
            f"--name {printable(name)}: use small letters, digits and _, such as --name=my_faces"
        )
    if name in (*data_set_names(), "images"):
        raise UserError(f"--name {name} is the name of a public data set: choose another")


def _read_labels(options: ImagesOptions) -> tuple[FaceTable, Path, dict[str, list[str]]]:
    """The faces with labels, the folder of their images, and what is left out."""
    left_out: dict[str, list[str]] = {}
    if options.table is None:
        if options.images is None:
            raise UserError("name a table with --table, a folder of images with --images, or both")
        folder = options.images
        folder = fetch_folder(parse_address(folder)) if is_address(folder) else expand_home(folder)
        table, unmatched = read_folder(folder, options.pattern, options.columns)
        if unmatched:
            left_out["named without labels"] = unmatched
        print(f"labels {table.columns}")
    else:
        if options.pattern:
            raise UserError("--pattern is for images without a table: leave out one of the two")
        folder = options.images or options.table.parent
        path = fetch(options.table) if is_address(options.table) else expand_home(options.table)
        table = read_face_table(path, options.columns, keep=())
        print(f"columns of {path.name}: {table.columns} (change with --column FIELD=NAME)")
        table = _strip_prefix(table, options.strip_prefix)
        if is_address(folder):
            folder = fetch_files(parse_address(folder), table.path.tolist())
        folder = expand_home(folder)
        missing = find_missing(table.path, folder)
        if len(missing):
            if not options.allow_missing or len(missing) == len(table):
                more = "" if len(missing) == len(table) else ", or add --allow-missing"
                raise UserError(describe_missing(path.name, table.path, missing, folder) + more)
            left_out["missing"] = table.path[missing].tolist()
            table = table.select(np.setdiff1d(np.arange(len(table)), missing))
    no_label = (table.age_low == UNKNOWN) & (table.gender == UNKNOWN)
    if no_label.all():
        raise UserError(f"{table.source}: no face has an age or a gender ({table.columns})")
    if no_label.any():
        left_out["neither age nor gender"] = table.path[no_label].tolist()
        table = table.select(~no_label)
    _check_enough(table)
    return table, folder, left_out


def _strip_prefix(table: FaceTable, prefix: str) -> FaceTable:
    if not prefix:
        return table
    prefix = prefix.replace("\\", "/")
    paths = [path.removeprefix(prefix).lstrip("/") for path in table.path]
    return replace(table, path=np.array(paths, STRINGS))


def _check_enough(table: FaceTable) -> None:
    if len(table) < MIN_IMAGES:
        raise UserError(
            f"{table.source}: {len(table)} images with labels, fewer than the {MIN_IMAGES} that "
            "folds and a validation set take: add images"
        )
    classes = {"age": table.age_group, "gender": table.gender}
    counts = {task: len(np.unique(of_task[of_task >= 0])) for task, of_task in classes.items()}
    if max(counts.values()) < 2:
        only = " and ".join(
            f"the {task} {TASK_CLASSES[task][classes[task].max()]}"
            for task in counts
            if counts[task]
        )
        raise UserError(
            f"{table.source}: all faces have {only}: nothing can be learnt from a single class: "
            "add other faces"
        )


def _write(
    own: Any,
    options: ImagesOptions,
    table: FaceTable,
    folder: Path,
    left_out: dict[str, list[str]],
    unfinished: Path,
) -> PreparedImages:
    """Writes the data set into a folder that is removed if this fails."""
    detector = None
    if options.detect:
        from agenet.faces.detectors import create_detector

        detector = create_detector("auto", threads=1)
    spool = unfinished / "images.spool"
    encoded = encode_faces(table, folder, spool, options.size, detector)
    for reason, rows in encoded.left_out.items():
        left_out[reason] = table.path[rows].tolist()
    usable = np.flatnonzero(encoded.places[:, 1])
    _check_usable(table, encoded, folder)
    split, lines = plan_splits(table.split)
    if split is not None and (unknown := usable[split[usable] == ""]).size:
        left_out["no split"] = table.path[unknown].tolist()
        usable = np.setdiff1d(usable, unknown)
    usable, copies = leave_out_copies(encoded.checksums, split, usable)
    if len(copies):
        left_out["an exact copy of another image"] = table.path[copies].tolist()
        lines += describe_other_labels(table, encoded.checksums, usable, copies)
    near = usable[find_pairs(encoded.hashes[usable])]
    group = find_groups(table, usable, near)
    lines += describe_groups(table, usable, near, group)
    splits, line = divide(table, usable, group, split, options.folds, options.seed)
    lines += [line, *describe_leakage(splits, near)]
    if encoded.several.any():
        lines.append(
            f"several faces in {encoded.several.sum():,} images: the largest of each is taken"
        )
    for reason, paths in left_out.items():
        first = ", ".join(printable(path, 200) for path in paths[:3])
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        lines.append(f"left out: {len(paths):,} ({reason}): {first}{more}")
    tasks = []
    kept = table.select(usable)
    for task, classes in {"age": kept.age_group, "gender": kept.gender}.items():
        found = np.unique(classes[classes >= 0])
        if len(found) > 1:
            tasks.append(task)
        elif len(found):
            only = TASK_CLASSES[task][found[0]]
            lines.append(f"all faces have the {task} {only}: it cannot be learnt")
    notice = NO_SUBJECTS_IN_FOLDS if split is None else NO_SUBJECTS_IN_SPLITS
    if all_subjects_known(table, usable):
        notice = ""
    first_of_group = name_groups(table, usable, group)

    def features_of(row: int) -> dict[str, Any]:
        return own.features(
            table.path[row],
            "" if table.subject is None else table.subject[row],
            "" if table.split is None else table.split[row],
            first_of_group[row],
            int(table.age_low[row]),
            int(table.age_high[row]),
            int(table.gender[row]),
        )

    builder = own.create_builder(options.name, unfinished)
    metadata = {
        "notice": notice,
        "sources": [Path(table.source).name],
        "columns": table.columns,
        "left_out": own.left_out(left_out, NAMES_KEPT),
        "seed": options.seed,
        "summary": lines,
    }
    written = own.write(builder, spool, splits, encoded.places, features_of, metadata)
    # The images are needed no more; the report reads them from the data set.
    spool.unlink()
    name = f"{options.name}/{FACES_CONFIG}"
    return PreparedImages(
        name, written, splits, table, encoded, left_out, near, lines, notice, tasks
    )


def _check_usable(table: FaceTable, encoded: EncodedFaces, folder: Path) -> None:
    lost = int((encoded.places[:, 1] == 0).sum())
    usable = len(table) - lost
    if lost <= _MAX_LEFT_OUT * len(table) and usable >= MIN_IMAGES:
        return
    parts = [
        f"{len(rows):,} {reason} ({printable(table.path[rows[0]], 200)})"
        for reason, rows in sorted(encoded.left_out.items(), key=lambda item: -len(item[1]))[:5]
    ]
    raise UserError(
        f"{folder}: only {usable:,} of {len(table):,} images can be used: {', '.join(parts)}"
    )
