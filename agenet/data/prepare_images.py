"""Prepares a user's own images: reads labels, cuts faces, divides them and writes a data set."""

import importlib
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agenet.data.face_table import STRINGS, FaceTable, read_face_table
from agenet.data.make_folds import make_folds
from agenet.data.name_labels import read_folder
from agenet.data.near_duplicates import find_clusters, find_pairs
from agenet.data.own_images import EncodedFaces, encode_faces
from agenet.data.prepare import (
    already_prepared,
    data_set_names,
    full_disk_explained,
    require_builders,
    show_prepared,
)
from agenet.data.records import default_data_dir
from agenet.data.table_columns import ColumnOptions
from agenet.data.table_files import describe_missing, find_missing
from agenet.errors import UserError, printable
from agenet.files import expand_home, make_shipped_importable
from agenet.labels import AGE_GROUPS, GENDERS, UNKNOWN, nearest_age_group_of_range

CONFIG = "faces"
MIN_IMAGES = 50
NAMES_KEPT = 100  # of images that are left out, in the metadata
_LARGE_CLUSTER = 0.05  # share of the images
_MAX_LEFT_OUT = 0.5  # share of the images that may be unusable

NO_SUBJECTS = (
    "No subjects are known: near-duplicates are kept together, but a person may be in several "
    "folds, so that results are optimistic."
)


@dataclass(frozen=True)
class ImagesOptions:
    """What to prepare, see `agenet prepare images --help`.

    Attributes:
        name: of the data set.
        images: the folder of the images; that of the table by default.
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


def prepare_images(options: ImagesOptions) -> PreparedImages | None:
    """Prepares a data set, and prints what it did; None if it is prepared already.

    Raises:
        UserError: a mistake that the user can correct; nothing is left behind.
    """
    _check_name(options.name)
    make_shipped_importable()
    root = expand_home(options.data_dir) if options.data_dir else default_data_dir()
    path = root / options.name / CONFIG / "1.0.0"
    if already_prepared(path, options.overwrite):
        show_prepared(path, f"{options.name}/{CONFIG}", options.data_dir)
        return None
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
        folder = expand_home(options.images)
        table, unmatched = read_folder(folder, options.pattern, options.columns)
        if unmatched:
            left_out["named without labels"] = unmatched
        print(f"labels {table.columns}")
    else:
        if options.pattern:
            raise UserError("--pattern is for images without a table: leave out one of the two")
        path = expand_home(options.table)
        folder = expand_home(options.images) if options.images else path.parent
        table = read_face_table(path, options.columns, keep=())
        print(f"columns of {path.name}: {table.columns} (change with --column FIELD=NAME)")
        table = _strip_prefix(table, options.strip_prefix)
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
    counts = {name: len(np.unique(values[values >= 0])) for name, values in _classes(table).items()}
    if max(counts.values()) < 2:
        only = " and ".join(
            f"the {name} {names[values.max()]}"
            for (name, values), names in zip(
                _classes(table).items(), (AGE_GROUPS, GENDERS), strict=True
            )
            if counts[name]
        )
        raise UserError(
            f"{table.source}: all faces have {only}: nothing can be learnt from a single class: "
            "add other faces"
        )


def _classes(table: FaceTable) -> dict[str, np.ndarray]:
    """Age group and gender of each face, int32 [N]."""
    ranges, index = np.unique(
        np.stack([table.age_low, table.age_high], axis=1), axis=0, return_inverse=True
    )
    groups = [UNKNOWN if low < 0 else nearest_age_group_of_range(low, high) for low, high in ranges]
    return {"age": np.array(groups, np.int32)[index.ravel()], "gender": table.gender}


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
    usable, copies = _without_copies(encoded.checksums, split, usable)
    if len(copies):
        left_out["an exact copy of another image"] = table.path[copies].tolist()
    near = usable[find_pairs(encoded.hashes[usable])]
    group = _groups(table, usable, near)
    lines += _describe_groups(table, usable, near, group)
    splits = _divide(table, usable, group, split, options, lines)
    lines += _describe_leakage(splits, near)
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
    for task, classes in _classes(kept).items():
        found = np.unique(classes[classes >= 0])
        if len(found) > 1:
            tasks.append(task)
        elif len(found):
            names = AGE_GROUPS if task == "age" else GENDERS
            lines.append(f"all faces have the {task} {names[found[0]]}: it cannot be learnt")
    notice = "" if _all_subjects_known(table, usable) else NO_SUBJECTS
    first_of_group = _first_paths(table, usable, group)

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
    name = f"{options.name}/{CONFIG}"
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


def plan_splits(split: np.ndarray | None) -> tuple[np.ndarray | None, list[str]]:
    """The TFDS split of each face from the splits of a table, and lines about changes.

    Data sets of agenet have either folds or the splits train and test; validation faces are
    sampled from the training set when a run starts.

    Args:
        split: strings [N], see `agenet.data.face_table.FaceTable`; None without splits.

    Returns:
        Strings [N], "" where it is unknown; None if folds are to be made.

    Raises:
        UserError: there are both folds and named splits.
    """
    if split is None:
        return None, []
    names = set(np.unique(split).tolist()) - {""}
    folds = {name for name in names if name.startswith("fold_")}
    if folds and names - folds:
        raise UserError(
            f"the splits are {', '.join(sorted(names))}: name either folds or train and test, or "
            "leave the column out with --column split="
        )
    if len(names) < 2 and names != {"test"}:
        what = f"all faces are in {names.pop()}" if names else "no face has a split"
        return None, [f"{what}: folds are made"]
    if "validation" not in names:
        return split, []
    target = "train" if "test" in names else "test"
    if "train" not in names:
        target = "train"
    line = f"the split validation becomes {target}"
    if target == "train":
        line += "; a run samples its own validation faces from train"
    return np.where(split == "validation", target, split).astype(STRINGS), [line]


def _without_copies(
    checksums: np.ndarray, split: np.ndarray | None, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows without exact copies of others, and the copies; test faces are kept first."""
    last = np.zeros(len(usable)) if split is None else (split[usable] != "test").astype(float)
    order = usable[np.argsort(last, kind="stable")]
    _, first = np.unique(checksums[order], return_index=True)
    kept = np.sort(order[first])
    return kept, np.setdiff1d(usable, kept)


