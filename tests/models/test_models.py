"""The networks: sizes, options, freezing, and lowering for every platform."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export

from agenet.errors import UserError
from agenet.models import MODELS, create_model, efficientnet, layers
from agenet.models.heads import OrdinalHead, TaskHeads, ordinal_start
from tests.random_variables import random_variables

BOTH = {"age": 8, "gender": 2}
IMAGENET = {"imagenet": 1000}
# As published: torchvision's table, TensorFlow's for the Lite networks, timm's for V2.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "efficientnet_v2_b0": 7_139_704,
    "efficientnet_v2_b1": 8_141_052,
    "efficientnet_v2_b2": 10_096_086,
    "efficientnet_v2_b3": 14_358_406,
}


@pytest.fixture
def networks(monkeypatch):
    """A small network of each family, and its input size."""
    monkeypatch.setitem(efficientnet.VARIANTS, "tiny", efficientnet.Scale(0.25, 0.1, 32, 0.2))
    tiny = partial(efficientnet.EfficientNet, "tiny")
    monkeypatch.setitem(MODELS, "efficientnet_tiny", tiny)
    monkeypatch.setitem(efficientnet.VARIANTS, "v2_tiny", efficientnet.Scale(0.25, 0.1, 32, 0.2))
    tiny = partial(efficientnet.EfficientNet, "v2_tiny", flavour="tensorflow")
    monkeypatch.setitem(MODELS, "efficientnet_v2_tiny", tiny)
    sizes = {"resnet18": 32, "levi_hassner": 67}
    return sizes | {"efficientnet_tiny": 32, "efficientnet_v2_tiny": 32}


def noise(size, batch=4):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def shapes_of(model, size=64):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def parameter_count(model, size=64):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, size)["params"]))


def randomised(model, size):
    return random_variables(shapes_of(model, size))


def apply(model, variables, images, **options):
    return jax.jit(partial(model.apply, **options))(variables, images)


def step(model, variables, images, seed=0):
    """Logits in training, and the new batch statistics."""
    rngs = {"dropout": jax.random.key(seed)}
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    return run(variables, images, rngs=rngs)


@pytest.fixture
def as_on_accelerators(monkeypatch):
    """The standard lowerings, which also compile faster."""
    standard = lambda *args, default, **_: default(*args)  # noqa: E731
    monkeypatch.setattr(layers.lax, "platform_dependent", standard)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    assert parameter_count(create_model(name, IMAGENET)) == PARAMETERS[name]


def test_keras_resnet_has_biases_and_trainable_parameters_as_published():
    assert parameter_count(create_model("resnet50", IMAGENET, flavour="keras")) == 25_583_592


@pytest.mark.parametrize(
    ("task", "classes", "count"), [("age", 8, 11415048), ("gender", 2, 11411970)]
)
@pytest.mark.parametrize("flavour", ["report", "caffe"])
def test_levi_hassner_has_the_parameter_count_of_the_report(flavour, task, classes, count):
    model = create_model("levi_hassner", {task: classes}, flavour=flavour)
    assert parameter_count(model, 227) == count


def test_every_name_is_tested():
    # Another test may have added its own.
    assert MODELS.keys() - {"tiny"} == PARAMETERS.keys() | {"levi_hassner"}


@pytest.mark.parametrize("name", MODELS)
def test_stages_cover_every_parameter_once(name):
    model = create_model(name, BOTH)
    for collection in shapes_of(model, 67).values():
        for layer in collection["backbone"]:
            assert len(stages_of(model, layer)) == 1, layer


def stages_of(model, layer):
    return [
        number
        for number, prefixes in enumerate(model.backbone.STAGES)
        if any(re.fullmatch(rf"{prefix}(_\d+)?", layer) for prefix in prefixes)
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("levi_hasner", {}, "no model 'levi_hasner': did you mean levi_hassner.*efficientnet_b7"),
        ("resnet50", {"drop_path_rate": 0.1}, "resnet50 has no option 'drop_path_rate' .*dropout"),
        ("resnet18", {"depth": 3}, "resnet18 has no option 'depth'"),
        ("efficientnet_b0", {"droprate": 0.1}, "no option 'droprate'.*drop_path_rate"),
        ("efficientnet_b0", {"flavour": "keras"}, "no flavour 'keras'.*tensorflow"),
        ("resnet18", {"flavour": "keras"}, "resnet18 has no flavour 'keras'.*torchvision"),
        ("levi_hassner", {"flavour": "torchvision"}, "no flavour 'torchvision'.*report, caffe"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(name, BOTH, **options)


def test_empty_flavour_is_the_default():
    usual = {name: create_model(name, BOTH, flavour="").backbone.flavour for name in MODELS}
    assert usual["levi_hassner"] == "report"
    assert usual["resnet50"] == usual["efficientnet_b3"] == "torchvision"
    assert usual["efficientnet_lite4"] == "tensorflow"


@pytest.mark.parametrize("num_classes", [{"age": 8}, {"gender": 2}, BOTH])
def test_one_head_per_task_on_the_same_features(networks, as_on_accelerators, num_classes):
    name, size = "resnet18", networks["resnet18"]
    model = create_model(name, num_classes)
    variables = randomised(model, size)
    logits = apply(model, variables, noise(size))
    features = apply(model, variables, noise(size), method="features")
    assert {task: values.shape for task, values in logits.items()} == {
        task: (4, classes) for task, classes in num_classes.items()
    }
    for task, head in variables["params"]["heads"].items():
        expected = features @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits[task], expected, atol=1e-5)


def test_heads_compute_in_full_precision():
    """So do their gradients; by default accelerators use less."""
    model = TaskHeads({"age": 8, "gender": 2}, ordinal=["age"])
    features = jnp.ones((4, 16))
    variables = model.init(jax.random.key(0), features)

    def loss(variables, features):
        return sum(logits.sum() for logits in model.apply(variables, features).values())

    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(variables, features).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) >= 4
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_ordinal_head_starts_from_given_probabilities():
    shares = np.random.default_rng(0).dirichlet(np.full(30, 5.0))
    head, features = OrdinalHead(30), jnp.ones((2, 4))
    params = head.init(jax.random.key(0), features)["params"]
    start = {name: jnp.float32(value) for name, value in ordinal_start(shares).items()}
    assert {n: v.shape for n, v in start.items()} == {n: params[n].shape for n in start}
    params = params | start | {"kernel": jnp.zeros_like(params["kernel"])}
    found = np.exp(head.apply({"params": params}, features))
    np.testing.assert_allclose(found, np.stack([shares, shares]), atol=1e-6)


def test_extra_layers_are_the_reports():
    model = create_model("resnet18", BOTH, extra_layers=True, dropout_rate=0.5)
    variables = randomised(model, 128)
    images = noise(128)
    maximum = apply(model, variables, images, method="features")
    plain = create_model("resnet18", BOTH)
    backbone = {kind: {"backbone": tree["backbone"]} for kind, tree in variables.items()}
    mean = apply(plain, backbone, images, method="features")
    assert (maximum >= mean - 1e-5).all() and (maximum > mean + 1e-3).any()  # of a 4 x 4 map
    first, changed = step(model, variables, images, seed=1)
    second, _ = step(model, variables, images, seed=2)
    assert not np.allclose(first["age"], second["age"])
    before, after = (tree["batch_stats"]["heads"]["bn"]["mean"] for tree in (variables, changed))
    assert before.shape == (512,) and (before != after).all()


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_tiny", "efficientnet_v2_tiny", "levi_hassner"]
)
def test_half_precision_keeps_parameters_statistics_and_logits_in_float32(
    networks, as_on_accelerators, name
):
    size = networks[name]
    model, half = (create_model(name, BOTH, dtype=dtype) for dtype in ("float32", "bfloat16"))
    variables = randomised(half, size)
    logits, changed = step(half, variables, noise(size))
    for leaf in jax.tree.leaves((shapes_of(half, size), logits, changed)):
        assert leaf.dtype == jnp.float32
    features = apply(half, variables, noise(size), method="features")
    assert features.dtype == jnp.bfloat16
    expected = apply(model, variables, noise(size), method="features")
    assert 1e-5 < relative_error(features.astype(jnp.float32), expected) < 0.05


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet18", 5), ("efficientnet_tiny", 9), ("efficientnet_v2_tiny", 8), ("levi_hassner", 4)],
)
def test_frozen_stages_do_not_change(networks, as_on_accelerators, name, stages):
    size = networks[name]
    variables = randomised(create_model(name, BOTH), size)
    assert len(create_model(name, BOTH).backbone.STAGES) == stages
    for frozen in (0, 1, stages // 2, stages):
        model = create_model(name, BOTH, frozen_stages=frozen)

        @partial(jax.grad, has_aux=True)
        def run(params, model=model):
            logits, changed = step(model, variables | {"params": params}, noise(size))
            return sum(jnp.square(values).sum() for values in logits.values()), changed

        grads, changed = run(variables["params"])
        moved = {path: bool((leaf != 0).any()) for path, leaf in flatten_dict(grads).items()}
        if "batch_stats" in variables:
            after = flatten_dict(changed["batch_stats"])
            before = flatten_dict(variables["batch_stats"])
            moved |= {("stats", *path): bool((before[path] != after[path]).any()) for path in after}
        for path, moves in moved.items():
            inside = "backbone" in path
            layer = path[path.index("backbone") + 1] if inside else ""
            assert moves == (not inside or stages_of(model, layer)[0] >= frozen), (frozen, path)


@pytest.mark.parametrize(
    "kind", [partial(efficientnet.MBConv, squeeze=True), efficientnet.FusedMBConv]
)
def test_stochastic_depth_drops_whole_images_and_keeps_the_mean(kind):
    block = partial(
        kind,
        features=4,
        kernel_size=3,
        stride=1,
        expansion=2,
        padding=1,
        activation=jax.nn.silu,
        conv=partial(layers.Conv, use_bias=False, dtype=jnp.float32),
        norm=partial(layers.BatchNorm),
    )
    x = np.random.default_rng(0).normal(size=(2000, 3, 3, 4)).astype(np.float32)
    variables = block(drop_path_rate=0.0).init(jax.random.key(0), x, False)
    run = {"train": True, "rngs": {"dropout": jax.random.key(1)}, "mutable": ["batch_stats"]}
    whole, dropped = (
        block(drop_path_rate=rate).apply(variables, x, **run)[0] - x for rate in (0.0, 0.25)
    )
    kept = (abs(dropped) > 1e-6).any((1, 2, 3))
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, atol=1e-5)
    assert (dropped[~kept] == 0).all()
    assert abs(kept.mean() - 0.75) < 0.04  # four standard deviations
    still = block(drop_path_rate=0.25).apply(variables, x, False)
    np.testing.assert_array_equal(still, block(drop_path_rate=0.0).apply(variables, x, False))


def test_stochastic_depth_grows_with_depth(monkeypatch):
    rates = []
    monkeypatch.setattr(
        efficientnet, "MBConv", lambda **fields: rates.append(fields["drop_path_rate"]) or identity
    )
    identity = lambda x, train: x  # noqa: E731
    shapes_of(create_model("efficientnet_b0", BOTH, drop_path_rate=0.32))
    np.testing.assert_allclose(rates, 0.02 * np.arange(16))


def test_v2_rounds_widths_to_the_nearest_multiple_of_eight():
    """V1 takes the next one where that is less than 90 %: B3 would begin with 24 features."""
    params = shapes_of(create_model("efficientnet_v2_b3", BOTH))["params"]["backbone"]
    blocks = [params[f"blocks_{stage}_0"] for stage in range(6)]
    convs = [block.get("conv_pwl", block.get("conv")) for block in blocks]
    assert [conv["kernel"].shape[-1] for conv in convs] == [16, 40, 56, 112, 136, 232]


def test_initialisation_equals_pytorch():
    layer = layers.Conv(64, 3)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))["params"]
    for leaf in jax.tree.leaves(params):
        assert 0.9 < abs(leaf).max() * np.sqrt(3 * 3 * 16) <= 1
        assert abs(leaf.mean()) < 0.02


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


# Other networks of a family repeat the same blocks.
@pytest.mark.parametrize(
    "name",
    [
        "levi_hassner",
        "resnet18",
        "resnet50",
        "efficientnet_b0",
        "efficientnet_lite0",
        "efficientnet_v2_b0",
    ],
)
def test_network_lowers_for_every_platform_and_any_batch(name):
    model = create_model(name, BOTH, dtype=jnp.bfloat16)
    size = 67 if name == "levi_hassner" else 64
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    lowered = export.export(jax.jit(model.apply), platforms=["cpu", "cuda", "tpu"])
    exported = lowered(shapes_of(model, size), images)
    assert [leaf.dtype for leaf in exported.out_avals] == [jnp.float32] * 2
    text = exported.mlir_module()
    # Python slicing with a symbolic batch size would gather images.
    assert "gather" not in text
    if name.startswith("efficientnet"):
        # The channels of the first depthwise convolution.
        block = "blocks_3_0" if "v2" in name else "blocks_0_0"
        kernel = shapes_of(model, size)["params"]["backbone"][block]["conv_dw"]["kernel"]
        assert "feature_group_count = 1 :" in text
        assert f"feature_group_count = {kernel.shape[-1]} :" in text


@pytest.mark.parametrize("name", ["levi_hassner", "resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("platforms", [["cpu"], ["cpu", "cuda", "tpu"]])
def test_gradient_lowers_for_every_platform(name, platforms):
    model = create_model(name, BOTH, dtype=jnp.bfloat16)
    shapes = shapes_of(model, 67)
    images = jax.ShapeDtypeStruct((4, 67, 67, 3), jnp.float32)

    def loss(params, batch_stats, images):
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return sum(jax.nn.log_softmax(values).mean() for values in logits.values()), changed

    step = export.export(jax.jit(jax.grad(loss, has_aux=True)), platforms=platforms)
    exported = step(shapes["params"], shapes.get("batch_stats", {}), images)
    if not name.startswith("efficientnet"):  # which have no max-pooling
        standard = "select_and_scatter" in exported.mlir_module()
        assert standard == (platforms != ["cpu"])
    assert {leaf.dtype for leaf in exported.out_avals} == {jnp.dtype("float32")}
