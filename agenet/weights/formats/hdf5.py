"""Reads Keras weights in HDF5: .weights.h5, the .h5 files from before Keras 3, and whole models.

All give names "<layer>/<variable>": "stem_conv/kernel", "stem_bn/gamma", "stem_bn/beta",
"stem_bn/moving_mean", "stem_bn/moving_variance", "predictions/bias", "normalization/mean".

.h5 (Keras applications, `model.save("x.h5")`): each layer has a group with its name, which contains
datasets named after the variables, "stem_conv/stem_conv/kernel:0". The result drops what precedes
the layer's name inside the group, and the ":0". tf.keras calls a depthwise kernel
"depthwise_kernel", Keras 3 "kernel". Of a whole model only the weights are read.

.weights.h5 (`model.save_weights`): "layers/<class>_<n>/vars/<i>", where n counts the layers of a
class and i the variables of a layer. The layer's name is an attribute of the group `vars`; files of
earlier Keras 3 versions lack it, and give "conv2d_1/kernel" instead of "stem_conv/kernel". For the
usual layers the class determines the variable's name; for others the number remains, "my_layer/0".
States of random generators and optimizers are left out.

.keras (`model.save("x.keras")`) is a zip archive with such a file and the model's configuration.

Metadata are "model_config" (JSON) of a whole model; "keras_version" of .h5 files;
"normalizing_layers", a JSON list of the paths of the layers of the classes Normalization and
Rescaling, as far as the file lists layers without weights; and agenet's note.
"""

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py
import ml_dtypes
import numpy as np

from agenet.weights.formats import note
from agenet.weights.formats.limits import SizeLimit
from agenet.weights.formats.zips import Archive

MAX_OBJECTS = 100_000
MAX_DEPTH = 50  # of nested groups
# The order in which the layers of Keras 3 list their variables.
VARIABLES = {
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "normalization": ("mean", "variance", "count"),
}
NO_WEIGHTS = {"optimizer", "optimizer_weights", "seed_generator"}
MODEL_WEIGHTS, MODEL_CONFIG = "model.weights.h5", "config.json"  # in .keras
_NORMALIZING = re.compile(r"(normalization|rescaling)(_\d+)?")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the variables of all layers, and metadata.

    Raises:
        ValueError, OSError, RuntimeError: the file is damaged, or contains more than plain arrays.
    """
    return _read(path, path.stat().st_size)


def read_keras(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The same of a whole Keras model, from which no layer is created.

    Raises:
        ValueError, OSError, RuntimeError, zipfile.BadZipFile: as above.
    """
    archive = Archive(path)
    content = archive[MODEL_WEIGHTS]
    tensors, metadata = _read(io.BytesIO(content), len(content))
    if MODEL_CONFIG in archive:
        metadata["model_config"] = str(archive[MODEL_CONFIG], "utf-8")
    if note.KEY in archive:
        metadata |= note.decode(archive[note.KEY])
    return tensors, metadata


