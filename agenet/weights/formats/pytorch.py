"""Reads files written by `torch.save`, in both of its formats, without PyTorch.

Since version 1.6 the file is a zip archive: a pickle `<folder>/data.pkl` describes the tensors, and
an uncompressed member `<folder>/data/<key>` contains each storage, a flat buffer that tensors are
views of. Before that it was a sequence of pickles (a magic number, a version, facts about the
system, the object, the keys of the storages) followed by the storages, each preceded by its length.
torch/serialization.py describes both.

Names are those of the state dict, such as "layer1.0.conv1.weight", "bn1.running_mean" and
"bn1.num_batches_tracked", see `agenet.weights.formats.checkpoints`.
"""

import io
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from agenet.weights.formats import note, pickles
from agenet.weights.formats.checkpoints import find_state
from agenet.weights.formats.limits import SizeLimit
from agenet.weights.formats.zips import Archive

MAGIC = 0x1950A86A20F9469CFC6C
MAX_AXES = 32

_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    size: int  # in elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # in elements, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _storage(identifier: Any) -> _Storage:
    kind, *rest = identifier
    if kind == "module":
        raise ValueError(f"it contains a whole module with its code: {pickles.ADVICE}")
    if kind != "storage" or len(rest) not in (4, 5) or rest[4:] not in ([], [None]):
        raise ValueError("it has an unknown kind of storage")
    dtype, key, _, size = rest[:4]
    if not isinstance(dtype, np.dtype) or not isinstance(key, str) or not _are_sizes((size,)):
        raise ValueError("it has an invalid description of a storage")
    return _Storage(dtype, key, size)


def _are_sizes(values: Any) -> bool:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        return False
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    valid = isinstance(storage, _Storage) and _are_sizes((offset,)) and _are_sizes(shape)
    if not valid or not _are_sizes(strides) or len(shape) != len(strides):
        raise ValueError("it has an invalid description of a tensor")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(pairs: Any = None) -> dict[str, Any]:
    """Replaces `OrderedDict()` or, as Python 2 wrote it, `OrderedDict([...])`."""
    pairs = [] if pairs is None else pairs
    if not isinstance(pairs, list):
        raise ValueError("it has an invalid description of a dict")
    if not all(isinstance(pair, list | tuple) and isinstance(pair[0], str) for pair in pairs):
        raise ValueError("it has a dict with keys that are not text")
    result = dict(pairs)
    pairs.clear()  # or a short pickle could create many long dicts from one list
    return result


def _size(shape: Any) -> tuple[int, ...]:
    if not _are_sizes(shape):
        raise ValueError("it has an invalid description of a shape")
    return shape


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}
_CLASSES: dict[str, Any] = {
    f"{module}.{name}": np.dtype(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in _STORAGES.items()
}


def _load(file: Any, storages: dict[str, _Storage]) -> Any:
    def persistent(identifier: Any) -> _Storage:
        storage = _storage(identifier)
        storages.setdefault(storage.key, storage)
        return storage

    return pickles.load(file, _FUNCTIONS, _CLASSES, persistent)


def read_zip(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors of a file written by PyTorch 1.6 or later, and agenet's note, if any.

    Raises:
        ValueError, zipfile.BadZipFile: the file is damaged or contains anything but tensors.
    """
    archive = Archive(path)
    folders = [name.removesuffix("/data.pkl") for name in archive if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError("it is a zip archive, but not one of torch.save")
    folder = folders[0]
    if f"{folder}/constants.pkl" in archive:
        raise ValueError(f"it is a TorchScript program: {pickles.ADVICE}")
    big = f"{folder}/byteorder" in archive and bytes(archive[f"{folder}/byteorder"]) == b"big"
    storages: dict[str, _Storage] = {}
    content = _load(io.BytesIO(archive[f"{folder}/data.pkl"]), storages)
    state = find_state(content, _Tensor)
    keys = {tensor.storage.key for tensor in state.values()}
    flat = {key: archive[f"{folder}/data/{key}"] for key in keys}
    name = f"{folder}/{note.KEY}"
    metadata = note.decode(archive[name]) if name in archive else {}
    return _arrays(state, flat, archive.size, ">" if big else "<"), metadata


def read_legacy(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors of a file written before PyTorch 1.6, and no metadata.

    Raises:
        ValueError: the file is damaged or contains anything but tensors.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages: dict[str, _Storage] = {}
    if _load(data, storages) != MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    _load(data, storages)  # the version of the format; there was only one
    _load(data, storages)  # facts about the system; storages are little-endian on all
    state = find_state(_load(data, storages), _Tensor)
    keys = _load(data, storages)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is missing")
    flat = {}
    position = data.tell()
    for key in keys:
        if key not in storages or key in flat or position + 8 > len(data):
            raise ValueError("its list of storages is wrong, or the file is truncated")
        (size,) = struct.unpack("<q", data[position : position + 8])
        start, position = position + 8, position + 8 + size * storages[key].dtype.itemsize
        if size != storages[key].size or position > len(data):
            raise ValueError(
                f"its storage {key[:100]} has another length, or the file is truncated"
            )
        flat[key] = memoryview(data)[start:position]
    return _arrays(state, flat, len(data), "<"), {}


def _arrays(
    state: Mapping[str, _Tensor], flat: Mapping[str, memoryview], file_size: int, byteorder: str
) -> dict[str, np.ndarray]:
    limit = SizeLimit(file_size)
    arrays = {}
    for name, tensor in state.items():
        dtype, size = tensor.storage.dtype, tensor.storage.size
        if tensor.storage.key not in flat or len(flat[tensor.storage.key]) < size * dtype.itemsize:
            raise ValueError(f"the storage of tensor {name[:100]} is shorter than described")
        steps = zip(tensor.shape, tensor.strides, strict=True)
        end = 1 + tensor.offset + sum((length - 1) * stride for length, stride in steps)
        elements = math.prod(tensor.shape)
        # A stride of zero would expand few elements into many.
        if elements and (end > size or elements > size):
            raise ValueError(f"tensor {name[:100]} is larger than its storage")
        limit.take(name[:100], tensor.shape, dtype)
        raw = np.dtype(f"{byteorder}u{dtype.itemsize}")
        view = np.ndarray(
            tensor.shape,
            raw,
            buffer=flat[tensor.storage.key] if elements else None,
            offset=tensor.offset * dtype.itemsize if elements else 0,
            strides=[stride * dtype.itemsize for stride in tensor.strides] if elements else None,
        )
        arrays[name] = np.array(view, raw.newbyteorder("="), order="C").view(dtype)
    return arrays
