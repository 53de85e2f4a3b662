import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agenet.data.augment import (
    make_eval_transform,
    make_train_transform,
    make_views_transform,
)
from agenet.distributed.mesh import batch_sharded, create_mesh, replicated
from agenet.models import MODELS, create_model
from agenet.models.classifier import Classifier
from agenet.training.distillation import KNOWN, Teacher
from agenet.training.losses import example_losses, log_probabilities
from agenet.training.state import TrainState, create_state, create_variables
from agenet.training.steps import (
    Recipe,
    _scan_sum,
    make_eval_step,
    make_feature_step,
    make_train_step,
)

MEAN, STD = (120.0,) * 3, (60.0,) * 3
HEADS = {"age": "groups", "gender": "softmax"}
CLASS_WEIGHTS = {"age": np.linspace(0.2, 2, 8, dtype=np.float32)}
PLAIN = Recipe()
LOSS = Recipe(mixup=0.4, label_smoothing=0.1, class_weights=CLASS_WEIGHTS)
ALL = dataclasses.replace(LOSS, accumulate=2, ema=0.99)
PREDICTED = np.log(np.random.default_rng(1).dirichlet(np.ones(8), 16)).astype(np.float32)
BY_ROW = Teacher(
    "row",
    lambda arrays, rows: {"age": arrays[rows], KNOWN: rows % 3 > 0},
    PREDICTED,
)
BY_IMAGE = Teacher(
    "image",
    lambda arrays, images: {
        "age": jnp.tanh(images.mean((1, 2)) @ arrays),
        KNOWN: jnp.ones(len(images), bool),
    },
    PREDICTED[:3],
)
TAUGHT = Recipe(teacher=BY_ROW, distill_weight=0.6, temperature=2.0)
KNOBS = dataclasses.replace(TAUGHT, cutmix=0.8, accumulate=2, repeats=True)
NETWORK = dataclasses.replace(KNOBS, teacher=BY_IMAGE, accumulate=1, mixup=0.4)


def make_batch(size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 20, 20, 3), np.uint8),
        "age": (np.arange(size) % 9 - 1).astype(np.int32),
        "gender": (np.arange(size) % 3 - 1).astype(np.int32),
        "age_low": np.arange(size, dtype=np.int32) - 1,
        "age_high": np.maximum(2 * np.arange(size, dtype=np.int32) - 2, -1),
        "row": np.arange(size, dtype=np.int32),
        "mask": np.ones(size, bool),
    }


class PlainNet(nn.Module):
    """Without batch normalisation."""

    FLAVOURS = ("plain",)
    STAGES = (("conv",),)
    input_size = 16

    flavour: str = "plain"
    frozen_stages: int = 0
    dtype: np.dtype = np.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.relu(nn.Conv(8, (3, 3), strides=2, dtype=self.dtype, name="conv")(images))


def new_state(
    model: Classifier, tx: optax.GradientTransformation, recipe: Recipe = PLAIN
) -> TrainState:
    return create_state(model, tx, create_variables(model, 16, 0), average=recipe.ema > 0)


def train(
    steps: int,
    devices: int,
    dropout_rate: float = 0.5,
    recipe: Recipe = PLAIN,
    batch: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> tuple[TrainState, dict]:
    mesh = create_mesh(jax.devices()[:devices])
    model = create_model("tiny", {"age": 8, "gender": 2}, dropout_rate=dropout_rate, **options)
    tx = optax.sgd(0.1, momentum=0.9)
    transform = make_train_transform(16, MEAN, STD)
    step = make_train_step(
        model,
        tx,
        transform,
        heads=HEADS,
        seed=1,
        steps_per_epoch=1,
        mesh=mesh,
        recipe=recipe,
    )
    create = jax.jit(lambda: new_state(model, tx, recipe), out_shardings=replicated(mesh))
    state = create()
    sums: dict[str, jax.Array] = {}
    for _ in range(steps):
        state, sums = step(state, jax.device_put(batch or make_batch(), batch_sharded(mesh)))
    return state, jax.device_get(sums)


@pytest.mark.usefixtures("tiny_net")
@pytest.mark.parametrize(
    "recipe", [PLAIN, ALL, KNOBS, NETWORK], ids=["plain", "all", "knobs", "network"]
)
def test_one_device_and_eight_give_the_same_numbers(recipe: Recipe) -> None:
    one, eight = train(4, 1, recipe=recipe), train(4, 8, recipe=recipe)
    assert one[0].params["backbone"]["conv"]["kernel"].sharding.num_devices == 1
    assert eight[0].params["backbone"]["conv"]["kernel"].sharding.num_devices == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, eight)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("recipe", [PLAIN, LOSS], ids=["plain", "loss"])
