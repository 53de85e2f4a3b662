"""Strict loading: all or nothing, and no parameter keeps its initial value unnoticed."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.core import FrozenDict, freeze
from flax.traverse_util import flatten_dict

from agenet.errors import UserError
from agenet.models import create_model
from agenet.training.state import create_variables
from agenet.weights import identify
from agenet.weights.cache import find_file
from agenet.weights.known import FileHash, find_known
from agenet.weights.load import Weights, load_into, read_weights, save_weights
from agenet.weights.spec import InputSpec, WeightsSpec

structure: Any = jax.tree.structure

SPEC = WeightsSpec(
    model="tiny",
    flavour="tiny",
    classes={"age": 8, "gender": 2},
    input=InputSpec(16, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bilinear", 0.875),
    source="timm",
    origin="a run",
    sha256=None,
    licence="Apache-2.0",
)


def shapes_of(name: str, classes: dict[str, int], flavour: str = "") -> dict[str, Any]:
    network = create_model(name, classes, flavour=flavour)
    size = network.backbone.input_size
    return jax.eval_shape(lambda: create_variables(network, size, 0))


def tensors_for(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Values that no initialiser returns."""
    return {
        name: np.full(leaf.shape, 7 + i, np.float32)
        for i, (name, leaf) in enumerate(flatten_dict(variables, sep="/").items())
    }


@pytest.fixture
def variables(tiny_net: str) -> dict[str, Any]:
    network = create_model(tiny_net, {"age": 8, "gender": 2})
    return jax.device_get(create_variables(network, 16, 0))


@pytest.fixture
def tensors(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    return tensors_for(variables)


@pytest.mark.parametrize(
    ("name", "flavour"),
    [
        ("resnet18", "torchvision"),
        ("resnet50", "torchvision"),
        ("resnet50", "keras"),
        ("efficientnet_b0", "torchvision"),
        ("efficientnet_b0", "tensorflow"),
        ("efficientnet_lite0", "tensorflow"),
    ],
)
def test_every_statistic_is_needed(name: str, flavour: str) -> None:
    shapes = shapes_of(name, {"age": 8}, flavour)
    flat = flatten_dict(shapes, sep="/")
    tensors = {key: np.broadcast_to(np.float32(7), leaf.shape) for key, leaf in flat.items()}
    statistics = [key for key in tensors if key.startswith("batch_stats/")]
    norms = [key for key in tensors if key.endswith("/scale")]
    assert len(statistics) == 2 * len(norms) > 30
    for key in statistics:
        value = tensors.pop(key)
        with pytest.raises(UserError, match=f"missing: {key}$"):
            load_into(shapes, tensors)
        tensors[key] = value
    # The same for a file that contains trainable parameters only.
    without = {key: value for key, value in tensors.items() if key not in statistics}
    with pytest.raises(UserError, match=f"{len(statistics)} in all"):
        load_into(shapes, without)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "levi_hassner"])
def test_no_leaf_keeps_its_initial_value(name: str) -> None:
    network = create_model(name, {"age": 8})
    size = network.backbone.input_size
    initial = jax.device_get(jax.jit(lambda: create_variables(network, size, 0))())
    loaded = load_into(initial, tensors_for(initial), new=())
    same = [np.any(a == b) for a, b in zip(*map(jax.tree.leaves, (initial, loaded)), strict=True)]
    assert len(same) > 10 and not any(same)


