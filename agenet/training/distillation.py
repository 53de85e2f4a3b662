"""Knowledge distillation: a student learns from a teacher's probabilities besides the labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

# The column of a teacher's predictions that says which examples have one.
KNOWN = "known"
# Logarithms of probabilities below this, such as that of 0, make no difference.
_LOWEST = -100.0


@dataclass(frozen=True)
class Teacher:
    """Predictions to learn from.

    Attributes:
        takes: "row" if predictions are looked up by the row of the data set, "image" if they are
            computed by a network from the same augmented, normalised images that the student sees,
            as in Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent",
            CVPR 2022.
        predict: from `arrays` and the rows int32 [B] or images float32 [B, S, S, 3], to the
            log-probabilities [B, C] of tasks' classes and, if age is predicted by year, `years`
            [B, 101]; and `KNOWN`, bool [B], False for examples without predictions.
        arrays: the weights or predictions, on every device.
    """

    takes: Literal["row", "image"]
    predict: Callable[[Any, jax.Array], dict[str, jax.Array]]
    arrays: Any


def distillation_losses(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """T^2 KL(p || q) for each example, p and q softened by the temperature T.

    Softened probabilities are the softmax of log-probabilities divided by T, which is that of
    logits divided by T. The factor keeps the size of gradients: Hinton, Vinyals and Dean,
    "Distilling the Knowledge in a Neural Network", 2015, whose cross-entropy differs from the
    divergence by a constant. So T = 1 is the cross-entropy with the teacher's probabilities.

    Args:
        teacher, student: log-probabilities [B, C].
        temperature: T.

    Returns:
        float32 [B].
    """
    teacher = jax.lax.stop_gradient(jnp.maximum(teacher, _LOWEST))
    soft, own = (jax.nn.log_softmax(each / temperature) for each in (teacher, student))
    return temperature**2 * (jnp.exp(soft) * (soft - own)).sum(-1)


class StepWithTeacher:
    """A compiled training step with its third argument, the teacher's arrays, already given.

    As an argument, not as constants, the arrays are in memory once and leave compilation fast.
    """

    def __init__(self, step: Any, arrays: Any):
        self._step, self._arrays = step, arrays

    def __call__(self, state: Any, batch: Any) -> Any:
        return self._step(state, batch, self._arrays)

    def lower(self, state: Any, batch: Any) -> Any:
        """As that of a function made by `jax.jit`."""
        return self._step.lower(state, batch, self._arrays)
