"""The order of examples as a pure function of seed and step, so that no state is saved."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from agenet.labels import UNKNOWN


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """The number of whole batches in an epoch; examples left over are not used in that epoch."""
    return examples // batch_size


def training_batch(indices: np.ndarray, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """The rows [B], out of `indices` [N], of the batch of training step `step`, from 0."""
    epoch, position = divmod(step, steps_per_epoch(len(indices), batch_size))
    order = epoch_order(len(indices), seed, epoch)
    return indices[order[position * batch_size : (position + 1) * batch_size]]


@dataclass(frozen=True)
class TrainingOrder:
    """Which rows are in which batch of a training.

    Attributes:
        rows: of the training set, int [N].
        batch_size: rows in a batch.
        seed: determines the order.
        strata: of each row, int [N], for balanced sampling, see `balanced_order`; None for
            uniform sampling, where each row comes at most once in an epoch.
    """

    rows: np.ndarray
    batch_size: int
    seed: int
    strata: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.rows), self.batch_size)

    def batches(self, step: int) -> Iterator[np.ndarray]:
        """The rows [B] of the batches from a step on, without end."""
        if self.strata is None:
            for number in itertools.count(step):
                yield training_batch(self.rows, self.batch_size, seed=self.seed, step=number)
        epoch, position = divmod(step, self.steps_per_epoch)
        for number in itertools.count(epoch):
            order = self.epoch(number)
            for start in range(position if number == epoch else 0, self.steps_per_epoch):
                yield order[start * self.batch_size : (start + 1) * self.batch_size]

    def epoch(self, epoch: int) -> np.ndarray:
        """The rows [N] in the order of an epoch."""
        if self.strata is not None:
            return self.rows[balanced_order(self.strata, self.seed, epoch)]
        return self.rows[epoch_order(len(self.rows), self.seed, epoch)]


def balanced_order(strata: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The examples [N] of an epoch in which all strata are equally frequent.

    Within a stratum all examples come equally often, give or take one, which differs between
    epochs: in a stratum with fewer examples than its share they are repeated, in a larger one a
    part of them comes. Examples without a stratum are as frequent as without balancing.

    Args:
        strata: of each example, int [N] from 0, or `UNKNOWN`.
        seed: of the order.
        epoch: counted from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    names, counts = np.unique(strata, return_counts=True)
    known = names != UNKNOWN
    shares = np.where(known, counts[known].sum() / max(known.sum(), 1), counts)
    # Rounded so that they add up to N.
    quotas = np.diff(np.round(np.cumsum(shares)), prepend=0).astype(int)
    drawn = []
    for name, quota in zip(names, quotas, strict=True):
        members = np.flatnonzero(strata == name)
        whole, rest = divmod(quota, len(members))
        drawn += [np.tile(members, whole), rng.permutation(members)[:rest]]
    return rng.permutation(np.concatenate(drawn))


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
