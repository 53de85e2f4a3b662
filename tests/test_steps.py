import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agenet.data.augment import make_eval_transform, make_train_transform
from agenet.models import create_model
from agenet.models.classifier import Classifier
from agenet.sharding import batch_sharded, create_mesh, replicated
from agenet.state import TrainState, create_state, create_variables
from agenet.steps import make_eval_step, make_feature_step, make_train_step

MEAN, STD = (120.0,) * 3, (60.0,) * 3
HEADS = {"age": "groups", "gender": "softmax"}


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


def new_state(model: Classifier, tx: optax.GradientTransformation) -> TrainState:
    return create_state(model, tx, create_variables(model, 16, 0))


def train(steps: int, devices: int, dropout_rate: float = 0.5) -> tuple[TrainState, dict]:
    mesh = create_mesh(jax.devices()[:devices])
    model = create_model("tiny", {"age": 8, "gender": 2}, dropout_rate=dropout_rate)
    tx = optax.sgd(0.1, momentum=0.9)
    transform = make_train_transform(16, MEAN, STD)
    step = make_train_step(model, tx, transform, heads=HEADS, seed=1, steps_per_epoch=1, mesh=mesh)
    create = jax.jit(lambda: new_state(model, tx), out_shardings=replicated(mesh))
    state = create()
    sums: dict[str, jax.Array] = {}
    for _ in range(steps):
        state, sums = step(state, jax.device_put(make_batch(), batch_sharded(mesh)))
    return state, jax.device_get(sums)


@pytest.mark.usefixtures("tiny_net")
def test_one_device_and_eight_give_the_same_numbers() -> None:
    one, eight = train(4, 1), train(4, 8)
    assert one[0].params["backbone"]["conv"]["kernel"].sharding.num_devices == 1
    assert eight[0].params["backbone"]["conv"]["kernel"].sharding.num_devices == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, eight)


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
def test_evaluation_is_of_every_picture_by_itself() -> None:
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
@pytest.mark.parametrize("devices", [1, 8])
def test_known_features_stand_for_pictures(devices: int) -> None:
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
    )
    eval_step = make_eval_step(model, transforms[1], heads=HEADS, mesh=mesh)
    pictures = jax.device_put(make_batch(), batch_sharded(mesh))
    columns = {name: column for name, column in pictures.items() if name != "image"}
    through_all, through_heads = new_state(model, tx), new_state(model, tx)
    variables = jax.device_get(through_all.variables)

    def known(epoch: int | None) -> dict[str, jax.Array]:
        features, _ = np.asarray(feature_step(variables, pictures, epoch))
        return columns | {"features": jax.device_put(features, batch_sharded(mesh))}

    for step in range(3):
        through_all, sums = train_step(through_all, pictures)
        through_heads, others = train_step(through_heads, known(step // steps_per_epoch))
        assert sums["loss"] == pytest.approx(float(others["loss"]), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *jax.device_get((through_all, through_heads)),
    )
    whole, heads = eval_step(variables, pictures), eval_step(variables, known(None))
    np.testing.assert_allclose(whole["age"], heads["age"], rtol=1e-5)
    assert not np.allclose(known(0)["features"], known(1)["features"])
