"""What Keras networks do to their images: from their configuration, or assumed with a line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from agenet.errors import UserError
from agenet.weights.load import read_weights
from agenet.weights.names.keras_input import KerasInput, find_input

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
ROOTS = [float(1 / root) for root in np.sqrt(STD)]
STEM = {"stem_conv/kernel": np.zeros((3, 3, 3, 32), np.float32)}
DIVIDES, NORMALISES = ("Rescaling", {"scale": 1 / 255}), ("Normalization", {})
Layers = list[tuple[str, dict[str, Any]]]


def layer(mean: Any = MEAN, variance: Any = STD) -> dict[str, np.ndarray]:
    return STEM | {
        "normalization_3/mean": np.array([[mean]], np.float32),
        "normalization_3/variance": np.array(variance, np.float32),
        "normalization_3/count": np.zeros((), np.int64),
    }


def config(layers: Layers, first: str = "stem_conv", nested: bool = False) -> dict[str, str]:
    """Metadata with the configuration of a model with these layers in front."""
    parts: list[Any] = [
        {"class_name": kind, "config": {"name": kind.lower(), **fields}} for kind, fields in layers
    ]
    parts.append({"class_name": "Conv2D", "config": {"name": first}})
    model: Any = {"class_name": "Functional", "config": {"name": "net", "layers": parts}}
    if nested:
        around = {"class_name": "Sequential", "config": {"layers": [*parts[:1], model]}}
        model["config"]["layers"] = parts[1:]
        model = around
    return {"model_config": json.dumps(model)}


def assert_input(found: KerasInput, mean: Any, std: Any) -> None:
    np.testing.assert_allclose(found.mean, mean, atol=1e-4)
    np.testing.assert_allclose(found.std, std, rtol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("layers", "std"),
    [
        ([DIVIDES, NORMALISES], 255 * np.sqrt(STD)),  # before Keras 2.10
        ([DIVIDES, NORMALISES, ("Rescaling", {"scale": ROOTS})], 255 * STD),
        ([("InputLayer", {}), DIVIDES, ("RandomFlip", {}), NORMALISES], 255 * np.sqrt(STD)),
    ],
)
def test_configuration_shows_the_layers(layers: Layers, std: Any, nested: bool) -> None:
    found = find_input(layer(), config(layers, nested=nested))
    assert_input(found, 255 * MEAN, std)
    assert not found.assumed
    # As Keras 3 writes arrays, and class names of older and newer versions.
    array = {"class_name": "__numpy__", "config": {"value": ROOTS, "dtype": "float32"}}
    layers = [("keras.layers.Rescaling", {"scale": array}), *layers]
    assert_input(find_input(layer(), config(layers)), 255 * MEAN / ROOTS, std / ROOTS)


def test_configuration_with_its_own_values() -> None:
    both = [("Rescaling", {"scale": 1 / 127.5, "offset": -1})]
    assert_input(find_input(STEM, config(both)), [127.5] * 3, [127.5] * 3)
    adapted = ("Normalization", {"mean": [100, 110, 120], "variance": [4, 9, 16]})
    assert_input(find_input(STEM, config([adapted])), (100, 110, 120), (2, 3, 4))
    assert_input(find_input(STEM, config([("InputLayer", {})])), [0] * 3, [1] * 3)


def test_size_of_the_images() -> None:
    shapes = [("InputLayer", {"batch_input_shape": [None, None, None, 3]})]
    shapes.append(("InputLayer", {"batch_shape": [None, 96, 96, 3]}))
    assert find_input(STEM, config(shapes)).size == 96
    assert find_input(STEM, config(shapes[:1])).size is None


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([("Rescaling", {"scale": "much"})], "layer rescaling has other values"),
        ([("Rescaling", {"scale": 0})], "by zero or less"),
        ([("Rescaling", {"scale": [1, 2]})], "layer rescaling has other values"),
        ([("Normalization", {})], "layer normalization has other values"),
        ([("Normalization", {"mean": 0, "variance": 0})], "does not divide by a deviation"),
        ([("Normalization", {"mean": 0, "variance": 1, "invert": True})], "does not divide"),
    ],
)
def test_configuration_with_other_layers(layers: Layers, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_input(STEM, config(layers))


def test_layers_that_are_not_known() -> None:
    found = find_input(STEM, config([("Lambda", {"name": "mine\x1b"}), DIVIDES]))
    assert_input(found, [0] * 3, [255] * 3)
    assert "its layers mine? (Lambda) may change the images" in found.assumed
    resnet = {"conv1_conv/kernel": np.zeros((7, 7, 3, 64))}
    found = find_input(resnet, config([DIVIDES], "conv1_conv"))
    assert found.mean is None and "assumed that together they do what" in found.assumed
    assert not find_input(resnet, config([("ZeroPadding2D", {})], "conv1_conv")).assumed
    assert find_input(resnet, {}) == KerasInput()


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "[]", '"x"', '{"config": []}', '{"config": {"layers": [7, {}]}}']
)
def test_configuration_of_something_else(text: str) -> None:
    """Falls back to what the weights show."""
    found = find_input(layer(), {"model_config": text, "normalizing_layers": text})
    assert_input(found, 255 * MEAN, 255 * STD)


@pytest.mark.parametrize(
    ("metadata", "twice", "line"),
    [
        ({}, True, "does not say how often.*since 2.10; if not, .*--std=122.028,120.688,120.957"),
        (
            {"keras_version": "2.9.0"},
            False,
            "is of Keras 2.9: .*before 2.10; if not, .*=58.395,57.120,57.375",
        ),
        ({"keras_version": "2.10.0"}, True, "is of Keras 2.10: .*since 2.10"),
        ({"keras_version": "3.9.1"}, True, "is of Keras 3.9"),
        ({"keras_version": "of ours"}, True, "does not say"),
        (
            {"normalizing_layers": '["a/normalization_3", "a/rescaling", "rescaling_2"]'},
            False,
            "lists 1 layer rescaling",
        ),
        ({"normalizing_layers": '["normalization", "rescaling", "rescaling_1"]'}, True, ""),
        ({"normalizing_layers": '["normalization"]'}, True, "does not say"),
    ],
)
def test_weights_alone(metadata: dict[str, str], twice: bool, line: str) -> None:
    found = find_input(layer(), metadata)
    assert_input(found, 255 * MEAN, 255 * (STD if twice else np.sqrt(STD)))
    assert re.search(line, found.assumed) if line else not found.assumed


def test_other_normalisations_of_weights_alone() -> None:
    assert_input(find_input(layer(variance=STD**2), {}), 255 * MEAN, 255 * STD)
    found = find_input(layer((0, 0, 0), (1, 1, 1)), {})
    assert found == KerasInput((0.0,) * 3, (255.0,) * 3)
    assert find_input(STEM, {}) == KerasInput()
    for wrong in (layer((0.5,) * 3, (0.5,) * 3), {"normalization/mean": np.zeros(3)}):
        with pytest.raises(UserError, match=r"normalization .* give --mean and --std"):
            find_input(wrong, {})


def test_the_user_may_know_better(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x"
    safetensors.numpy.save_file(layer(), path)
    spec = read_weights(path, model="efficientnet_b0").spec
    np.testing.assert_allclose(spec.input.std, 255 * STD, rtol=1e-5)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: it does not say")
    caplog.clear()
    stated: dict[str, Any] = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "size": 64}
    found = read_weights(path, model="efficientnet_b0", stated=stated).spec.input
    assert (found.mean, found.std, found.size) == ((1, 2, 3), (4, 5, 6), 64)
    assert not caplog.records
