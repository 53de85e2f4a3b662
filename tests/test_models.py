"""The networks: sizes, agreement with PyTorch, and lowering for every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from agenet.errors import UserError
from agenet.models import create_model, layers

BOTH = {"age": 8, "gender": 2}
TORCH_NAMES = {"conv1": 0, "conv2": 4, "conv3": 8, "fc1": 12, "fc2": 15}


def parameter_shapes(num_classes):
    model = create_model("levi_hassner", num_classes)
    images = jnp.zeros((1, model.input_size, model.input_size, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize(
    ("task", "classes", "count"), [("age", 8, 11415048), ("gender", 2, 11411970)]
)
def test_levi_hassner_has_the_parameter_count_of_the_report(task, classes, count):
    shapes = parameter_shapes({task: classes})
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_two_tasks_share_the_trunk():
    shapes = parameter_shapes(BOTH)
    assert set(shapes) == {*TORCH_NAMES, "heads"}
    assert shapes["heads"]["age"]["kernel"].shape == (512, 8)
    assert shapes["heads"]["gender"]["kernel"].shape == (512, 2)


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(UserError, match=r"'levi_hasner'.*'levi_hassner'"):
        create_model("levi_hasner", BOTH)


def torch_levi_hassner(params):
    """The same network as a torch module with the given parameters."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    nn = torch.nn
    trunk = nn.Sequential(
        *(nn.Conv2d(3, 96, 7, 4, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.LocalResponseNorm(5)),
        *(nn.Conv2d(96, 256, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.LocalResponseNorm(5)),
        *(nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Flatten(), nn.Linear(384 * 7 * 7, 512), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(512, 512), nn.ReLU(), nn.Dropout()),
    )
    model = nn.ModuleDict({"age": nn.Linear(512, 8), "gender": nn.Linear(512, 2), "trunk": trunk})
    for name, index in TORCH_NAMES.items():
        trunk[index].load_state_dict(to_torch(name, params[name]))
    for task in BOTH:
        model[task].load_state_dict(to_torch(task, params["heads"][task]))
    return model.eval()


def to_torch(name, layer):
    import torch

    kernel = np.asarray(layer["kernel"])
    if name == "fc1":  # flattened as [H, W, C] here, as [C, H, W] in torch
        kernel = kernel.reshape(7, 7, 384, 512).transpose(3, 2, 0, 1).reshape(512, -1)
    else:
        kernel = np.moveaxis(kernel, (-1, -2), (0, 1))
    return {"weight": torch.tensor(kernel), "bias": torch.tensor(np.asarray(layer["bias"]))}


def test_initialisation_is_torchs_default():
    layer = layers.Conv(64, 3)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))["params"]
    for leaf in jax.tree.leaves(params):
        assert 0.9 < abs(leaf).max() * np.sqrt(3 * 3 * 16) <= 1
        assert abs(leaf.mean()) < 0.02


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.slow
def test_logits_and_gradients_agree_with_torch():
    model = create_model("levi_hassner", BOTH)
    images = np.random.default_rng(0).normal(size=(2, 227, 227, 3)).astype(np.float32)
    # Large activations, so that the local response normalisation is not the identity.
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    params["conv1"]["kernel"] *= 100.0
    ages, genders = np.array([3, 7]), np.array([0, 1])

    def loss(params):
        logits = model.apply({"params": params}, images, train=False)
        log_age, log_gender = (jax.nn.log_softmax(logits[task]) for task in BOTH)
        return -(log_age[[0, 1], ages] + log_gender[[0, 1], genders]).mean(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    oracle = torch_levi_hassner(params)
    import torch

    features = oracle["trunk"](torch.tensor(images.transpose(0, 3, 1, 2)))
    expected = {task: oracle[task](features) for task in BOTH}
    nll = torch.nn.functional.cross_entropy
    total = nll(expected["age"], torch.tensor(ages)) + nll(
        expected["gender"], torch.tensor(genders)
    )
    total.backward()
    for task in BOTH:
        assert relative_error(logits[task], expected[task].detach().numpy()) < 1e-4
    layers = {name: oracle["trunk"][index] for name, index in TORCH_NAMES.items()}
    for name, layer in [*layers.items(), *((task, oracle[task]) for task in BOTH)]:
        ours = to_torch(name, grads["heads"][name] if name in BOTH else grads[name])
        assert relative_error(ours["weight"].numpy(), layer.weight.grad.numpy()) < 1e-4, name
        assert relative_error(ours["bias"].numpy(), layer.bias.grad.numpy()) < 1e-4, name


def value_and_gradients(function, *args):
    @jax.jit
    def run(*args):
        value, backward = jax.vjp(function, *args)
        weights = jnp.arange(value.size, dtype=value.dtype).reshape(value.shape) % 7
        return value, *backward(weights)

    return run(*args)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    ("function", "kernel"),
    [
        (lambda x: layers.max_pool(x), None),
        (lambda x, kernel: layers.conv(x, kernel, 2, 1), (5, 5, 3, 4)),
        (lambda x, kernel: layers.conv(x, kernel, 1, 1), (3, 3, 3, 4)),
    ],
    ids=["max_pool", "conv stride 2", "conv stride 1"],
)
def test_both_lowerings_agree_exactly(monkeypatch, function, kernel, size):
    # Small whole numbers: sums are exact in float32 and the pooling windows are full of ties.
    rng = np.random.default_rng(0)
    shapes = [(2, size, size + 3, 3)] + ([kernel] if kernel else [])
    args = [rng.integers(-2, 3, shape).astype(np.float32) for shape in shapes]
    on_cpu = value_and_gradients(function, *args)
    elsewhere = lambda *args, default, **_: default(*args)  # noqa: E731
    monkeypatch.setattr(layers.lax, "platform_dependent", elsewhere)
    for ours, standard in zip(on_cpu, value_and_gradients(function, *args), strict=True):
        np.testing.assert_array_equal(ours, standard)


@pytest.mark.parametrize("platforms", [["cpu"], ["cuda"], ["tpu"], ["cpu", "cuda", "tpu"]])
def test_gradient_lowers_for_every_platform(platforms):
    model = create_model("levi_hassner", BOTH, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((4, 227, 227, 3), jnp.float32)

    def loss(params, images):
        rngs = {"dropout": jax.random.key(0)}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        return sum(jax.nn.log_softmax(values).mean() for values in logits.values())

    step = export.export(jax.jit(jax.grad(loss)), platforms=platforms)
    exported = step(parameter_shapes(BOTH), images)
    standard = "select_and_scatter" in exported.mlir_module()
    assert standard == (platforms != ["cpu"])
    assert {leaf.dtype for leaf in exported.out_avals} == {jnp.dtype("float32")}
