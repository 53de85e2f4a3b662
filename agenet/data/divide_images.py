"""Divides a user's own images into splits: by subject, near-duplicates, or as their table says."""

from collections.abc import Mapping

import numpy as np

from agenet.data.face_table import STRINGS
from agenet.data.make_folds import make_folds
from agenet.data.near_duplicates import find_clusters
from agenet.data.table_faces import FaceTable
from agenet.errors import UserError, printable
from agenet.labels import GENDERS

_LARGE_CLUSTER = 0.05  # share of the images


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


def leave_out_copies(
    checksums: np.ndarray, split: np.ndarray | None, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows without exact copies of others, and the copies; test faces are kept first."""
    last = np.zeros(len(usable)) if split is None else (split[usable] != "test").astype(float)
    order = usable[np.argsort(last, kind="stable")]
    _, first = np.unique(checksums[order], return_index=True)
    kept = np.sort(order[first])
    return kept, np.setdiff1d(usable, kept)


def describe_other_labels(
    table: FaceTable, checksums: np.ndarray, usable: np.ndarray, copies: np.ndarray
) -> list[str]:
    """A line on copies whose labels are not those of the image that is kept."""
    order = usable[np.argsort(checksums[usable], kind="stable")]
    kept = order[np.searchsorted(checksums[order], checksums[copies])]
    differ = np.any(
        [
            column[kept] != column[copies]
            for column in (table.age_low, table.age_high, table.gender)
        ],
        axis=0,
    )
    if not differ.any():
        return []
    example = printable(table.path[copies[differ.argmax()]], 200)
    return [
        f"warning: {differ.sum():,} exact copies have another age or gender, such as {example}: "
        "the labels of the image that is kept may be wrong"
    ]


def find_groups(table: FaceTable, usable: np.ndarray, near: np.ndarray) -> np.ndarray:
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


def all_subjects_known(table: FaceTable, usable: np.ndarray) -> bool:
    return table.subject is not None and bool((table.subject[usable] != "").all())


def describe_groups(
    table: FaceTable, usable: np.ndarray, near: np.ndarray, group: np.ndarray
) -> list[str]:
    sizes = np.bincount(group)
    if all_subjects_known(table, usable):
        return [f"subjects: {len(sizes):,}, from the column of the table"]
    known = 0 if table.subject is None else int((table.subject[usable] != "").sum())
    by = "near-duplicates" if not known else f"subjects ({known:,} faces) and near-duplicates"
    lines = [
        f"clusters: {len(sizes):,}, by {by}; pairs of images that look like the same photograph: "
        f"{len(near):,}"
    ]
    if sizes.max() > max(_LARGE_CLUSTER * len(usable), 20) and not known:
        example = table.path[usable[np.flatnonzero(group == sizes.argmax())[0]]]
        lines.append(
            f"warning: {sizes.max():,} images look alike, such as {printable(example, 200)}: are "
            "they faces?"
        )
    return lines


def name_groups(table: FaceTable, usable: np.ndarray, group: np.ndarray) -> Mapping[int, str]:
    """What tells the group of each row from others: its subject, or the path of its first row."""
    _, first = np.unique(group, return_index=True)
    names = [
        f"path {table.path[row]}"
        if table.subject is None or not table.subject[row]
        else f"subject {table.subject[row]}"
        for row in usable[first].tolist()
    ]
    return {row: names[number] for row, number in zip(usable.tolist(), group.tolist(), strict=True)}


def divide(
    table: FaceTable,
    usable: np.ndarray,
    group: np.ndarray,
    split: np.ndarray | None,
    folds: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], str]:
    """The rows of each split, and a line on how they were divided.

    Raises:
        UserError: there are too few groups for the folds.
    """
    if split is not None:
        own = split[usable]
        names = sorted(np.unique(own).tolist())
        return {name: usable[own == name] for name in names}, "splits: those of the table"
    groups = int(group.max()) + 1
    if groups < 2 * folds:
        raise UserError(
            f"{table.source}: {groups} subjects or clusters cannot be divided into "
            f"{folds} folds: lower --folds, or add images of other people"
        )
    faces = table.select(usable)
    cell = (faces.age_group + 1) * (len(GENDERS) + 1) + faces.gender + 1
    fold = make_folds(group, cell, folds, seed)
    by = "subject" if all_subjects_known(table, usable) else "cluster of near-duplicates"
    line = f"folds: {folds}, by {by}, balanced by age group and gender, seed {seed}"
    # In the order in which they are read.
    numbers = sorted((f"fold_{number}", number) for number in range(folds))
    return {name: usable[fold == number] for name, number in numbers}, line


def describe_leakage(splits: Mapping[str, np.ndarray], near: np.ndarray) -> list[str]:
    """Near-duplicates in different splits: with splits or subjects of the table."""
    number = {row: i for i, rows in enumerate(splits.values()) for row in rows.tolist()}
    apart = [pair for pair in near.tolist() if number[pair[0]] != number[pair[1]]]
    if not apart:
        return []
    faces = len({row for pair in apart for row in pair})
    return [f"warning: {faces:,} images look like an image of another split: see the report"]
