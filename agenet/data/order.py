"""The order of examples as a pure function of seed and step, so that no state is saved."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """The number of whole batches in an epoch; examples left over are not used in that epoch."""
    return examples // batch_size


def training_batch(indices: np.ndarray, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """The rows [B], out of `indices` [N], of the batch of training step `step`, from 0."""
    epoch, position = divmod(step, steps_per_epoch(len(indices), batch_size))
    order = epoch_order(len(indices), seed, epoch)
    return indices[order[position * batch_size : (position + 1) * batch_size]]


@lru_cache(maxsize=2)
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation [N] of the examples in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


def evaluation_batches(
    indices: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every index once, in order: pairs of indices [B] and mask bool [B], False for padding.

    The last batch is padded with its last index.
    """
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        mask = np.arange(batch_size) < len(part)
        yield np.pad(part, (0, batch_size - len(part)), mode="edge"), mask
