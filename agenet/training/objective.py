"""The loss that training minimises, and the sums for its metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agenet.labels import UNKNOWN
from agenet.training.distillation import KNOWN, distillation_losses
from agenet.training.losses import example_losses, known_classes, log_probabilities

# A weight, and a batch's labels and mask. Mixed images have two.
Target = tuple[jax.typing.ArrayLike, Mapping[str, jax.Array]]


@dataclass(frozen=True)
class Objective:
    """The sum over tasks of the mean loss over examples with known labels.

    Attributes:
        heads: the kind of head of each task, see `agenet.training.losses`.
        label_smoothing: see `agenet.training.losses.example_losses`.
        class_weights: for each task float32 [C], 1 by default. The mean is sum(w l) / sum(w), where
            w is the weight of the label, as in PyTorch's `cross_entropy` with `weight`.
        distill_weight: of the distillation loss, the mean over examples with a prediction of the
            teacher; the loss of the labels gets the rest, for tasks that the teacher predicts.
        temperature: see `agenet.training.distillation.distillation_losses`.
    """

    heads: Mapping[str, str]
    label_smoothing: float = 0.0
    class_weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    distill_weight: float = 0.0
    temperature: float = 1.0

    def total_weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The denominator of each task's mean; 1 if no label of the batch is known.

        With a teacher also that of the mean over its predictions, as `KNOWN`.
        """
        totals = {task: self._weights(task, batch).sum() for task in self.heads}
        if self.distill_weight:
            teacher: Any = batch.get("teacher", {KNOWN: True})
            totals[KNOWN] = (batch["mask"] & teacher[KNOWN]).sum(dtype=jnp.float32)
        return {task: jnp.where(total > 0, total, 1.0) for task, total in totals.items()}

    def __call__(
        self,
        logits: Mapping[str, jax.Array],
        targets: Sequence[Target],
        total_weights: Mapping[str, jax.Array],
        taught: Sequence[Target] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch, or the contribution of a microbatch to it.

        Args:
            logits: for each task [B, D].
            targets: weighted labels; several for mixed images.
            total_weights: see above, of the whole batch.
            taught: weighted predictions of a teacher, see `agenet.training.distillation.Teacher`.

        Returns:
            The loss, and the sums that `make_train_step` documents; class weights do not apply to
            these.
        """
        loss, sums = jnp.zeros(()), dict[str, jax.Array]()
        for task, head in self.heads.items():
            predicted = log_probabilities(task, head, logits[task])
            log_probs = predicted[task]
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
            task_loss /= total_weights[task]
            if self.distill_weight and any(task in teacher for _, teacher in taught):
                distilled = self._distilled(task, predicted, taught) / total_weights[KNOWN]
                task_loss += self.distill_weight * (distilled - task_loss)
            loss += task_loss
            names = (f"{task}_{name}" for name in ("loss", "correct", "count"))
            sums |= dict(zip(names, counts, strict=True))
        return loss, {"loss": loss} | sums

    def _distilled(
        self, task: str, predicted: Mapping[str, jax.Array], taught: Sequence[Target]
    ) -> jax.Array:
        """The sum of a task's distillation losses, over years if both predict them."""
        total = jnp.zeros(())
        for weight, teacher in taught:
            name = "years" if "years" in predicted and "years" in teacher else task
            losses = distillation_losses(teacher[name], predicted[name], self.temperature)
            total += weight * jnp.where(teacher[KNOWN], losses, 0.0).sum()
        return total

    def _weights(self, task: str, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The weight of each example, float32 [B], 0 if its label is unknown."""
        classes = known_classes(task, self.heads[task], batch)
        known = (classes != UNKNOWN).astype(jnp.float32)
        if task not in self.class_weights:
            return known
        return known * jnp.asarray(self.class_weights[task])[classes]