def test_accumulated_gradient_equals_that_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, devices: int, recipe: Recipe
) -> None:
    monkeypatch.setitem(MODELS, "tiny", PlainNet)
    in_parts = dataclasses.replace(recipe, accumulate=4)
    # Nearly all known labels are in one microbatch.
    batch = make_batch(32)
    batch["age"] = np.where((np.arange(32) % 4 == 1) | (np.arange(32) < 3), batch["age"], -1)
    whole, parts = (train(3, devices, 0.0, r, batch) for r in (recipe, in_parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)


@pytest.mark.parametrize("unroll", [1, 3])
def test_scan_sum(unroll: int) -> None:
    """On accelerators microbatches are a loop, on CPUs it is unrolled."""

    def function(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return 2 * carry + x, {"product": carry * x}

    carry, total = jax.jit(_scan_sum, static_argnums=(0, 3))(
        function, jnp.float32(1), jnp.arange(3.0), unroll
    )
    assert (float(carry), float(total["product"])) == (12, 0 * 1 + 1 * 2 + 2 * 5)


@pytest.mark.usefixtures("tiny_net")
def test_microbatches_update_batch_statistics_in_turn() -> None:
    batch, transform = make_batch(), make_eval_transform(16, MEAN, STD)
    mesh, tx = create_mesh(jax.devices()[:1]), optax.sgd(0.0)
    model = create_model("tiny", {"age": 8, "gender": 2})
    step = make_train_step(
        model,
        tx,
        lambda images, rngs: transform(images),
        heads=HEADS,
        seed=1,
        steps_per_epoch=1,
        mesh=mesh,
        recipe=Recipe(accumulate=2),
    )
    state = new_state(model, tx)
    variables = jax.device_get(state.variables)
    found, _ = step(state, jax.device_put(batch, batch_sharded(mesh)))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        _, updates = model.apply(
            variables, transform(batch["image"][rows]), train=True, mutable=["batch_stats"]
        )
        variables |= updates
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        found.batch_stats,
        variables["batch_stats"],
    )


def test_mixup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", PlainNet)
    monkeypatch.setattr(jax.random, "beta", lambda key, a, b: jnp.float32(a))
    batch, transform = make_batch(), make_eval_transform(16, MEAN, STD)
    mesh, tx = create_mesh(jax.devices()[:8]), optax.sgd(0.1)
    model = create_model("tiny", {"age": 8, "gender": 2}, dropout_rate=0.0)
    step = make_train_step(
        model,
        tx,
        lambda images, rngs: transform(images),
        heads={"gender": "softmax"},
        seed=1,
        steps_per_epoch=1,
        mesh=mesh,
        recipe=Recipe(mixup=0.3),
    )
    state = new_state(model, tx)
    images = transform(batch["image"])
    logits: Any = model.apply(state.variables, 0.3 * images + 0.7 * np.roll(images, 1, 0))
    log_probs = np.asarray(jax.nn.log_softmax(logits["gender"]))
    expected = 0.0
    for i, gender in enumerate(batch["gender"]):
        expected -= 0.3 * log_probs[i, gender] * (gender >= 0)
        expected -= 0.7 * log_probs[i, batch["gender"][i - 1]] * (batch["gender"][i - 1] >= 0)
    known = np.sum(batch["gender"] >= 0)
    _, sums = step(state, jax.device_put(batch, batch_sharded(mesh)))
    assert sums["gender_loss"] == pytest.approx(expected, rel=1e-5)
    assert sums["loss"] == pytest.approx(expected / known, rel=1e-5)
    assert sums["gender_count"] == pytest.approx(known)


@pytest.mark.parametrize("teacher", [None, BY_ROW])
def test_cutmix_of_ages_by_year(monkeypatch: pytest.MonkeyPatch, teacher: Teacher | None) -> None:
    monkeypatch.setitem(MODELS, "tiny", PlainNet)
    own = np.ones((16, 16, 1), np.float32)
    own[:4, 8:] = 0
    share = own.mean()
    monkeypatch.setattr("agenet.training.steps.draw_mixing", lambda *_: (share, own))
    batch, transform = make_batch(), make_eval_transform(16, MEAN, STD)
    mesh, tx = create_mesh(jax.devices()[:1]), optax.sgd(0.1)
    model = create_model("tiny", {"age": 101}, ordinal=("age",), dropout_rate=0.0)
    recipe = Recipe(cutmix=1.0, teacher=teacher, distill_weight=0.25, temperature=1.0)
    step = make_train_step(
        model,
        tx,
        lambda images, rngs: transform(images),
        heads={"age": "ordinal"},
        seed=1,
        steps_per_epoch=1,
        mesh=mesh,
        recipe=recipe,
    )
    state = new_state(model, tx)
    images = np.asarray(transform(batch["image"]))
    images = own * images + (1 - own) * np.roll(images, 1, 0)
    logits: Any = model.apply(state.variables, images)
    partner = {name: np.roll(column, 1, 0) for name, column in batch.items()}
    losses = [example_losses("age", "ordinal", logits["age"], b) for b in (batch, partner)]
    known = np.sum(batch["age_low"] >= 0)
    expected = float((share * losses[0] + (1 - share) * losses[1]).sum() / known)
    if teacher:
        groups = np.asarray(log_probabilities("age", "ordinal", logits["age"])["age"])
        soft = np.exp(PREDICTED) / np.exp(PREDICTED).sum(1, keepdims=True)
        taught = 0.0
        for row in range(16):
            for weight, target in ((share, row), (1 - share, (row - 1) % 16)):
                if target % 3:
                    taught += weight * (soft[target] * (np.log(soft[target]) - groups[row])).sum()
        expected = 0.75 * expected + 0.25 * taught / sum(row % 3 > 0 for row in range(16))
    _, sums = step(state, jax.device_put(batch, batch_sharded(mesh)))
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("tiny_net")
def test_repeated_images_differ() -> None:
    """Under balanced sampling the same row twice in a batch, or in an epoch, is augmented anew."""
    seen: list[np.ndarray] = []
    mesh, tx = create_mesh(jax.devices()[:1]), optax.sgd(0.0)
    model = create_model("tiny", {"age": 8, "gender": 2}, dropout_rate=0.0)
    crops = make_train_transform(16, MEAN, STD)

    def transform(images: jax.Array, rngs: jax.Array) -> jax.Array:
        jax.debug.callback(lambda keys: seen.append(np.asarray(keys)), jax.random.key_data(rngs))
        return crops(images, rngs)

    step = make_train_step(
        model,
        tx,
        transform,
        heads=HEADS,
        seed=1,
        steps_per_epoch=10,
        mesh=mesh,
        recipe=Recipe(repeats=True),
    )
    batch = make_batch() | {"row": np.full(16, 7, np.int32)}
    state = new_state(model, tx)
    for _ in range(2):
        state, _ = step(state, jax.device_put(batch, batch_sharded(mesh)))
    jax.effects_barrier()
    assert len(seen) == 2
    assert len(np.unique(np.concatenate(seen), axis=0)) == 32


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_net")
@pytest.mark.parametrize("frozen_stages", [0, 1])
def test_moving_averages(frozen_stages: int) -> None:
    recipe = Recipe(ema=0.3)
    start, *states = (
        jax.device_get(train(n, 1, recipe=recipe, frozen_stages=frozen_stages)[0]) for n in range(5)
    )
    expected = start.variables
    for step, state in enumerate(states):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new,  # noqa: B023
            expected,
            state.variables,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            state.averaged_variables,
            expected,
        )
    kept = {"backbone"} & {name for name, tree in states[-1].average["params"].items() if tree}
    assert bool(kept) == (frozen_stages == 0)
    plain = jax.device_get(train(4, 1, frozen_stages=frozen_stages)[0])
    assert plain.average is None
    jax.tree.map(np.testing.assert_array_equal, plain.variables, states[-1].variables)