def test_load_into(variables: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    loaded = load_into(variables, tensors, new=())
    assert structure(loaded) == structure(variables)
    flat = flatten_dict(loaded, sep="/")
    for name, value in tensors.items():
        assert flat[name].dtype == np.float32 and np.array_equal(flat[name], value)
        assert not np.shares_memory(flat[name], value)
    frozen = load_into(freeze(variables), tensors, new=())
    assert isinstance(frozen, FrozenDict)
    assert structure(frozen) == structure(freeze(variables))


def test_network_without_statistics() -> None:
    shapes = shapes_of("levi_hassner", {"age": 8})
    assert shapes["batch_stats"] == {}
    loaded = load_into(shapes, tensors_for(shapes))
    assert structure(loaded) == structure(shapes)


def test_new_heads(variables: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    published = {name: value for name, value in tensors.items() if "/heads/" not in name}
    published["params/heads/imagenet/kernel"] = np.zeros((8, 1000))
    loaded = load_into(variables, published)
    assert loaded["params"]["heads"] is not None
    assert np.all(loaded["batch_stats"]["backbone"]["bn"]["var"] > 6)
    for task, head in variables["params"]["heads"].items():
        assert loaded["params"]["heads"][task]["kernel"] is head["kernel"]

    # One head of two: the other must be there, and nothing else.
    loaded = load_into(variables, tensors, new=("heads/gender",))
    assert np.all(loaded["params"]["heads"]["age"]["kernel"] > 6)
    assert np.all(loaded["params"]["heads"]["gender"]["kernel"] < 6)
    with pytest.raises(UserError, match=r"missing: params/heads/age.*left over: .*imagenet"):
        load_into(variables, published, new=("heads/gender",))


@pytest.mark.parametrize("new", ["head", "heads/ag", "params/heads", ""])
def test_new_must_name_something(
    new: str, variables: dict[str, Any], tensors: dict[str, np.ndarray]
) -> None:
    with pytest.raises(UserError, match=r"no '.*' to initialise; it has backbone/bn, "):
        load_into(variables, tensors, new=(new,))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("params/backbone/conv/kernel", None, "missing: params/backbone/conv/kernel"),
        ("params/backbone/conv/kernel", np.zeros((3, 3, 8, 3)), r"another shape: .*\(3, 3, 8, 3\)"),
        ("params/backbone/bn/scale", np.zeros((1, 8)), r"\(1, 8\), not \(8,\)"),
        ("params/backbone/bn2/scale", np.zeros(8), "left over: params/backbone/bn2/scale"),
        ("params/backbone/bn/scale", np.ones(8, np.int8), "of integers: params/backbone/bn/scale"),
        ("opt_state/x", np.zeros(8), "left over: opt_state/x"),
        ("params/backbone/bn/scale", np.full(8, np.nan), "not finite: params/backbone/bn/scale"),
        ("batch_stats/backbone/bn/mean", np.full(8, np.inf), "not finite"),
        ("batch_stats/backbone/bn/mean", np.full(8, 1e300), "not finite"),
        ("batch_stats/backbone/bn/var", np.full(8, -1e-6), "negative: batch_stats"),
    ],
)
def test_unfit_weights_are_rejected(
    name: str,
    value: np.ndarray | None,
    message: str,
    variables: dict[str, Any],
    tensors: dict[str, np.ndarray],
) -> None:
    tensors = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(UserError, match=message):
        load_into(variables, tensors if value is None else tensors | {name: value})


