import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.training.objective import Objective

RNG = np.random.default_rng(0)
HEADS = {"age": "groups", "gender": "softmax"}
WEIGHTS = {"age": RNG.uniform(0.1, 3, 8).astype(np.float32)}
LOGITS = {
    "age": RNG.normal(size=(24, 8)).astype(np.float32),
    "gender": RNG.normal(size=(24, 2)).astype(np.float32),
}
BATCH = {
    "age": RNG.integers(-1, 8, 24).astype(np.int32),
    "gender": RNG.integers(-1, 2, 24).astype(np.int32),
    "mask": RNG.random(24) < 0.8,
}


def measure(objective: Objective, batch: dict, logits: dict = LOGITS) -> tuple[float, dict]:
    loss, sums = objective(logits, [(1.0, batch)], objective.total_weights(batch))
    return float(loss), jax.device_get(sums)


def means(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Known age labels, and the class-weighted mean of their losses."""
    known = BATCH["mask"] & (BATCH["age"] >= 0)
    labels, logits = BATCH["age"][known], LOGITS["age"][known].astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return labels, (weights[labels] * losses).sum() / weights[labels].sum()


def test_class_weights_apply_to_the_loss_only() -> None:
    objective = Objective({"age": "groups"}, 0.0, WEIGHTS)
    loss, sums = measure(objective, BATCH)
    assert loss == pytest.approx(means(WEIGHTS["age"])[1], rel=1e-5)
    labels, mean = means(np.ones(8))
    assert sums["age_count"] == len(labels)
    assert sums["age_loss"] / sums["age_count"] == pytest.approx(mean, rel=1e-5)
    smoothed, others = measure(Objective({"age": "groups"}, 0.2), BATCH)
    assert smoothed > mean and others["age_loss"] == sums["age_loss"]
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS["age"]),
        torch.tensor(np.where(BATCH["mask"], BATCH["age"], -1)).long(),
        torch.tensor(WEIGHTS["age"]),
        ignore_index=-1,
    )
    assert loss == pytest.approx(float(theirs), rel=1e-5)


def test_microbatches_add_up_to_the_batch() -> None:
    objective = Objective(HEADS, 0.1, WEIGHTS)
    whole = measure(objective, BATCH)
    totals, found = objective.total_weights(BATCH), []
    for rows in (slice(0, 5), slice(5, 24)):
        batch, logits = ({n: v[rows] for n, v in tree.items()} for tree in (BATCH, LOGITS))
        found.append(objective(logits, [(1.0, batch)], totals))
    added = jax.tree.map(jnp.add, *found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added, whole)


def test_mixed_images_count_for_both_labels() -> None:
    objective = Objective(HEADS, 0.1, WEIGHTS)
    other = {name: np.roll(column, 1) for name, column in BATCH.items()}
    targets = [(0.25, BATCH), (0.75, other)]
    mixed = objective(LOGITS, targets, objective.total_weights(BATCH))
    expected = jax.tree.map(
        lambda a, b: 0.25 * a + 0.75 * b, measure(objective, BATCH), measure(objective, other)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mixed, expected)


def test_no_known_labels_no_loss() -> None:
    batch = BATCH | {"age": np.full(24, -1, np.int32), "gender": np.full(24, -1, np.int32)}
    objective = Objective(HEADS, 0.1, WEIGHTS)
    assert measure(objective, batch)[0] == 0
    gradient = jax.grad(
        lambda logits: objective(logits, [(1.0, batch)], objective.total_weights(batch))[0]
    )(LOGITS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
