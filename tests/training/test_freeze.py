"""Freezing parts of a network, and starting from an earlier run."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from agenet.data.augment import make_train_transform
from agenet.data.records import Records
from agenet.distributed.mesh import batch_sharded, create_mesh
from agenet.errors import UserError
from agenet.models import create_model
from agenet.runs import launch
from agenet.training.checkpoints import Checkpoints
from agenet.training.config import OptimizerConfig
from agenet.training.finished_run import read_run_weights
from agenet.training.freeze import count_frozen, merge_params, split_params
from agenet.training.optimizers import create_optimizer
from agenet.training.state import TrainState, create_state, create_variables
from agenet.training.steps import make_train_step
from agenet.weights.load import save_weights
from tests.tiny import on_batch, tiny_config, use_records

CLASSES = {"age": 8, "gender": 2}
STAGES = {"resnet18": 5, "efficientnet_b0": 9, "efficientnet_v2_b0": 8, "levi_hassner": 4}


@pytest.mark.parametrize(
    "freeze", ["heads", "all but stages", "all but 6 stages", "all but -1 stage"]
)
def test_malformed_freeze(freeze: str) -> None:
    with pytest.raises(UserError, match=f'freeze "{freeze}"'):
        count_frozen(freeze, 5)


@pytest.mark.parametrize("name", STAGES)
def test_stages_partition_the_backbone(name: str) -> None:
    model = create_model(name, CLASSES)
    size = model.backbone.input_size
    params = jax.eval_shape(lambda: create_variables(model, size, 0))["params"]
    stages = model.backbone.STAGES
    assert len(stages) == STAGES[name]
    found = [set(split_params(params, [stage])[1]["backbone"]) for stage in stages]
    assert all(found) and set.union(*found) == set(params["backbone"])
    assert sum(map(len, found)) == len(params["backbone"])
    assert merge_params(*split_params(params, stages[:2])) == params


def step_of(name: str, freeze: str, size: int) -> tuple[TrainState, TrainState, Any]:
    """The states before and after one step, and the frozen stages."""
    frozen = count_frozen(freeze, STAGES[name])
    model = create_model(name, CLASSES, frozen_stages=frozen)
    mesh = create_mesh(jax.devices()[:1])
    tx = optax.adam(1e-2)
    transform = make_train_transform(size, (120.0,) * 3, (60.0,) * 3)
    heads = {"age": "groups", "gender": "sigmoid"}
    step = make_train_step(model, tx, transform, heads=heads, seed=0, steps_per_epoch=1, mesh=mesh)
    variables = create_variables(model, size, 0)
    # Values that arithmetic would change unnoticed: -0.0 + 0.0 is 0.0.
    variables["params"] = jax.tree.map(lambda leaf: leaf.at[..., 0].set(-0.0), variables["params"])
    before = create_state(model, tx, variables)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, size, size, 3), np.uint8),
        "age": np.array([0, 3, 7, 2], np.int32),
        "gender": np.array([0, 1, 1, 0], np.int32),
        "row": np.arange(4, dtype=np.int32),
        "mask": np.ones(4, bool),
    }
    kept = jax.device_get(before)
    after, _ = step(before, jax.device_put(batch, batch_sharded(mesh)))
    return kept, jax.device_get(after), model.frozen


@pytest.mark.parametrize(
    ("name", "freeze"),
    [
        ("resnet18", "none"),
        ("resnet18", "backbone"),
        ("resnet18", "all but 2 stages"),
    ],
)
def test_frozen_parameters_stay_bitwise_equal(name: str, freeze: str) -> None:
    before, after, frozen = step_of(name, freeze, 33)
    for collection in ("params", "batch_stats"):
        old, new = (
            {path: np.asarray(leaf).tobytes() for path, leaf in flatten_dict(tree, sep="/").items()}
            for tree in (getattr(before, collection), getattr(after, collection))
        )
        still = set(flatten_dict(split_params(getattr(before, collection), frozen)[1], sep="/"))
        assert {path for path in old if old[path] == new[path]} == still
    trained, _ = split_params(before.params, frozen)
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if np.ndim(leaf)]
    assert sum(leaf.size for leaf in moments) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(trained)
    )


def test_backbone_learning_rate() -> None:
    config = OptimizerConfig(
        "sgd", 0.0, backbone_scale=0.1, layer_decay=1.0, clip_norm=0.0, weight_decay=0.0
    )
    tx = create_optimizer(config, optax.constant_schedule(1.0))
    params = {"backbone": {"a": jnp.ones(2)}, "heads": {"age": jnp.ones(2)}}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["a"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["heads"]["age"], -1.0)
    only_heads = {"backbone": {}, "heads": params["heads"]}
    updates, _ = tx.update(only_heads, tx.init(only_heads), only_heads)
    np.testing.assert_allclose(updates["heads"]["age"], -1.0)


def test_run_starts_from_an_earlier_one(
    make_records: Callable[..., Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_records(make_records(), monkeypatch.setattr)

    def run(name: str, **fields: Any) -> dict[str, np.ndarray]:
        launch.launch(tiny_config(**fields), tmp_path / name, "command")
        saved = Checkpoints(tmp_path / name, read_only=True)
        best = saved._best.restore(saved.best_step)["state"]
        saved.close()
        return flatten_dict(best, sep="/")

    first = run("first", input__mean=(100.0, 90.0, 80.0))
    heads = run("heads", init=str(tmp_path / "first"), freeze="backbone")
    same = {path for path in first if np.array_equal(first[path], heads[path])}
    assert same == {path for path in first if "/backbone/" in path}
    run_of_heads = Checkpoints(tmp_path / "heads", read_only=True).read_run("best")
    assert run_of_heads is not None
    assert run_of_heads["config"]["input"]["mean"] == [100.0, 90.0, 80.0]

    # All parameters, unchanged, because the learning rate is tiny.
    whole = run("whole", init=str(tmp_path / "heads"), new_parts="", schedule__learning_rate=1e-30)
    params = [path for path in heads if path.startswith("params")]
    assert all(np.array_equal(heads[path], whole[path]) for path in params)

    with pytest.raises(UserError, match=r"new_parts .* have parts in common"):
        run("both", init=str(tmp_path / "first"), freeze="backbone", new_parts="heads, backbone/bn")

    # Subjects of its training set are neither in validation nor in test here.
    for fields in ({"dataset__test_fold": 1}, {"seed": 1}):
        with pytest.raises(UserError, match="were trained on subjects of"):
            run("leak", init=str(tmp_path / "heads"), **fields)
    with pytest.raises(UserError, match=r"has the head softmax for gender, this one sigmoid"):
        run("head", init=str(tmp_path / "heads"), new_parts="", heads__gender="sigmoid")
    on_batch(7, lambda: signal.raise_signal(signal.SIGTERM), monkeypatch.setattr)
    run("stopped", evaluate_every="3 steps", checkpoint_every="3 steps")
    with pytest.raises(UserError, match=r"stopped at step \d+ of 20: finish it first"):
        run("unfinished", init=str(tmp_path / "stopped"))

    # A started run does not need its initial weights any more.
    (tmp_path / "first").rename(tmp_path / "moved")
    np.testing.assert_array_equal(
        run("heads", init=str(tmp_path / "first"), freeze="backbone")[params[0]], heads[params[0]]
    )
    # But they must not have changed.
    run("first", seed=1)
    with pytest.raises(UserError, match=r"began with other weights than those .*first now"):
        run("heads", init=str(tmp_path / "first"), freeze="backbone")
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "moved").rename(tmp_path / "first")
    # A weights file records the subjects in its training data.
    file = tmp_path / "heads.safetensors"
    save_weights(file, read_run_weights(tmp_path / "heads"))
    with pytest.raises(UserError, match="trained on subjects of"):
        run("leak", init=str(file), dataset__test_fold=1)

    with pytest.raises(UserError, match="trained tiny, not levi_hassner"):
        run("other", init=str(tmp_path / "first"), model__name="levi_hassner", input__size=256)
    with pytest.raises(UserError, match='init "nowhere" is neither'):
        run("nowhere", init="nowhere")
    with pytest.raises(UserError, match=r"freeze .* of random weights"):
        run("random", freeze="backbone")