def test_own_format(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_weights(path, Weights(tensors, SPEC))
    assert [*tmp_path.iterdir()] == [path]
    again = read_weights(path, model="tiny", flavour="tiny")
    assert again.spec == SPEC and again.tensors.keys() == tensors.keys()
    assert all(np.array_equal(again.tensors[name], tensors[name]) for name in tensors)
    with pytest.raises(UserError, match="weights of tiny, not of resnet50"):
        read_weights(path, model="resnet50")
    with pytest.raises(UserError, match="'tiny', not 'huge'"):
        read_weights(path, flavour="huge")


def test_save_in_c_order(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    name = "params/backbone/conv/kernel"
    turned = np.arange(tensors[name].size, dtype=np.float64).reshape(tensors[name].shape[::-1]).T
    save_weights(tmp_path / "x", Weights(tensors | {name: turned}, SPEC))
    assert np.array_equal(read_weights(tmp_path / "x").tensors[name], turned)


def test_save_rejects_invalid_values(
    tensors: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.safetensors"
    nan = tensors | {"params/backbone/bn/scale": np.full(8, np.nan)}
    for weights, message in (
        (Weights(nan, SPEC), "not finite"),
        (Weights(tensors, replace(SPEC, classes={"age": 8})), "has the heads"),
        (Weights(tensors, replace(SPEC, source="elsewhere")), "source"),
    ):
        with pytest.raises(UserError, match=message):
            save_weights(path, weights)
        assert not path.exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path.write_bytes(b"before")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space") as error:
        save_weights(path, Weights(tensors, SPEC))
    assert error.value.filename == str(path)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"before"


def test_own_format_with_a_wrong_specification(
    tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    lies = ["{}", '{"\\u001b[2J": 1}', replace(SPEC, classes={"age": 9}).to_json()]
    for text in lies:
        safetensors.numpy.save_file(tensors, tmp_path / "x", {"agenet": text})
        with pytest.raises(UserError, match=str(tmp_path / "x")) as error:
            read_weights(tmp_path / "x")
        assert str(error.value).isprintable()
    for depth in range(700, 1000):
        with pytest.raises(UserError):
            WeightsSpec.from_json(SPEC.to_json().replace('"tiny"', "[" * depth + "]" * depth))


def save(tmp_path: Path, *names: str) -> Path:
    """Saves a file of another source with these tensors, each of four ones."""
    path = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file({name: np.ones((4, 4), np.float32) for name in names}, path)
    return path


RESNET = ("conv1.weight", "layer1.0.conv1.weight")


def test_unknown_file_needs_its_network(tmp_path: Path) -> None:
    path = save(tmp_path, *RESNET)
    with pytest.raises(UserError, match=r"names of torchvision .*give --model.*resnet50"):
        read_weights(path)
    spec = read_weights(path, model="resnet50").spec
    assert (spec.flavour, spec.classes, spec.origin) == ("torchvision", {}, "theirs.safetensors")
    assert spec.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert spec.input == find_known("resnet50").input
    with pytest.raises(UserError, match="belong to flavour torchvision"):
        read_weights(path, model="resnet50", flavour="keras")
    with pytest.raises(UserError, match="no levi_hassner"):
        read_weights(path, model="levi_hassner")
    with pytest.raises(UserError, match="no model 'resnet5'"):
        read_weights(path, model="resnet5")


def test_network_below_a_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, *(f"model.{name}" for name in RESNET), "loss.weight")
    weights = read_weights(path, model="resnet50")
    assert weights.spec.source == "torchvision"
    assert set(weights.tensors) == {
        "params/backbone/conv1/kernel",
        "params/backbone/layer1_0/conv1/kernel",
    }
    assert caplog.messages == ["not part of the network at model., left out: loss.weight"]


def test_timm_leaves_the_flavour_open(tmp_path: Path) -> None:
    path = save(tmp_path, "conv_stem.weight")
    with pytest.raises(UserError, match="give --flavour, timm or tensorflow"):
        read_weights(path, model="efficientnet_b0")
    for model, flavour in (("efficientnet_b0", "tensorflow"), ("efficientnet_b7", "timm")):
        spec = read_weights(path, model=model, flavour=flavour).spec
        assert spec.flavour == flavour
        assert spec.input.size == create_model(model, {}).backbone.input_size


def test_known_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, *RESNET)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    entry = replace(find_known("resnet34"), hash=FileHash("md5", digest), classes={})
    monkeypatch.setattr(identify, "KNOWN", (entry,))
    spec = read_weights(path).spec
    assert spec == replace(
        entry.spec, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), classes={}
    )
    with pytest.raises(UserError, match="weights of resnet34, not of resnet50"):
        read_weights(path, model="resnet50")
    with pytest.raises(UserError, match="has the heads"):
        read_weights(path, known=replace(entry, classes={"imagenet": 1000}))
    with pytest.raises(UserError, match="unlike keras"):
        read_weights(path, known=find_known("resnet50", "keras"))


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no known network has these names: decoder\.w, encoder\.w"
    ):
        read_weights(save(tmp_path, "encoder.w", "decoder.w"))
    path = save(tmp_path, *RESNET, "layer1.0.conv1.lora")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.lora: not in a network"):
        read_weights(path, model="resnet50")


