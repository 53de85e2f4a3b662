import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from agenet.labels import AGE_GROUPS, HEADS, UNKNOWN, nearest_age_group
from agenet.models.heads import OrdinalHead
from agenet.models.layers import Dense
from agenet.training.losses import (
    balanced_weights,
    describe_heads,
    estimate_age_distribution,
    example_losses,
    known_classes,
    log_probabilities,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 8)).astype(np.float32)
YEARS = RNG.normal(size=(6, 101)).astype(np.float32)
BATCH = {
    "age": np.array([3, -1, 7, 0, -1, 2], np.int32),
    "gender": np.array([1, 0, -1, 0, 1, 0], np.int32),
    "age_low": np.array([17, -1, 60, 0, 23, 8], np.int32),
    "age_high": np.array([17, -1, 100, 2, 23, 12], np.int32),
    "mask": np.array([True, True, False, True, True, True]),
}


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64))
    return exponents / exponents.sum(-1, keepdims=True)


def alike(logits: np.ndarray) -> np.ndarray:
    """Smoothed logits over years."""
    near = scipy.stats.norm.pdf(np.subtract.outer(np.arange(101), np.arange(101)), scale=3)
    return logits @ (near / near.sum(1, keepdims=True)).T


def test_only_known_labels_count() -> None:
    losses = example_losses("age", "groups", LOGITS, BATCH)
    known = np.array([True, False, False, True, False, True])
    rows = np.flatnonzero(known)
    expected = -np.log(softmax(LOGITS)[rows, BATCH["age"][rows]])
    np.testing.assert_allclose(losses[rows], expected, rtol=1e-5)
    assert not np.any(losses[~known]) and losses.dtype == jnp.float32


def test_likelihood_of_ages_and_ranges() -> None:
    losses = example_losses("age", "distribution", YEARS, BATCH)
    known = np.array([True, False, False, True, True, True])
    for row in np.flatnonzero(known):
        low, high = BATCH["age_low"][row], BATCH["age_high"][row]
        likelihood = softmax(alike(YEARS))[row, low : high + 1].sum()
        assert losses[row] == pytest.approx(-np.log(likelihood), rel=1e-5)
    assert not np.any(losses[~known])


@pytest.mark.parametrize(("task", "head"), [(task, head) for task in HEADS for head in HEADS[task]])
def test_unknown_and_padded_faces_have_no_gradient(task: str, head: str) -> None:
    logits = YEARS[:, : describe_heads({task: head})[0][task]]

    def loss(logits: jax.Array) -> jax.Array:
        return example_losses(task, head, logits, BATCH, 0.1).sum()

    known = known_classes(task, head, BATCH) != UNKNOWN
    gradient = jax.grad(loss)(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.any(gradient, axis=1), known)
    assert np.isfinite(loss(jnp.asarray(1e4 * logits)))
    nothing = {name: np.full(6, -1) for name in BATCH} | {"mask": np.ones(6, bool)}
    assert not np.any(example_losses(task, head, logits, nothing, 0.1))


def test_sigmoid_units() -> None:
    logits = LOGITS[:, :2]
    losses = example_losses("gender", "sigmoid", logits, BATCH)
    known = np.array([True, True, False, True, True, True])
    units = 1 / (1 + np.exp(-logits.astype(np.float64)))
    targets = np.eye(2)[BATCH["gender"]]
    each = -np.log(np.where(targets == 1, units, 1 - units)).mean(1)
    np.testing.assert_allclose(losses[known], each[known], rtol=1e-6)
    found = log_probabilities("gender", "sigmoid", logits)["gender"]
    np.testing.assert_allclose(np.exp(found), units / units.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("head", ["groups", "distribution", "ordinal"])
def test_label_smoothing(head: str) -> None:
    """The loss is the mean over all labels that may replace the known one."""
    logits = LOGITS if head == "groups" else np.asarray(jax.nn.log_softmax(YEARS))
    others = []
    for label in range(logits.shape[1]):
        stand_in = {"age": "age", "low": "age_low", "high": "age_high"}
        columns = {name: np.full(6, label, np.int32) for name in stand_in.values()}
        others.append(example_losses("age", head, logits, BATCH | columns))
    plain, smoothed = (example_losses("age", head, logits, BATCH, s) for s in (0.0, 0.1))
    expected = np.where(plain != 0, 0.9 * plain + 0.1 * np.mean(others, 0), 0.0)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)


def test_label_smoothing_equals_pytorch() -> None:
    torch = pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    losses = example_losses("age", "groups", LOGITS, BATCH, 0.1)
    known = BATCH["mask"] & (BATCH["age"] >= 0)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS[known]),
        torch.tensor(BATCH["age"][known]).long(),
        label_smoothing=0.1,
        reduction="none",
    )
    np.testing.assert_allclose(losses[known], theirs, rtol=1e-5)
    units = example_losses("gender", "sigmoid", LOGITS[:, :2], BATCH, 0.1)
    known = BATCH["mask"] & (BATCH["gender"] >= 0)
    theirs = keras.losses.binary_crossentropy(
        np.eye(2, dtype=np.float32)[BATCH["gender"][known]],
        LOGITS[known, :2],
        from_logits=True,
        label_smoothing=0.1,
    )
    np.testing.assert_allclose(units[known], theirs, rtol=1e-5)


