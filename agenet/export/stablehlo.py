"""Exports functions of images as StableHLO, for JAX and other compilers.

A file is the format of `jax.export.deserialize`, followed by a JSON object with metadata.
"""

import json
import struct
from collections.abc import Sequence

import jax
import numpy as np
from jax import export

from agenet.errors import UserError
from agenet.export.equations import BATCH, Forward

PLATFORMS = ("cpu", "cuda", "tpu")
_MAGIC = b"agenet:1"
_END = struct.Struct("<Q8s")  # length of the JSON object in bytes, and `_MAGIC`


def to_stablehlo(
    function: Forward,
    size: int,
    platforms: Sequence[str] = PLATFORMS,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """Exports a function of images uint8 [B, size, size, 3], with its parameters, for any B.

    Args:
        function: see `agenet.export.to_onnx`.
        size: side of the images in pixels.
        platforms: the JAX platforms on which it will run.
        metadata: texts by name to store in the file.
    """
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape(BATCH), size, size, 3), np.uint8)
    exported = export.export(jax.jit(function), platforms=platforms)(shape)
    texts = json.dumps(metadata or {}).encode()
    return bytes(exported.serialize()) + texts + _END.pack(len(texts), _MAGIC)


def from_stablehlo(content: bytes) -> tuple[Forward, dict[str, str]]:
    """Reads the function and the metadata from the content of a file of `to_stablehlo`.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    damaged = UserError("not a StableHLO file of agenet, or an incomplete one")
    if len(content) < _END.size:
        raise damaged
    length, magic = _END.unpack(content[-_END.size :])
    end = len(content) - _END.size - length
    if magic != _MAGIC or end < 0:
        raise damaged
    try:
        metadata = json.loads(content[end : -_END.size])
        exported = export.deserialize(bytearray(content[:end]))
    except Exception as error:  # JAX's errors differ between versions.
        raise damaged from error
    return exported.call, metadata
