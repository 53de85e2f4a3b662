"""Losses that ignore unknown labels."""

import jax
import jax.numpy as jnp
import optax


def masked_nll(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum of the negative log-likelihoods of the known labels, and how many there are.

    Args:
        logits: [B, C] float32.
        labels: [B] int32; -1 is unknown and contributes nothing.
        mask: [B] bool; False is padding and contributes nothing.

    Returns:
        Two float32 scalars: the sum in nats, and the number of examples that it is over.
    """
    known = mask & (labels >= 0)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(jnp.where(known, nll, 0.0)), jnp.sum(known, dtype=jnp.float32)