def _read(source: Path | IO[bytes], size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    limit = SizeLimit(size)
    tensors = {}
    normalizing = []
    with h5py.File(source, "r") as file:
        group = _member(file, "model_weights") if "model_weights" in list(file) else file
        # Lists that are too long for one attribute are split into layer_names0 and so on.
        legacy = any(name.startswith("layer_names") for name in group.attrs)
        for parts, member in _members(group):
            if isinstance(member, h5py.Group):
                layer = parts[:-1] if parts[-1] == "vars" else parts
                if layer and _NORMALIZING.fullmatch(layer[-1]):
                    normalizing.append("/".join(layer))
                continue
            if NO_WEIGHTS.intersection(parts):
                continue
            name = _legacy_name(parts) if legacy else _name(parts, member.parent)
            if name in tensors:
                raise ValueError(f"two variables are called {name[:100]}")
            tensors[name] = _array(member, name[:100], limit)
        metadata = {"normalizing_layers": json.dumps(sorted(set(normalizing)))}
        for name in ("model_config", "keras_version"):
            if text := _text(file, name) or _text(group, name):
                metadata[name] = text
        if text := _text(file, note.KEY):
            metadata |= note.decode(text.encode())
    return tensors, metadata


def _text(group: h5py.Group, name: str) -> str:
    """An attribute that is one text; empty if there is none."""
    if name not in group.attrs or group.attrs.get_id(name).shape != ():
        return ""
    value = group.attrs[name]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _legacy_name(parts: list[str]) -> str:
    layer, *names = parts
    names = names[names.index(layer) :] if layer in names else names
    return "/".join(names if len(names) > 1 else parts).removesuffix(":0")


def _name(parts: list[str], group: h5py.Group) -> str:
    if len(parts) < 3 or parts[-2] != "vars":
        raise ValueError("it is HDF5, but not weights that Keras saved")
    folder, _, number = parts[-3:]
    kind = re.sub(r"_\d+$", "", folder)
    variables = VARIABLES.get(kind, ())
    # A batch norm without scale or centre lists fewer, so that the index is ambiguous.
    known = len(group) == len(variables) or kind != "batch_normalization"
    if known and number in map(str, range(len(variables))):
        number = variables[int(number)]
    return f"{_text(group, 'name') or folder}/{number}"


def _member(group: h5py.Group, name: str | bytes) -> h5py.HLObject:
    if not isinstance(name, str):  # h5py returns bytes if it is not UTF-8.
        raise ValueError("an entry has a name that is not text")
    # Soft links are rejected as well as external ones, since their paths can pass through those.
    # h5py's `in` and `get` would already follow them.
    if group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"its entry {name[:100]} is a link to another place or file")
    return group[name]


def _members(root: h5py.Group) -> Iterator[tuple[list[str], h5py.Group | h5py.Dataset]]:
    """Yields each group and dataset with its path; an object that appears twice is an error."""
    groups: list[tuple[list[str], h5py.Group]] = [([], root)]
    seen: set[int] = set()
    while groups:
        parts, group = groups.pop()
        for name in group:
            member = _member(group, name)
            address = h5py.h5o.get_info(member.id).addr
            if address in seen or len(seen) >= MAX_OBJECTS:
                raise ValueError(f"its entry {name[:100]} appears twice, or there are too many")
            seen.add(address)
            if isinstance(member, h5py.Group):
                if len(parts) >= MAX_DEPTH:
                    raise ValueError(f"its groups are nested deeper than {MAX_DEPTH}")
                groups.append(([*parts, name], member))
            if isinstance(member, h5py.Group | h5py.Dataset):
                yield [*parts, name], member


def _array(dataset: h5py.Dataset, name: str, limit: SizeLimit) -> np.ndarray:
    """Returns the values, after checking where HDF5 would take them from."""
    plist, dtype, shape = dataset.id.get_create_plist(), dataset.dtype, dataset.shape
    bfloat16 = dtype == np.dtype("V2")  # HDF5 has no such type
    if shape is None or not (bfloat16 or (dtype.kind in "biuf" and dtype.itemsize <= 8)):
        raise ValueError(f"variable {name} is not an array of numbers")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"variable {name} stores its values in another file")
    if plist.get_nfilters():  # HDF5 would decompress a chunk beyond its stated size.
        raise ValueError(f"variable {name} is compressed, which Keras never does: h5repack -f NONE")
    limit.take(name, shape, dtype)
    if dataset.chunks:  # HDF5 reads whole chunks even if little of one is used.
        limit.take(name, dataset.chunks, dtype)
    if dataset.id.get_storage_size() < math.prod(shape) * dtype.itemsize:
        raise ValueError(f"variable {name} is larger than its data in the file")
    values = np.asarray(dataset[()])
    return values.view(ml_dtypes.bfloat16) if bfloat16 else values
