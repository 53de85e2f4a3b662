"""What a training minimises, and what it counts on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from agenet.labels import UNKNOWN
from agenet.training.losses import example_losses, known_classes, log_probabilities

# A batch's labels and mask, with the share that the pictures have of what they tell of.
Truth = tuple[jax.typing.ArrayLike, Mapping[str, jax.Array]]


@dataclass(frozen=True)
class Objective:
    """The sum over tasks of the mean loss over examples that are known.

    Attributes:
        heads: which head each task has, see `agenet.training.losses`.
        label_smoothing: see `agenet.training.losses.example_losses`.
        class_weights: per task float32 [C]; without, all classes weigh 1. The mean is that of
            PyTorch's `cross_entropy` with `weight`, sum(w l) / sum(w), w being the label's.
    """

    heads: Mapping[str, str]
    label_smoothing: float = 0.0
    class_weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def total_weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The denominator of each task's mean: 1 where nothing of the batch is known."""
        totals = {task: self._weights(task, batch).sum() for task in self.heads}
        return {task: jnp.where(total > 0, total, 1.0) for task, total in totals.items()}

    def __call__(
        self,
        logits: Mapping[str, jax.Array],
        truths: Sequence[Truth],
        total_weights: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch, or what a part of one adds to it, and what is counted there.

        Args:
            logits: [B, D] per task.
            truths: the one of the pictures, or, of mixed ones, all that are in them.
            total_weights: of the whole batch.

        Returns:
            The loss, and the sums over known labels of `make_train_step`, weighted by nothing but
            the shares.
        """
        loss, sums = jnp.zeros(()), dict[str, jax.Array]()
        for task, head in self.heads.items():
            log_probs = log_probabilities(task, head, logits[task])[task]
            found, counts = jnp.zeros(()), jnp.zeros(3)
            for share, batch in truths:
                losses = example_losses(task, head, logits[task], batch, self.label_smoothing)
                found += share * (self._weights(task, batch) * losses).sum()
                labelled = batch["mask"] & (batch[task] != UNKNOWN)
                of_label = (jax.nn.one_hot(batch[task], log_probs.shape[-1]) * log_probs).sum(-1)
                correct = (log_probs.argmax(-1) == batch[task]) & labelled
                counts += share * jnp.stack(
                    [
                        -jnp.where(labelled, of_label, 0.0).sum(),
                        correct.sum(dtype=jnp.float32),
                        labelled.sum(dtype=jnp.float32),
                    ]
                )
            loss += found / total_weights[task]
            names = (f"{task}_{name}" for name in ("loss", "correct", "count"))
            sums |= dict(zip(names, counts, strict=True))
        return loss, {"loss": loss} | sums

    def _weights(self, task: str, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What each example counts, float32 [B], 0 where it is unknown."""
        classes = known_classes(task, self.heads[task], batch)
        known = (classes != UNKNOWN).astype(jnp.float32)
        if task not in self.class_weights:
            return known
        return known * jnp.asarray(self.class_weights[task])[classes]
