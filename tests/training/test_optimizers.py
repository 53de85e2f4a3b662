from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agenet.errors import UserError
from agenet.runs.config import parse_config
from agenet.training.config import ScheduleConfig
from agenet.training.optimizers import create_optimizer, create_schedule, to_steps
from configs import default

RATE = optax.constant_schedule(0.1)


DEFAULT = ScheduleConfig(
    name="constant",
    learning_rate=0.1,
    warmup="0 steps",
    boundaries=("25%", "50%", "75%"),
    scales=(1.0, 0.2, 0.04, 0.008),
    power=1.0,
    final_scale=0.0,
)


def learning_rates(*steps: int, total: int = 100, **fields: Any) -> np.ndarray:
    """Over 0.1, at the given steps of a run with epochs of ten."""
    config = replace(DEFAULT, **fields)
    schedule = create_schedule(config, steps_per_epoch=10, total_steps=total)
    return np.array([float(schedule(step)) for step in steps]) / 0.1


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("3 epochs", 30),
        ("1 epoch", 10),
        ("0.5 epochs", 5),
        ("7 steps", 7),
        ("1 step", 1),
        ("0 steps", 0),
        ("25%", 50),
        ("12.5 %", 25),
    ],
)
def test_durations(duration: str, steps: int) -> None:
    assert to_steps(duration, steps_per_epoch=10, total_steps=200) == steps


@pytest.mark.parametrize(
    "duration", ["5", "epochs", "", "-1 steps", "nan steps", "inf epochs", "5 weeks", "1 2 steps"]
)
def test_no_duration(duration: str) -> None:
    with pytest.raises(UserError, match=f'"{duration}" is not a duration'):
        to_steps(duration, steps_per_epoch=10, total_steps=100)


def test_share_of_an_unknown_length() -> None:
    with pytest.raises(UserError, match=r'like "5 epochs", "200 steps"$'):
        to_steps("25%", steps_per_epoch=10)


def test_constant() -> None:
    np.testing.assert_allclose(learning_rates(0, 99), 1)


def test_the_reports_quarters() -> None:
    rates = learning_rates(0, 24, 25, 49, 50, 74, 75, 99, name="piecewise")
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008], rtol=1e-6)


@pytest.mark.parametrize("epochs", range(1, 21))
def test_the_reports_epochs(epochs: int) -> None:
    """Figure 4.3.2 of the reference report: the rate of an epoch follows from its number."""
    steps = range(10 * epochs)
    expected = []
    for step in steps:
        epoch = step // 10
        if epoch < 0.25 * epochs:
            expected.append(1.0)
        elif epoch < 0.5 * epochs:
            expected.append(0.2)
        elif epoch < 0.75 * epochs:
            expected.append(0.04)
        else:
            expected.append(0.008)
    rates = learning_rates(*steps, total=10 * epochs, name="piecewise_epochs")
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_boundaries_in_epochs() -> None:
    rates = learning_rates(
        29, 30, 31, 99, name="piecewise", boundaries=("3 epochs", "31 steps"), scales=(1, 3, 2)
    )
    np.testing.assert_allclose(rates, [1, 3, 2, 2], rtol=1e-6)