def test_classes_and_balanced_weights() -> None:
    assert known_classes("age", "groups", BATCH).tolist() == [3, -1, -1, 0, -1, 2]
    # 17, unknown, padding, 0 to 2, 23, and 8 to 12 years.
    assert known_classes("age", "ordinal", BATCH).tolist() == [3, -1, -1, 0, 4, 2]
    classes = RNG.choice(4, 100, p=[0.1, 0.2, 0.3, 0.4])
    oracle = pytest.importorskip("sklearn.utils.class_weight", reason="scikit-learn is missing")
    expected = oracle.compute_class_weight("balanced", classes=np.arange(4), y=classes)
    found = balanced_weights(np.append(classes, [UNKNOWN] * 9), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_years_to_groups() -> None:
    found = log_probabilities("age", "distribution", YEARS)
    years = softmax(alike(YEARS))
    np.testing.assert_allclose(np.exp(found["years"]), years, rtol=1e-5)
    expected = np.zeros((6, 8))
    for year in range(101):
        expected[:, nearest_age_group(year)] += years[:, year]
    np.testing.assert_allclose(np.exp(found["age"]), expected, rtol=1e-5)
    assert set(log_probabilities("age", "groups", LOGITS)) == {"age"}
    # No probability exceeds 1, however confident.
    sure = RNG.normal(scale=30, size=(1000, 101)).astype(np.float32)
    assert max(a.max() for a in log_probabilities("age", "distribution", sure).values()) <= 0


def test_ordinal_head_is_a_unimodal_distribution() -> None:
    head = OrdinalHead(101)
    features = RNG.normal(size=(50, 16)).astype(np.float32)
    params = head.init(jax.random.key(0), features)
    log_probs = np.asarray(head.apply(params, features), np.float64)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-5)
    # The classes at the ends take the tails.
    inner = np.sign(np.diff(log_probs[:, 1:-1]).round(6))
    turns = [np.count_nonzero(np.diff(signs[signs != 0])) for signs in inner]
    assert max(turns) <= 1
    # Confident and wrong, the loss and its gradient are still finite.
    params["params"]["kernel"] = params["params"]["kernel"] * 1000
    losses, gradient = jax.value_and_grad(lambda p: -head.apply(p, features).sum())(params)
    assert np.isfinite(losses)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("head", ["distribution", "ordinal"])
def test_ages_are_learnt_from_ranges(head: str) -> None:
    """From labels that are age groups, the year is learnt to within a group."""
    ages = RNG.integers(0, 70, 400)
    bounds = np.array([list(map(int, group.split("-"))) for group in AGE_GROUPS])
    ranges = bounds[[nearest_age_group(float(age)) for age in ages]]
    batch = {"age_low": ranges[:, 0], "age_high": ranges[:, 1], "mask": np.ones(400, bool)}
    features = np.stack([ages / 35 - 1, np.ones(400)], 1).astype(np.float32)
    features = np.maximum(features @ RNG.normal(size=(2, 64)), 0).astype(np.float32)
    layer = OrdinalHead(101) if head == "ordinal" else Dense(101)
    params = layer.init(jax.random.key(0), features)
    tx = optax.adam(0.02)

    @jax.jit
    def step(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState]:
        def loss(params: dict) -> jax.Array:
            return example_losses("age", head, layer.apply(params, features), batch).mean()

        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(300):
        params, state = step(params, state)
    years = log_probabilities("age", head, layer.apply(params, features))["years"]
    error = np.abs(np.exp(years) @ np.arange(101) - ages)
    # No label distinguishes the 41 years of the last range.
    assert error[ranges[:, 0] < 60].mean() < 4 and error.mean() < 12


def test_smoothing_of_years_keeps_gaussians() -> None:
    years = np.arange(101)
    logits = -0.5 * ((years - np.array([[40.0], [55.5]])) / 6) ** 2
    probabilities = np.exp(log_probabilities("age", "distribution", jnp.float32(logits))["years"])
    np.testing.assert_allclose(probabilities @ years, [40, 55.5], atol=0.01)
    spread = np.sqrt(probabilities @ years**2 - (probabilities @ years) ** 2)
    np.testing.assert_allclose(spread, 6, atol=0.01)
    # Within a range, years near other likely years are more likely.
    logits = np.where(years < 20, 0.0, np.where(years < 30, 3.0, -3.0))[None]
    years = log_probabilities("age", "distribution", jnp.float32(logits))["years"]
    probabilities = np.exp(years)[0]
    assert probabilities[20] > 1.5 * probabilities[29]


def test_age_distribution_from_exact_ages() -> None:
    ages = np.repeat([20, 21, 40], [100, 300, 600])
    shares = estimate_age_distribution(ages, ages)
    assert shares.sum() == pytest.approx(1) and shares.min() > 0
    assert shares[10:31].sum() == pytest.approx(0.4, abs=1e-3)
    assert shares @ np.arange(101) == pytest.approx(ages.mean(), abs=0.1)


def test_age_distribution_from_ranges() -> None:
    # FairFace's ranges and their numbers of training faces.
    low = np.array([0, 3, 10, 20, 30, 40, 50, 60, 70])
    high = np.array([2, 9, 19, 29, 39, 49, 59, 69, 100])
    people = np.array([1792, 10408, 9103, 25598, 19250, 10744, 6228, 2779, 842])
    unknown = [UNKNOWN] * 50
    shares = estimate_age_distribution(
        np.append(np.repeat(low, people), unknown), np.append(np.repeat(high, people), unknown)
    )
    probabilities = np.array([shares[a : b + 1].sum() for a, b in zip(low, high, strict=True)])
    np.testing.assert_allclose(probabilities, people / people.sum(), atol=0.015)
    assert np.all(
        np.diff(shares[60:]) < 0
    )  # 72 is more likely than 85, the middle of the last range.
    assert 71 < shares[70:] @ np.arange(70, 101) / shares[70:].sum() < 78


def test_age_distribution_without_ages_is_uniform() -> None:
    np.testing.assert_allclose(
        estimate_age_distribution(np.array([UNKNOWN]), np.array([UNKNOWN])), 1 / 101
    )