@pytest.mark.usefixtures("tiny_net")
def test_sums_and_loss() -> None:
    batch = make_batch()
    _, sums = train(1, 1)
    assert sums["age_count"] == np.sum(batch["age"] >= 0) < len(batch["age"])
    mean = sums["age_loss"] / sums["age_count"] + sums["gender_loss"] / sums["gender_count"]
    np.testing.assert_allclose(sums["loss"], mean, rtol=1e-6)
    assert 0 <= sums["age_correct"] <= sums["age_count"]


@pytest.mark.usefixtures("tiny_net")
def test_state_is_donated_and_steps_differ() -> None:
    mesh = create_mesh(jax.devices()[:1])
    model = create_model("tiny", {"age": 8, "gender": 2})
    tx = optax.sgd(0.0)
    transform = make_train_transform(16, MEAN, STD)
    step = make_train_step(model, tx, transform, heads=HEADS, seed=1, steps_per_epoch=1, mesh=mesh)
    batch = jax.device_put(make_batch(), batch_sharded(mesh))
    first = jax.jit(lambda: new_state(model, tx), out_shardings=replicated(mesh))()
    second, sums = step(first, batch)
    assert first.params["backbone"]["conv"]["kernel"].is_deleted()
    assert int(second.step) == 1
    # The learning rate is zero: only crops, flips and dropout can change the loss.
    _, others = step(second, batch)
    assert sums["loss"] != others["loss"]