def test_cosine() -> None:
    rates = learning_rates(0, 25, 50, 75, 100, name="cosine")
    expected = 0.5 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1])))
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_ends_above_zero() -> None:
    np.testing.assert_allclose(learning_rates(0, 100, name="cosine", final_scale=0.1), [1, 0.1])


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial(power: float) -> None:
    fields: dict[str, Any] = {"name": "polynomial", "power": power, "final_scale": 0.2}
    expected = [0.2 + 0.8 * (1 - part) ** power for part in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(learning_rates(0, 25, 50, 100, **fields), expected, atol=1e-6)


@pytest.mark.parametrize(("warmup", "rising"), [("0 steps", 30), ("2 epochs", 20), ("7%", 7)])
def test_one_cycle(warmup: str, rising: int) -> None:
    """As PyTorch's OneCycleLR, whose formula this is."""

    def between(start: float, end: float, part: float) -> float:
        return end + (start - end) * (1 + np.cos(np.pi * part)) / 2

    low, last = 1 / 25, 1 / 25e4
    expected = [
        between(low, 1, step / rising)
        if step < rising
        else between(1, last, (step - rising) / (100 - rising))
        for step in range(0, 101, 5)
    ]
    rates = learning_rates(*range(0, 101, 5), name="one_cycle", warmup=warmup)
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_one_cycle_of_two_steps() -> None:
    assert np.isfinite(learning_rates(0, 1, 2, name="one_cycle", total=2)).all()


WARM = {0: 0, 5: 0.25, 19: 0.95}


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", WARM | {20: 1, 21: 1, 99: 1}),
        ("cosine", WARM | {20: 1, 60: 0.5, 100: 0}),  # over the 80 steps that remain
        ("polynomial", WARM | {20: 1, 60: 0.5, 100: 0}),
        ("piecewise", WARM | {20: 1, 24: 1, 25: 0.2, 75: 0.008}),  # counted from the run's start
    ],
)
def test_warmup(name: str, rates: dict[int, float]) -> None:
    measured = learning_rates(*rates, name=name, warmup="2 epochs")
    np.testing.assert_allclose(measured, [*rates.values()], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup": "10 epochs"}, r'warmup "10 epochs" \(100 steps\) must be shorter'),
        ({"name": "one_cycle", "total": 1}, "must be shorter than the run"),
        ({"warmup": "soon"}, '"soon" is not a duration'),
        ({"total": 0}, "no steps: raise --config.duration"),
        ({"name": "piecewise", "scales": (1, 0.1)}, "one fewer than"),
        ({"name": "piecewise", "boundaries": ("75%", "50%", "25%")}, "must increase"),
        ({"name": "piecewise", "total": 1}, "enough steps"),
    ],
)
def test_bad_schedules(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learning_rates(0, **fields)


def optimizer(**fields: Any) -> optax.GradientTransformation:
    """As the default config has it, but for some fields."""
    config = parse_config(default.get_config().to_dict()).optimizer
    return create_optimizer(replace(config, **fields), RATE)


def follow(
    tx: optax.GradientTransformation,
    params: Any,
    gradient: Callable[[Any], Any] = lambda params: jax.tree.map(lambda leaf: 2 * leaf, params),
) -> Any:
    """The parameters after three steps."""
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def nothing(params: Any) -> Any:
    return jax.tree.map(lambda leaf: False, params)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adam", optax.adam(RATE)),
        ("adamw", optax.adamw(RATE, weight_decay=0.0, mask=nothing)),
        ("lion", optax.lion(RATE, weight_decay=0.0, mask=nothing)),
        ("lamb", optax.lamb(RATE, mask=nothing)),
        ("sgd", optax.sgd(RATE, momentum=0.9)),
        ("rmsprop", optax.rmsprop(RATE, momentum=0.9)),
        ("adafactor", optax.adafactor(RATE)),
    ],
)
def test_optimizers(name: str, reference: optax.GradientTransformation) -> None:
    tx, params = optimizer(name=name), jnp.array([1.0, -2.0])
    np.testing.assert_allclose(follow(tx, params), follow(reference, params), rtol=1e-6)
    assert jax.tree.structure(tx.init(params)) == jax.tree.structure(reference.init(params))


NETWORK: dict[str, Any] = {
    "backbone": {
        "conv1": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "depthwise": {"kernel": (3, 3, 1, 4)},
        "fc": {"kernel": (5, 3)},
    },
    "heads": {"age": {"kernel": (4, 2)}},
}


