"""The loss that training minimises, and the sums for its metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from agenet.labels import UNKNOWN
from agenet.training.losses import example_losses, known_classes, log_probabilities

# A weight, and a batch's labels and mask. Images mixed by mixup have two.
Target = tuple[jax.typing.ArrayLike, Mapping[str, jax.Array]]


@dataclass(frozen=True)
class Objective:
    """The sum over tasks of the mean loss over examples with known labels.

    Attributes:
        heads: the kind of head of each task, see `agenet.training.losses`.
        label_smoothing: see `agenet.training.losses.example_losses`.
        class_weights: for each task float32 [C], 1 by default. The mean is sum(w l) / sum(w), where
            w is the weight of the label, as in PyTorch's `cross_entropy` with `weight`.
    """

    heads: Mapping[str, str]
    label_smoothing: float = 0.0
    class_weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def total_weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The denominator of each task's mean; 1 if no label of the batch is known."""
        totals = {task: self._weights(task, batch).sum() for task in self.heads}
        return {task: jnp.where(total > 0, total, 1.0) for task, total in totals.items()}

    def __call__(
        self,
        logits: Mapping[str, jax.Array],
        targets: Sequence[Target],
        total_weights: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch, or the contribution of a microbatch to it.

        Args:
            logits: for each task [B, D].
            targets: weighted labels; several for mixed images.
            total_weights: see above, of the whole batch.

        Returns:
            The loss, and the sums that `make_train_step` documents; class weights do not apply to
            these.
        """
        loss, sums = jnp.zeros(()), dict[str, jax.Array]()
        for task, head in self.heads.items():
            log_probs = log_probabilities(task, head, logits[task])[task]
            task_loss, counts = jnp.zeros(()), jnp.zeros(3)
            for weight, batch in targets:
                losses = example_losses(task, head, logits[task], batch, self.label_smoothing)
                task_loss += weight * (self._weights(task, batch) * losses).sum()
                labelled = batch["mask"] & (batch[task] != UNKNOWN)
                of_label = (jax.nn.one_hot(batch[task], log_probs.shape[-1]) * log_probs).sum(-1)
                correct = (log_probs.argmax(-1) == batch[task]) & labelled
                counts += weight * jnp.stack(
                    [
                        -jnp.where(labelled, of_label, 0.0).sum(),
                        correct.sum(dtype=jnp.float32),
                        labelled.sum(dtype=jnp.float32),
                    ]
                )
            loss += task_loss / total_weights[task]
            names = (f"{task}_{name}" for name in ("loss", "correct", "count"))
            sums |= dict(zip(names, counts, strict=True))
        return loss, {"loss": loss} | sums

    def _weights(self, task: str, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The weight of each example, float32 [B], 0 if its label is unknown."""
        classes = known_classes(task, self.heads[task], batch)
        known = (classes != UNKNOWN).astype(jnp.float32)
        if task not in self.class_weights:
            return known
        return known * jnp.asarray(self.class_weights[task])[classes]
