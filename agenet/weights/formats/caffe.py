"""Reads Caffe models (.caffemodel): a NetParameter message in protobuf's wire format.

Names are "<layer>/<index of the blob>": "conv1/0" is the kernel, "conv1/1" the bias. Shapes are as
in the file. A convolution's kernel is [out, in / groups, height, width]. Models from before 2015
give every blob four axes with leading ones: the bias of a convolution is [1, 1, 1, out], the kernel
of a dense layer [1, 1, out, in].
"""

import math
import mmap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from agenet.weights.formats import note

# Field numbers in caffe.proto, of the current layer message and of its first version.
NET_LAYERS = {2: {"name": 4, "blobs": 6}, 100: {"name": 1, "blobs": 7}}
NET_NOTE = 4_000_000  # of no field there
BLOB_AXES = (1, 2, 3, 4)  # num, channels, height, width
BLOB_DATA = 5
BLOB_SHAPE = 7
SHAPE_DIM = 1
BLOB_DOUBLE_DATA = 8

MAX_AXES = 32  # Caffe's own limit
# An empty message takes two bytes in the file and a hundred times that in memory.
MAX_LAYERS = 10_000  # also the limit on blobs of all layers
MAX_LAYER_BLOBS = 16

Value = int | memoryview


def is_caffemodel(head: bytes) -> bool:
    """Whether a file starts like a network's layers or inputs; the format has no signature."""
    if head.startswith(b"\n"):  # The optional name of the network comes first.
        head = head[2 + (head[1] if len(head) > 1 else 0) :]
    return head.startswith((b"\x12", b"\x1a", b"\xa2\x06"))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the blobs of all layers, and agenet's note if there is one.

    Raises:
        ValueError: the file is damaged, or has more layers or blobs than any network.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    layers = 0
    for number, value in fields(data):
        if number in NET_LAYERS:
            layers += 1
            if max(layers, len(tensors)) > MAX_LAYERS:
                raise ValueError(f"it has more than {MAX_LAYERS:,} layers or blobs")
            name, blobs = _layer(_message(value), **NET_LAYERS[number])
            for index, blob in enumerate(blobs):
                key = f"{name}/{index}"
                if key in tensors:
                    raise ValueError(f"two layers are called {name[:100]}")
                tensors[key] = _blob(key, blob)
        elif number == NET_NOTE:
            metadata = note.decode(_message(value))
    return tensors, metadata


def _layer(data: memoryview, name: int, blobs: int) -> tuple[str, list[memoryview]]:
    text, messages = "", []
    for number, value in fields(data):
        if number == name:
            text = str(_message(value), "utf-8")
        elif number == blobs:
            messages.append(_message(value))
        if len(messages) > MAX_LAYER_BLOBS:
            raise ValueError(f"a layer has more than {MAX_LAYER_BLOBS} blobs")
    return text, messages


def _blob(name: str, data: memoryview) -> np.ndarray:
    axes = dict.fromkeys(BLOB_AXES, 0)
    shape: list[int] | None = None
    values = {BLOB_DATA: bytearray(), BLOB_DOUBLE_DATA: bytearray()}
    for number, value in fields(data):
        if number in BLOB_AXES and isinstance(value, int):
            axes[number] = value
        elif number == BLOB_SHAPE:
            numbers = (v for n, v in fields(_message(value)) if n == SHAPE_DIM)
            shape = list(islice((dim for v in numbers for dim in _dims(v)), MAX_AXES + 1))
        elif number in values:  # All values in one field, or one field per value.
            values[number] += _message(value)
    double = values[BLOB_DOUBLE_DATA]
    array = np.frombuffer(double, "<f8") if double else np.frombuffer(values[BLOB_DATA], "<f4")
    shape = list(axes.values()) if shape is None else shape
    if len(shape) > MAX_AXES or math.prod(shape) != array.size:
        raise ValueError(f"blob {name[:100]} has {array.size} values for the shape {shape[:10]}")
    return array.reshape(shape)


def _dims(value: Value) -> list[int]:
    if isinstance(value, int):
        return [value]
    dims: list[int] = []
    position = 0
    while position < len(value) and len(dims) <= MAX_AXES:
        dim, position = _varint(value, position)
        dims.append(dim)
    return dims


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in the place of a message")
    return value


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yields the number and the value of each field: an integer, or bytes without copying them.

    Raises:
        ValueError: the message is damaged.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            integer, position = _varint(data, position)
            yield number, integer
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"a field has the unknown wire type {wire_type}")
        if length > len(data) - position:
            raise ValueError(
                "a field is longer than the rest of the file: it is truncated or damaged"
            )
        yield number, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Decodes an integer (seven bits per byte, lowest first); also returns the next position."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    raise ValueError("a number is truncated or too long")