def random_params() -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.float32(rng.normal(size=shape)),
        NETWORK,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_muon() -> None:
    """Kernels of the backbone have orthogonal updates of Adam's size, the rest has Adam."""
    params = random_params()
    found, by_adam = (follow(optimizer(name=name), params) for name in ("muon", "adam"))
    for path in (("heads", "age", "kernel"), ("backbone", "depthwise", "kernel")):
        one, two = found, by_adam
        for key in path:
            one, two = one[key], two[key]
        # optax.contrib.muon's Adam has Nesterov momentum.
        assert not np.allclose(one, two) and np.allclose(one, two, atol=0.1)
    tx = optimizer(name="muon")
    updates, _ = tx.update(params, tx.init(params), params)
    for name in ("conv1", "fc"):
        update = np.asarray(updates["backbone"][name]["kernel"])
        matrix = update.reshape(-1, update.shape[-1])
        sizes = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * np.sqrt(max(matrix.shape)))
        assert ((sizes > 0.6) & (sizes < 1.3)).all()  # 1 but for the Newton-Schulz iteration


@pytest.mark.parametrize("name", ["lion", "muon", "adafactor"])
def test_other_optimizers_decay_kernels(name: str) -> None:
    params = jax.tree.map(jnp.ones_like, random_params())
    tx = optimizer(name=name, weight_decay=0.1)
    found = follow(tx, params, lambda params: jax.tree.map(jnp.zeros_like, params))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(leaf, 0.99**3 if leaf.ndim > 1 else 1, rtol=1e-5)


def test_rates_decay_by_stage() -> None:
    params = random_params()
    config = replace(parse_config(default.get_config().to_dict()).optimizer, name="sgd")
    stages = (("conv1",), ("depthwise", "fc"))

    def updates(**fields: Any) -> Any:
        tx = create_optimizer(replace(config, **fields), RATE, stages)
        return tx.update(params, tx.init(params), params)[0]

    plain = updates()
    scales = {"conv1": 0.49, "depthwise": 0.7, "fc": 0.7}
    for own, factor in (
        (updates(layer_decay=0.7), 1),
        (updates(layer_decay=0.7, backbone_scale=0.1), 0.1),
    ):
        ratio = jax.tree.map(lambda a, b: float((a / b).mean()), own, plain)
        for name, tree in ratio["backbone"].items():
            for value in tree.values():
                assert value == pytest.approx(factor * scales[name], rel=1e-5)
        assert ratio["heads"]["age"]["kernel"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_only_kernels_decay(name: str) -> None:
    params = {"backbone": {"scale": jnp.ones(2)}, "heads": {"kernel": jnp.ones((2, 2))}}
    tx = optimizer(name=name, weight_decay=0.1)
    found = follow(tx, params, lambda params: jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(found["backbone"]["scale"], 1)
    value, speed, momentum = 1.0, 0.0, 0.9 if name == "sgd" else 0.0
    for _ in range(3):
        speed = momentum * speed + 0.1 * value
        value -= 0.1 * speed
    np.testing.assert_allclose(found["heads"]["kernel"], value, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.5])
def test_clipping_and_decay_as_in_pytorch(name: str, clip_norm: float) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {"backbone": {"kernel": (3, 2), "bias": (2,)}, "heads": {"kernel": (2, 2)}}
    start = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    tx = optimizer(name=name, clip_norm=clip_norm, weight_decay=0.1, backbone_scale=0.5)
    ours = jax.tree.leaves(follow(tx, jax.tree.map(jnp.asarray, start)))
    theirs = [torch.tensor(leaf, requires_grad=True) for leaf in jax.tree.leaves(start)]
    rates = [0.05, 0.05, 0.1]
    groups = [
        {"params": [leaf], "lr": rate, "weight_decay": 0.1 * (leaf.ndim > 1)}
        for leaf, rate in zip(theirs, rates, strict=True)
    ]
    reference = (
        torch.optim.SGD(groups, momentum=0.9) if name == "sgd" else torch.optim.AdamW(groups)
    )
    for _ in range(3):
        reference.zero_grad()
        sum((leaf**2).sum() for leaf in theirs).backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        reference.step()
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=2e-6)