@pytest.mark.usefixtures("tiny_net")
def test_evaluation_treats_images_independently() -> None:
    mesh = create_mesh(jax.devices()[:8])
    model = create_model("tiny", {"age": 8, "gender": 2})
    variables = create_variables(model, 16, 0)
    step = make_eval_step(model, make_eval_transform(16, MEAN, STD), heads=HEADS, mesh=mesh)
    batch = make_batch()
    whole = step(variables, jax.device_put(batch, batch_sharded(mesh)))
    changed = batch | {"image": np.where(np.arange(16)[:, None, None, None] < 8, batch["image"], 0)}
    part = step(variables, jax.device_put(changed, batch_sharded(mesh)))
    np.testing.assert_allclose(whole["age"][:8], part["age"][:8], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(whole["age"]).sum(-1), 1, rtol=1e-5)


@pytest.mark.usefixtures("tiny_net")
@pytest.mark.parametrize("count", [2, 4])
def test_mean_of_views(count: int) -> None:
    mesh = create_mesh(jax.devices()[:8])
    model = create_model("tiny", {"age": 8, "gender": 2})
    variables, batch = create_variables(model, 16, 0), make_batch()
    transform = make_views_transform(16, MEAN, STD, count)
    step = make_eval_step(model, transform, heads=HEADS, mesh=mesh)
    answer = step(variables, jax.device_put(batch, batch_sharded(mesh)))
    views = transform(jnp.asarray(batch["image"]))
    assert views.shape == (16, count, 16, 16, 3)
    expected = np.mean(
        [jax.nn.softmax(model.apply(variables, views[:, i])["age"]) for i in range(count)], axis=0
    )
    np.testing.assert_allclose(np.exp(answer["age"]), expected, rtol=1e-4)


@pytest.mark.usefixtures("tiny_net")
@pytest.mark.parametrize(
    ("devices", "recipe"),
    [(1, PLAIN), (8, PLAIN), (8, dataclasses.replace(ALL, mixup=0.0))],
    ids=["one", "eight", "all"],
)
def test_precomputed_features_equal_images(devices: int, recipe: Recipe) -> None:
    mesh = create_mesh(jax.devices()[:devices])
    model = create_model("tiny", {"age": 8, "gender": 2}, frozen_stages=1, dropout_rate=0.5)
    tx, steps_per_epoch = optax.sgd(0.1), 2
    transforms = make_train_transform(16, MEAN, STD), make_eval_transform(16, MEAN, STD)
    feature_step = make_feature_step(model, *transforms, seed=1, mesh=mesh)
    train_step = make_train_step(
        model,
        tx,
        transforms[0],
        heads=HEADS,
        seed=1,
        steps_per_epoch=steps_per_epoch,
        mesh=mesh,
        recipe=recipe,
    )
    eval_step = make_eval_step(model, transforms[1], heads=HEADS, mesh=mesh)
    images = jax.device_put(make_batch(), batch_sharded(mesh))
    columns = {name: column for name, column in images.items() if name != "image"}
    through_all, through_heads = (new_state(model, tx, recipe) for _ in range(2))
    variables = jax.device_get(through_all.variables)

    def known(epoch: int | None) -> dict[str, jax.Array]:
        features, _ = np.asarray(feature_step(variables, images, epoch))
        return columns | {"features": jax.device_put(features, batch_sharded(mesh))}

    for step in range(3):
        through_all, sums = train_step(through_all, images)
        through_heads, others = train_step(through_heads, known(step // steps_per_epoch))
        assert sums["loss"] == pytest.approx(float(others["loss"]), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *jax.device_get((through_all, through_heads)),
    )
    whole, heads = eval_step(variables, images), eval_step(variables, known(None))
    np.testing.assert_allclose(whole["age"], heads["age"], rtol=1e-5)
    assert not np.allclose(known(0)["features"], known(1)["features"])
