"""StableHLO: a function of pictures as JAX and other compilers of it take it up again.

A file is what `jax.export.deserialize` reads, with a JSON object of texts behind it.
"""

import json
import struct
from collections.abc import Sequence

import jax
import numpy as np
from jax import export

from agenet.errors import UserError
from agenet.export.equations import BATCH, Answer

PLATFORMS = ("cpu", "cuda", "tpu")
_MAGIC = b"agenet:1"
_END = struct.Struct("<Q8s")  # the JSON object's length in bytes, and the magic


def to_stablehlo(
    function: Answer,
    size: int,
    platforms: Sequence[str] = PLATFORMS,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A function of pictures uint8 [B, size, size, 3], with its parameters, for any B.

    Args:
        function: see `agenet.export.to_onnx`.
        size: side of the pictures in pixels.
        platforms: of JAX, on which it is to run.
        metadata: texts by name to put into the file.
    """
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape(BATCH), size, size, 3), np.uint8)
    exported = export.export(jax.jit(function), platforms=platforms)(shape)
    texts = json.dumps(metadata or {}).encode()
    return bytes(exported.serialize()) + texts + _END.pack(len(texts), _MAGIC)


def from_stablehlo(content: bytes) -> tuple[Answer, dict[str, str]]:
    """The function and the metadata of what `to_stablehlo` made.

    Raises:
        UserError: it is damaged, or something else.
    """
    damaged = UserError("not a StableHLO file of agenet, or not all of it")
    if len(content) < _END.size:
        raise damaged
    length, magic = _END.unpack(content[-_END.size :])
    end = len(content) - _END.size - length
    if magic != _MAGIC or end < 0:
        raise damaged
    try:
        metadata = json.loads(content[end : -_END.size])
        exported = export.deserialize(bytearray(content[:end]))
    except Exception as error:  # What JAX stumbles over differs from version to version.
        raise damaged from error
    return exported.call, metadata
