import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.losses import log_probabilities, masked_loss

LOGITS = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
LABELS = np.array([3, -1, 7, 0, -1, 2], np.int32)
MASK = np.array([True, True, False, True, False, True])
KNOWN = [0, 3, 5]


def test_sums_over_known_labels() -> None:
    nll, count = masked_loss(LOGITS, LABELS, MASK)
    logits = LOGITS.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(nll, -log_probs[KNOWN, LABELS[KNOWN]].sum(), rtol=1e-6)
    assert count == 3 and nll.dtype == count.dtype == jnp.float32


def test_unknown_and_padded_faces_have_no_gradient() -> None:
    gradient = jax.grad(lambda logits: masked_loss(logits, LABELS, MASK)[0])(LOGITS)
    unknown = np.setdiff1d(np.arange(6), KNOWN)
    assert not np.any(gradient[unknown])
    expected = jax.nn.softmax(LOGITS)[KNOWN, :] - jax.nn.one_hot(LABELS[KNOWN], 8)
    np.testing.assert_allclose(gradient[np.array(KNOWN)], expected, atol=1e-6)


@pytest.mark.parametrize(("labels", "mask"), [(-1, True), (3, False)])
def test_nothing_known_is_zero(labels: int, mask: bool) -> None:
    nll, count = masked_loss(LOGITS, np.full(6, labels), np.full(6, mask))
    assert nll == 0 and count == 0


def test_sigmoid_units() -> None:
    loss, _ = masked_loss(LOGITS, LABELS, MASK, "sigmoid")
    units = 1 / (1 + np.exp(-LOGITS[KNOWN].astype(np.float64)))
    targets = np.eye(8)[LABELS[KNOWN]]
    each = -np.log(np.where(targets == 1, units, 1 - units)).mean(1)
    np.testing.assert_allclose(loss, each.sum(), rtol=1e-6)
    log_probs = log_probabilities(LOGITS[KNOWN], "sigmoid")
    np.testing.assert_allclose(np.exp(log_probs), units / units.sum(1, keepdims=True), rtol=1e-5)


def test_large_logits_stay_finite() -> None:
    nll, _ = masked_loss(1e4 * LOGITS, LABELS, MASK)
    assert np.isfinite(nll)
