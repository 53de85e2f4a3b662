"""Divides a data set into folds by subject, balanced by age group and gender."""

import numpy as np


def make_folds(group: np.ndarray, cell: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assigns each of N faces to a fold, int32 [N], so that no group is in two.

    Groups of several faces are assigned one by one, the largest first, each to the fold that has
    the fewest faces of its kinds. Groups of one face, of which there may be a million, are then
    dealt out kind by kind to where these are lacking.

    Args:
        group: the subject or cluster of each face, int [N], from 0.
        cell: its kind, such as age group and gender, int [N], from 0.
        folds: their number.
        seed: of the order of groups of equal size.
    """
    rng = np.random.default_rng(seed)
    fold = np.full(len(group), -1, np.int32)
    cells = int(cell.max(initial=0)) + 1
    counts = np.zeros((folds, cells))
    # A face too many of a rare kind weighs more than one of a frequent kind.
    weight = 1 / np.maximum(np.bincount(cell, minlength=cells), 1)
    sizes = np.bincount(group)
    by_group = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    several = rng.permutation(np.flatnonzero(sizes > 1))
    for number in several[np.argsort(-sizes[several], kind="stable")]:
        rows = by_group[starts[number] : starts[number + 1]]
        own = np.bincount(cell[rows], minlength=cells)
        # How much the sum of squares would grow, of the kinds and of all faces.
        cost = (counts * (own * weight)).sum(axis=1) + counts.sum(axis=1) * len(rows) / len(group)
        best = int(cost.argmin())
        fold[rows] = best
        counts[best] += own
    alone = rng.permutation(np.flatnonzero(sizes[group] == 1))
    for kind in np.unique(cell[alone]):
        rows = alone[cell[alone] == kind]
        # Ties go to the fold with the fewest faces in all.
        order = np.lexsort((counts.sum(axis=1), counts[:, kind]))
        share = _level(counts[order, kind], len(rows))
        fold[rows] = np.repeat(order, share)
        counts[order, kind] += share
    return fold


def _level(counts: np.ndarray, added: int) -> np.ndarray:
    """How many of `added` items to put on each of some piles, ascending, to level them: int."""
    filled = np.arange(1, len(counts) + 1)
    levels = (added + np.cumsum(counts)) / filled
    # As many of the lowest piles as end up higher than they were.
    piles = int(filled[levels > counts].max(initial=1))
    target = levels[piles - 1]
    share = np.zeros(len(counts), np.int64)
    share[:piles] = np.floor(np.maximum(target - counts[:piles], 0))
    share[: added - int(share.sum())] += 1
    return share