def test_shapes_that_no_map_expects(tmp_path: Path) -> None:
    names = [f"{layer}/{i}" for layer in ("conv1", "conv2", "conv3") for i in (0, 1)]
    names += [f"{layer}/{i}" for layer in ("fc6", "fc7", "fc8") for i in (0, 1)]
    tensors = {name: np.ones(8, np.float32) for name in names}
    safetensors.numpy.save_file(tensors, tmp_path / "x")
    with pytest.raises(UserError, match="shape that does not occur in levi_hassner"):
        read_weights(tmp_path / "x", model="levi_hassner")
    tensors["fc6/0"], tensors["conv3/0"] = np.ones((4, 4)), np.ones((0, 4, 3, 3))
    for name in ("conv1/0", "conv2/0"):
        tensors[name] = np.ones((4, 4, 3, 3))
    safetensors.numpy.save_file(tensors, tmp_path / "x")
    with pytest.raises(UserError, match=r"in levi_hassner \(division by zero"):
        read_weights(tmp_path / "x", model="levi_hassner")


@pytest.mark.parametrize("shape", [(), (8,), (8, 0), (8, 4, 2)])
def test_head_is_a_matrix(
    shape: tuple[int, ...], tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    kernel = {"params/heads/age/kernel": np.ones(shape, np.float32)}
    with pytest.raises(UserError, match=r"age/kernel has the shape .* \[features, classes\]"):
        save_weights(tmp_path / "x", Weights(tensors | kernel, SPEC))
    safetensors.numpy.save_file(tensors | kernel, tmp_path / "x", {"agenet": SPEC.to_json()})
    with pytest.raises(UserError, match=r"age/kernel has the shape .* \[features, classes\]"):
        read_weights(tmp_path / "x")


def test_keras_normalises_itself(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {
        "stem_conv/kernel": np.zeros((3, 3, 3, 32), np.float32),
        "normalization/mean": np.zeros(3, np.float32),
        "normalization/variance": np.ones(3, np.float32),
    }
    path = tmp_path / "x"
    safetensors.numpy.save_file(tensors, path)
    spec = read_weights(path, model="efficientnet_b0").spec
    assert (spec.input.mean, spec.input.std) == ((0, 0, 0), (255, 255, 255))
    known = replace(find_known("efficientnet_b0", "tensorflow"), classes={})
    assert known.source == "keras"
    with pytest.raises(UserError, match="subtracts the mean"):
        read_weights(path, known=known)
    tensors["normalization/mean"] = np.array([0.485, 0.456, 0.406], np.float32)
    tensors["normalization/variance"] = np.array([0.229, 0.224, 0.225], np.float32)
    safetensors.numpy.save_file(tensors, path)
    assert read_weights(path, known=known).spec.input == known.input


def caffe_levi_hassner() -> dict[str, np.ndarray]:
    """All tensors of the age network under Caffe's names and in its layout."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv1": (96, 3, 7, 7),
        "conv2": (256, 96, 5, 5),
        "conv3": (384, 256, 3, 3),
        "fc6": (512, 384 * 7 * 7),
        "fc7": (512, 512),
        "fc8": (8, 512),
    }
    kernels = {
        f"{layer}/0": rng.normal(0, 0.01, shape).astype(np.float32)
        for layer, shape in shapes.items()
    }
    return kernels | {
        f"{layer}/1": np.zeros(shape[0], np.float32) for layer, shape in shapes.items()
    }


@pytest.mark.slow
def test_lite0_classifies_a_photograph(real_data: Path) -> None:
    """Published weights, from an installed package, on a photograph of Grace Hopper."""
    try:
        path = find_file(find_known("efficientnet_lite0"))
    except UserError as error:
        pytest.skip(str(error))
    weights = read_weights(path)
    spec = weights.spec
    image = cv2.imread(str(real_data / "media" / "grace_hopper.jpg"))
    assert image is not None
    # The largest central square: she wears a cap at the upper edge.
    top = (image.shape[0] - image.shape[1]) // 2
    image = image[top : top + image.shape[1], :, ::-1]
    image = cv2.resize(image, (spec.input.size,) * 2, interpolation=cv2.INTER_CUBIC)
    images = ((image[None] - spec.input.mean) / np.array(spec.input.std)).astype(np.float32)
    network = create_model(spec.model, spec.classes, flavour=spec.flavour)
    shapes = shapes_of(spec.model, spec.classes)
    outputs: Any = network.apply(load_into(shapes, weights, new=()), images)
    logits = outputs["imagenet"][0]
    military_uniform = 652
    assert logits.argmax() == military_uniform
    assert jax.nn.softmax(logits)[military_uniform] > 0.4
