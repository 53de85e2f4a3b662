"""Exported networks give the same results as in JAX."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from agenet.data.augment import make_eval_transform
from agenet.errors import UserError
from agenet.export import to_onnx
from agenet.export.equations import Forward
from agenet.export.int8 import quantize
from agenet.export.stablehlo import from_stablehlo, to_stablehlo
from agenet.models import create_model
from agenet.training.losses import describe_heads, log_probabilities
from tests.random_variables import random_variables

GROUPS = {"age": "groups", "gender": "softmax"}
YEARS = {"age": "distribution", "gender": "sigmoid"}
ORDINAL = {"age": "ordinal", "gender": "softmax"}
# A network of each kind, at a size that leaves a feature map, with each kind of head.
NETWORKS = [
    ("levi_hassner", 35, GROUPS, {}),
    ("levi_hassner", 67, ORDINAL, {"flavour": "caffe"}),
    ("resnet18", 33, GROUPS, {}),
    ("resnet50", 33, YEARS, {"flavour": "keras"}),
    ("efficientnet_b0", 33, ORDINAL, {}),
    ("efficientnet_b0", 64, YEARS, {"flavour": "timm", "extra_layers": True}),
    ("efficientnet_lite0", 32, YEARS, {}),
    ("efficientnet_v2_b0", 33, YEARS, {}),
]
MARGIN = 5  # pixels of the stored images beyond the crop


def network(name: str, size: int, heads: dict[str, str], **options: object) -> Forward:
    """A network with random weights, as a function of images."""
    classes, ordinal = describe_heads(heads)
    model = create_model(name, classes, ordinal=ordinal, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    variables = random_variables(shapes)
    transform = make_eval_transform(size, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0))

    def answer(images: jax.Array) -> dict[str, jax.Array]:
        logits = model.apply(variables, transform(images))
        answers: dict[str, jax.Array] = {}
        for task, head in heads.items():
            answers |= log_probabilities(task, head, logits[task])
        return answers

    return answer


def random_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


def run(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest log-probability."""
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == np.float32 and found[name].shape == expected[name].shape
    return max(
        float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())
        for name in found
    )