def _groups(table: FaceTable, usable: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The subject or cluster of each usable row, int [K] from 0.

    Faces of a known subject belong together; near-duplicates do where a subject is unknown.
    """
    place = np.full(len(table), -1, np.int64)
    place[usable] = np.arange(len(usable))
    pairs = place[near]
    if table.subject is not None:
        subjects = table.subject[usable]
        known = subjects != ""
        pairs = pairs[~known[pairs].all(axis=1)] if len(pairs) else pairs
        order = np.argsort(subjects, kind="stable")
        same = (subjects[order][1:] == subjects[order][:-1]) & known[order][1:]
        chain = np.stack([order[:-1], order[1:]], axis=1)[same]
        pairs = np.concatenate([pairs, chain])
    return find_clusters(len(usable), pairs)


def _all_subjects_known(table: FaceTable, usable: np.ndarray) -> bool:
    return table.subject is not None and bool((table.subject[usable] != "").all())


def _describe_groups(
    table: FaceTable, usable: np.ndarray, near: np.ndarray, group: np.ndarray
) -> list[str]:
    sizes = np.bincount(group)
    if _all_subjects_known(table, usable):
        return [f"subjects: {len(sizes):,}, from the column of the table"]
    known = 0 if table.subject is None else int((table.subject[usable] != "").sum())
    by = "near-duplicates" if not known else f"subjects ({known:,} faces) and near-duplicates"
    lines = [
        f"clusters: {len(sizes):,}, by {by}; {len(near):,} pairs of images look like the same "
        "photograph"
    ]
    if sizes.max() > max(_LARGE_CLUSTER * len(usable), 20) and not known:
        example = table.path[usable[np.flatnonzero(group == sizes.argmax())[0]]]
        lines.append(
            f"warning: {sizes.max():,} images look alike, such as {printable(example, 200)}: are "
            "they faces?"
        )
    return lines


def _first_paths(table: FaceTable, usable: np.ndarray, group: np.ndarray) -> Mapping[int, str]:
    """What tells the group of each row from others: its subject, or the path of its first row."""
    _, first = np.unique(group, return_index=True)
    names = [
        f"path {table.path[row]}"
        if table.subject is None or not table.subject[row]
        else f"subject {table.subject[row]}"
        for row in usable[first].tolist()
    ]
    return {row: names[number] for row, number in zip(usable.tolist(), group.tolist(), strict=True)}


def _divide(
    table: FaceTable,
    usable: np.ndarray,
    group: np.ndarray,
    split: np.ndarray | None,
    options: ImagesOptions,
    lines: list[str],
) -> dict[str, np.ndarray]:
    """The rows of each split."""
    if split is not None:
        lines.append("splits: those of the table")
        own = split[usable]
        return {name: usable[own == name] for name in sorted(np.unique(own).tolist())}
    groups = int(group.max()) + 1
    if groups < 2 * options.folds:
        raise UserError(
            f"{table.source}: {groups} subjects or clusters cannot be divided into "
            f"{options.folds} folds: lower --folds, or add images of other people"
        )
    classes = _classes(table.select(usable))
    cell = (classes["age"] + 1) * (len(GENDERS) + 1) + classes["gender"] + 1
    fold = make_folds(group, cell, options.folds, options.seed)
    by = "subject" if _all_subjects_known(table, usable) else "cluster of near-duplicates"
    lines.append(
        f"folds: {options.folds}, by {by}, balanced by age group and gender, seed {options.seed}"
    )
    # In the order in which they are read.
    names = sorted((f"fold_{number}", number) for number in range(options.folds))
    return {name: usable[fold == number] for name, number in names}


def _describe_leakage(splits: Mapping[str, np.ndarray], near: np.ndarray) -> list[str]:
    """Near-duplicates in different splits: with splits or subjects of the table."""
    number = {row: i for i, rows in enumerate(splits.values()) for row in rows.tolist()}
    apart = [pair for pair in near.tolist() if number[pair[0]] != number[pair[1]]]
    if not apart:
        return []
    faces = len({row for pair in apart for row in pair})
    return [f"warning: {faces:,} images look like an image of another split: see the report"]
