import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.losses import masked_nll

LOGITS = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
LABELS = np.array([3, -1, 7, 0, -1, 2], np.int32)
MASK = np.array([True, True, False, True, False, True])
KNOWN = [0, 3, 5]


def test_sums_over_known_labels() -> None:
    nll, count = masked_nll(LOGITS, LABELS, MASK)
    logits = LOGITS.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(nll, -log_probs[KNOWN, LABELS[KNOWN]].sum(), rtol=1e-6)
    assert count == 3 and nll.dtype == count.dtype == jnp.float32


def test_unknown_and_padded_faces_have_no_gradient() -> None:
    gradient = jax.grad(lambda logits: masked_nll(logits, LABELS, MASK)[0])(LOGITS)
    unknown = np.setdiff1d(np.arange(6), KNOWN)
    assert not np.any(gradient[unknown])
    expected = jax.nn.softmax(LOGITS)[KNOWN, :] - jax.nn.one_hot(LABELS[KNOWN], 8)
    np.testing.assert_allclose(gradient[np.array(KNOWN)], expected, atol=1e-6)


@pytest.mark.parametrize(("labels", "mask"), [(-1, True), (3, False)])
def test_nothing_known_is_zero(labels: int, mask: bool) -> None:
    nll, count = masked_nll(LOGITS, np.full(6, labels), np.full(6, mask))
    assert nll == 0 and count == 0


def test_large_logits_stay_finite() -> None:
    nll, _ = masked_nll(1e4 * LOGITS, LABELS, MASK)
    assert np.isfinite(nll)
