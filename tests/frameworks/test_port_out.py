"""Weights of agenet in files of other frameworks."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from agenet.cli.app import run_command
from agenet.errors import UserError
from agenet.frameworks import caffe, networks, port_out, targets, torch_networks
from agenet.frameworks.exports import COMPOSED
from agenet.models import create_model
from agenet.training.state import create_variables
from agenet.weights.bundled import DEFAULT_FILE
from agenet.weights.load import Weights, read_weights, save_weights
from agenet.weights.spec import InputSpec, WeightsSpec
from tests.random_variables import random_variables

CLASSES = {"age": 8, "gender": 2}
SIZE = 32


def weights_of(model: str, flavour: str, **changes: Any) -> Weights:
    """Random weights in the form that a run saves."""
    classes: dict[str, int] = changes.get("classes", CLASSES)
    # Levi and Hassner's own network pads little, so smaller images would vanish in it.
    size = 67 if flavour == "caffe" else SIZE
    network = create_model(model, classes, flavour=flavour)
    shapes = jax.eval_shape(lambda: create_variables(network, size, 0))
    tensors = flatten_dict(random_variables(shapes), sep="/")
    spec = WeightsSpec(
        model=model,
        flavour=flavour,
        classes=classes,
        input=InputSpec(size, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "bilinear", 1.0),
        source="agenet",
        origin="a test",
        sha256=None,
        licence="none",
        heads={task: {"age": "groups", "gender": "softmax"}[task] for task in classes},
    )
    return Weights(tensors, replace(spec, **changes))


def assert_same(path: Path, weights: Weights) -> None:
    """Asserts that a file lost nothing: all tensors, bit for bit, and all that is known of them."""
    again = read_weights(path)
    assert again.spec == weights.spec
    assert again.tensors.keys() == weights.tensors.keys()
    assert all(np.array_equal(again.tensors[n], value) for n, value in weights.tensors.items())
    (new := path.with_name("new")).touch()
    assert path.stat().st_mode == new.stat().st_mode
    new.unlink()


def run_elsewhere(code: str, folder: Path) -> None:
    """Runs a line that loads a file, where agenet is not installed."""
    blocked = f"import sys; sys.modules['agenet'] = None; {code}"
    if "torchvision" in code or "timm" in code:  # Here it may be of another build than PyTorch.
        path = torch_networks.__file__
        blocked = f"import runpy; runpy.run_path({path!r})['import_torchvision'](); {blocked}"
    subprocess.run([sys.executable, "-P", "-c", blocked], cwd=folder, check=True, timeout=300)


def test_torchvision_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = weights_of("resnet18", "torchvision")
    source, output = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_weights(source, weights)
    run_command(["port", str(source), str(output), "--to=torchvision"])
    printed = capsys.readouterr().out
    assert "age 0 to 7, gender 8 to 9" in printed
    assert f"resnet18(num_classes=10); model.load_state_dict({'safetensors'}" in printed
    theirs = safetensors.numpy.load_file(output)
    assert theirs["fc.weight"].shape == (10, 512)
    head = weights.tensors["params/heads/gender/kernel"]
    assert np.array_equal(theirs["fc.weight"][8:], head.T)
    assert_same(output, weights)


@pytest.mark.parametrize("target", ["torchvision", "timm"])
def test_bundled_weights_there_and_back(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They keep their flavour, input, heads and training data, without an option."""
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    run_command(["port", "default", str(there), f"--to={target}"])
    printed = capsys.readouterr().out
    assert "None" not in printed
    run_command(["port", str(there), str(back)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("efficientnet_lite0, flavour tensorflow: ")
    assert lines[1:3] == printed.splitlines()[1:3]
    assert_same(back, bundled := read_weights(DEFAULT_FILE))
    assert bundled.spec.trained_on and bundled.spec.input.size == 128
    with pytest.raises(UserError, match="weights of efficientnet_lite0, not of resnet18"):
        read_weights(there, model="resnet18")
    with pytest.raises(UserError, match=r"there\.safetensors states its own input: leave out"):
        run_command(["port", str(there), str(back), "--overwrite", "--size=64"])
    with pytest.raises(UserError, match="written by agenet: name the file that it was made from"):
        run_command(["port", str(there), str(back), "--overwrite", "--check"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("model", "flavour"), COMPOSED.items())
def test_composed_networks(
    model: str, flavour: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Networks that torchvision lacks and agenet composes: a second file defines them."""
    if reason := networks.why_not("torchvision"):
        pytest.skip(reason)
    output = tmp_path / f"my{{x}}.v1{suffix}"
    weights = weights_of(model, flavour)
    exported = port_out.export(weights, "torchvision")
    how = port_out.write(exported, output, check=True)
    assert "torchvision's network: logits" in capsys.readouterr().out
    assert f"('{tmp_path}/my{{x}}.v1.py')['create_torch']({model!r}, 32, 10)" in how
    run_elsewhere(how, tmp_path)
    assert_same(output, weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_torchvision_agrees(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := networks.why_not("torchvision"):
        pytest.skip(reason)
    exported = port_out.export(weights_of("resnet18", "torchvision"), "torchvision")
    how = port_out.write(exported, tmp_path / f"x{suffix}", check=True)
    assert "torchvision's network: logits" in capsys.readouterr().out
    run_elsewhere(how, tmp_path)
    assert_same(tmp_path / f"x{suffix}", exported.weights)
    # A wrong tensor is detected, and no file is written.
    name = "layer2.0.bn1.running_var"
    exported.tensors[name] = 2 * exported.tensors[name]
    with pytest.raises(UserError, match="network, relatively by: logits"):
        port_out.write(exported, tmp_path / f"y{suffix}", check=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flavour", "suffix"),
    [
        ("efficientnet_b0", "tensorflow", ".weights.h5"),
        ("efficientnet_v2_b0", "tensorflow", ".weights.h5"),
        ("efficientnet_v2_b0", "tensorflow", ".keras"),
        ("resnet50", "keras", ".weights.h5"),
        ("levi_hassner", "report", ".weights.h5"),
        ("levi_hassner", "report", ".keras"),
        ("efficientnet_lite0", "tensorflow", ".keras"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_keras_agrees(
    model: str, flavour: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := networks.why_not("keras"):
        pytest.skip(reason)
    weights = weights_of(model, flavour)
    exported = port_out.export(weights, "keras")
    output = tmp_path / f"x{suffix}"
    how = port_out.write(exported, output, check=True)
    assert "keras's network: logits" in capsys.readouterr().out and str(output) in how
    assert_same(output, weights)
    run_elsewhere(how, tmp_path)


@pytest.mark.parametrize(
    ("model", "flavour", "name"),
    [
        ("resnet18", "torchvision", "resnet18"),
        ("efficientnet_b0", "timm", "efficientnet_b0"),
        ("efficientnet_b1", "tensorflow", "tf_efficientnet_b1"),
        ("efficientnet_lite0", "tensorflow", "tf_efficientnet_lite0"),
        ("efficientnet_v2_b0", "tensorflow", "tf_efficientnetv2_b0"),
    ],
)
def test_timm_agrees(
    model: str, flavour: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := networks.why_not("timm"):
        pytest.skip(reason)
    output = tmp_path / "x.safetensors"
    weights = weights_of(model, flavour)
    exported = port_out.export(weights, "timm")
    how = port_out.write(exported, output, check=True)
    assert "timm's network: logits" in capsys.readouterr().out
    assert f"timm.create_model({name!r}, num_classes=10); model.load_state_dict(" in how
    assert_same(output, weights)


def test_every_network_has_its_name_in_timm() -> None:
    if reason := networks.why_not("timm"):
        pytest.skip(reason)
    networks.import_torchvision()
    import timm

    theirs = {name for names in targets.TARGETS["timm"].known.values() for name in names.values()}
    assert len(theirs) == 5 + 2 * 13 + 4 and all(map(timm.is_model, theirs))


@pytest.mark.parametrize("tasks", [("age", "gender"), ("age",), ("gender",)])
@pytest.mark.parametrize("reader", ["OpenCV", "PyTorch"])
def test_caffe_agrees(
    reader: str,
    tasks: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if reader == "PyTorch":
        monkeypatch.setattr(caffe, "why_not_opencv", lambda: "not asked")
        reason = networks.why_not("torchvision")
    else:
        reason = caffe.why_not_opencv()
    if reason:
        pytest.skip(reason)
    classes = {task: CLASSES[task] for task in tasks}
    exported = port_out.export(weights_of("levi_hassner", "caffe", classes=classes), "caffe")
    how = port_out.write(exported, tmp_path / "net.caffemodel", check=True)
    assert "caffe's network: logits" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"net.caffemodel", "net.prototxt"}
    assert str(tmp_path / "net.prototxt") in how and str(tmp_path / "net.caffemodel") in how
    # A wrong tensor is detected.
    exported.tensors["fc8/0"] = exported.tensors["fc8/0"][::-1]
    with pytest.raises(UserError, match="network, relatively by: logits"):
        port_out.write(exported, tmp_path / "other.caffemodel", check=True)


@pytest.mark.parametrize("tasks", [("age", "gender"), ("age",), ("gender",)])
def test_caffe_files_can_be_read_again(tasks: tuple[str, ...], tmp_path: Path) -> None:
    classes = {task: CLASSES[task] for task in tasks}
    weights = weights_of("levi_hassner", "caffe", classes=classes)
    output = tmp_path / "net.caffemodel"
    port_out.write(port_out.export(weights, "caffe"), output, check=False)
    assert_same(output, weights)
    output.unlink()  # Without the output, the .prototxt may be another file of the user's.
    with pytest.raises(UserError, match=r"net\.prototxt exists"):
        port_out.write(port_out.export(weights, "caffe"), output, check=False)


def test_mistakes(tmp_path: Path) -> None:
    resnet = weights_of("resnet18", "torchvision")
    output = tmp_path / "x.safetensors"
    for weights, target, message in (
        (weights_of("efficientnet_lite1", "tensorflow"), "torchvision", "no efficientnet_lite1"),
        (Weights({}, replace(resnet.spec, model="levi_hassner")), "keras", "'report': train with"),
        (weights_of("efficientnet_b0", "tensorflow"), "torchvision", "try --to keras"),
        (weights_of("efficientnet_b0", "timm"), "keras", "flavour 'timm'.*'tensorflow'"),
        (replace(resnet, spec=replace(resnet.spec, classes={})), "torchvision", "left over|heads"),
    ):
        with pytest.raises(UserError, match=message):
            port_out.export(weights, target)
    exported = port_out.export(resnet, "torchvision")
    with pytest.raises(UserError, match=r"writes \.safetensors or \.pth"):
        port_out.write(exported, tmp_path / "x.h5", check=False)
    source = tmp_path / "ours.safetensors"
    save_weights(source, resnet)
    for option, message in (("--half", "own format"), ("--to=keras", "no resnet18 there")):
        with pytest.raises(UserError, match=message):
            run_command(["port", str(source), str(output), "--to=torchvision", option])
    assert not output.exists()


def test_heads_that_a_classifier_cannot_express() -> None:
    weights = weights_of("resnet18", "torchvision")
    ordinal = replace(weights.spec, heads={"age": "ordinal", "gender": "softmax"})
    with pytest.raises(UserError, match="head of age is ordinal"):
        port_out.one_head(Weights(weights.tensors, ordinal))
    extra = {"params/heads/bn/scale": np.ones(512, np.float32)}
    with pytest.raises(UserError, match="extra layers"):
        port_out.one_head(Weights(weights.tensors | extra, weights.spec))
