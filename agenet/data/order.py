"""Which pictures come in which batch: a pure function of seed and step, so nothing to save."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; the rest of the shuffled examples waits for another epoch."""
    return examples // batch_size


def training_batch(indices: np.ndarray, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """The part [B] of `indices` [N] that training step `step` (from 0) sees."""
    epoch, position = divmod(step, steps_per_epoch(len(indices), batch_size))
    order = epoch_order(len(indices), seed, epoch)
    return indices[order[position * batch_size : (position + 1) * batch_size]]


@lru_cache(maxsize=2)
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order [N], a permutation, in which an epoch's batches take the examples."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


def evaluation_batches(
    indices: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every index once, in order: pairs of indices [B] and mask bool [B], False for padding."""
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        mask = np.arange(batch_size) < len(part)
        yield np.pad(part, (0, batch_size - len(part)), mode="edge"), mask
