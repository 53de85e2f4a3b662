"""Losses that ignore unknown labels, and the probabilities that go with them.

A task's classes are told apart by a softmax, or by one sigmoid unit each ("sigmoid") as the
reference report tried for gender.
"""

import jax
import jax.numpy as jnp
import optax

ACTIVATIONS = ("softmax", "sigmoid")


def masked_loss(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, activation: str = "softmax"
) -> tuple[jax.Array, jax.Array]:
    """Sum of the losses of the examples with known labels, and how many there are.

    The loss is the label's negative log-likelihood; of sigmoid units it is the mean over them of
    the binary cross-entropy, as in Keras.

    Args:
        logits: [B, C] float32.
        labels: [B] int32; -1 is unknown and contributes nothing.
        mask: [B] bool; False is padding and contributes nothing.

    Returns:
        Two float32 scalars: the sum in nats, and the number of examples that it is over.
    """
    known = mask & (labels >= 0)
    labels = jnp.maximum(labels, 0)
    if activation == "softmax":
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    return jnp.sum(jnp.where(known, losses, 0.0)), jnp.sum(known, dtype=jnp.float32)


def log_probabilities(logits: jax.Array, activation: str = "softmax") -> jax.Array:
    """Logits [B, C] to log-probabilities; those of sigmoid units are scaled to a sum of one."""
    if activation == "sigmoid":
        logits = jax.nn.log_sigmoid(logits)
    return jax.nn.log_softmax(logits)