def by_jax(answer: Forward, images: np.ndarray) -> dict[str, np.ndarray]:
    """JAX's result with the standard lowerings, which also compile faster."""

    def standard(*args, default, **platforms):
        return default(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", standard)
        return jax.device_get(jax.jit(answer)(images))


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


@pytest.fixture(scope="module")
def lite0() -> Forward:
    return network("efficientnet_lite0", 32, YEARS)


@pytest.fixture(scope="module")
def lite0_onnx(lite0: Forward) -> bytes:
    return to_onnx(lite0, 32 + MARGIN, metadata={"spec": "{}", "labels": "ä"})


@pytest.mark.parametrize(("name", "size", "heads", "options"), NETWORKS)
def test_onnx_equals_jax(name, size, heads, options):
    answer = network(name, size, heads, **options)
    model = to_onnx(answer, size + MARGIN)
    images = random_images(7, size + MARGIN)
    expected = by_jax(answer, images)
    for count in (1, 2, 7):
        some = {name: value[:count] for name, value in expected.items()}
        assert difference(run(model, images[:count]), some) < 1e-5
    found = operators(model)
    # Round the images once; normalisation is in the convolutions.
    assert found["Transpose"] == 1 and not found["Reshape"] and not found["BatchNormalization"]
    assert found["Sub"] + found["Add"] < 30


def test_onnx_metadata(lite0_onnx: bytes) -> None:
    model = onnx.load_from_string(lite0_onnx)
    onnx.checker.check_model(model, full_check=True)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"spec": "{}", "labels": "ä"}
    (images,) = model.graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert images.name == "images" and sizes == ["batch", 37, 37, 3]
    shapes = {
        output.name: [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        for output in model.graph.output
    }
    assert shapes == {"age": ["batch", 8], "gender": ["batch", 2], "years": ["batch", 101]}


def test_runtime_has_nothing_to_optimise(lite0_onnx: bytes, tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(lite0_onnx, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    convs = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    between = {node.op_type for node in nodes[convs[0] : convs[-1]]}
    # Activations and sums are fused, as far as this processor has kernels for it.
    assert between <= {"Conv", "Clip", "Add", "ReorderInput", "ReorderOutput"}
    assert len(convs) == 49


def test_half_precision_halves_the_file(lite0: Forward, lite0_onnx: bytes) -> None:
    half = to_onnx(lite0, 32 + MARGIN, half=True)
    assert len(half) < 0.52 * len(lite0_onnx)
    images = random_images(7, 32 + MARGIN)
    assert 0 < difference(run(half, images), by_jax(lite0, images)) < 1e-2


def test_half_precision_keeps_large_values_in_float32() -> None:
    large = np.full((48, 1024), 1e6, np.float32)

    def answer(images: jax.Array) -> dict[str, jax.Array]:
        return {"sums": images.astype(jnp.float32).reshape(images.shape[0], 48) @ large}

    images = random_images(2, 4)
    np.testing.assert_allclose(
        run(to_onnx(answer, 4, half=True), images)["sums"], answer(images)["sums"], rtol=1e-6
    )


def test_per_channel_constants_are_folded_if_unused_elsewhere() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    factor, shift = np.arange(1.0, 5.0, dtype=np.float32), np.ones(4, np.float32)

    def convolve(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def once(images: jax.Array) -> dict[str, jax.Array]:
        return {"y": (convolve(images) * factor + shift).mean((1, 2))}

    def twice(images: jax.Array) -> dict[str, jax.Array]:
        y = convolve(images)
        return {"y": (y + (2 * y) * factor + shift).mean((1, 2)), "map": y}

    def apart(images: jax.Array) -> dict[str, jax.Array]:
        return {"y": (convolve(images) * factor).mean((1, 2)), "map": convolve(images)}

    images = random_images(2, 6)
    for answer, adds in ((once, 0), (twice, 2), (apart, 0)):
        model = to_onnx(answer, 6)
        assert operators(model)["Add"] == adds
        assert difference(run(model, images), by_jax(answer, images)) < 1e-5


def test_unsupported_primitive_is_named() -> None:
    def sort(images: jax.Array) -> dict[str, jax.Array]:
        return {"x": jnp.sort(images.astype(jnp.float32).mean((1, 2)))}

    with pytest.raises(UserError, match=r"^not exported: .*JAX's sort$"):
        to_onnx(sort, 4)


def test_control_flow_by_images_is_refused() -> None:
    def choose(images: jax.Array) -> dict[str, jax.Array]:
        x = images.astype(jnp.float32).mean((1, 2))
        return {"x": jax.lax.cond(x.sum() > 1, lambda x: x, lambda x: 2 * x, x)}

    with pytest.raises(UserError, match=r"^not exported: "):
        to_onnx(choose, 4)


def test_stablehlo_equals_jax() -> None:
    answer = network("levi_hassner", 35, GROUPS)
    content = to_stablehlo(answer, 40, metadata={"spec": "{}"})
    read, metadata = from_stablehlo(content)
    assert metadata == {"spec": "{}"}
    images = random_images(3, 40)
    assert difference(jax.device_get(read(images)), by_jax(answer, images)) < 1e-5
    # JAX reads it without agenet, too.
    assert jax.export.deserialize(bytearray(content)).platforms == ("cpu", "cuda", "tpu")
    for damaged in (b"", content[:-1], content[1:], content[-200:], b"x" * 100):
        with pytest.raises(UserError, match="not a StableHLO file"):
            from_stablehlo(damaged)


def test_int8(lite0: Forward, lite0_onnx: bytes) -> None:
    quantized = quantize(lite0_onnx, random_images(33, 32 + MARGIN))
    assert len(quantized) < 0.4 * len(lite0_onnx)
    metadata = onnx.load_from_string(quantized).metadata_props
    assert {prop.key for prop in metadata} == {"spec", "labels"}
    # With random weights and images, only rough agreement can be expected.
    images = random_images(7, 32 + MARGIN)
    assert 1e-4 < difference(run(quantized, images), by_jax(lite0, images)) < 0.3


def test_int8_needs_convolutions() -> None:
    def answer(images: jax.Array) -> dict[str, jax.Array]:
        return {"x": images.astype(jnp.float32).mean((1, 2))}

    with pytest.raises(UserError, match="without convolutions"):
        quantize(to_onnx(answer, 4), random_images(2, 4))
