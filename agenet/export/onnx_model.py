"""Converts JAX functions of images to ONNX models.

Normalisations are folded into the preceding convolutions, and feature maps have ONNX's channels-
first layout throughout, so that runtimes only have to fuse activations.
"""

from typing import Any

from agenet.errors import UserError
from agenet.export.arithmetic import ARITHMETIC
from agenet.export.equations import BATCH, Equation, Forward, trace
from agenet.export.graph import Tensor
from agenet.export.shapes import SHAPES, write_split
from agenet.export.writer import Writer

INPUT = "images"

_OPERATORS = ARITHMETIC | SHAPES


def to_onnx(
    function: Forward,
    size: int,
    *,
    half: bool = False,
    metadata: dict[str, str] | None = None,
    description: str = "",
) -> bytes:
    """Converts a function, with the parameters that it closes over, to an ONNX model.

    The model's input is `images`, uint8 [batch, size, size, 3] for any batch size; its outputs are
    those of the function, in float32. All arithmetic is in float32.

    Args:
        function: maps `images` to a dict of arrays float32 [batch, ...].
        size: side of the images in pixels.
        half: store large constants in half precision, which halves the file size.
        metadata: texts by name to store in the file.
        description: a text to store as the model's documentation (`doc_string`).

    Raises:
        UserError: the function uses a JAX primitive that is not supported here.
    """
    program = trace(function, size)
    writer = Writer(program.uses())
    writer.tensors[program.images] = Tensor(INPUT, (0, 1, 2, 3), program.images.shape)
    for equation in program.equations:
        _write(writer, equation)
    outputs = {}
    for name, value in program.outputs.items():
        tensor = writer.whole(value)
        outputs[name] = (tensor.name, tuple(map(_declared, value.shape)))
    shape = tuple(map(_declared, program.images.shape))
    return writer.graph.model(
        INPUT, shape, outputs, half=half, metadata=metadata or {}, description=description
    )


def _declared(size: Any) -> int | str:
    return size if isinstance(size, int) else BATCH


def _write(writer: Writer, equation: Equation) -> None:
    name, outputs = equation.name, equation.outputs
    if name == "split":
        for output, tensor in zip(outputs, write_split(writer, equation), strict=True):
            writer.tensors[output] = tensor
    elif name in _OPERATORS:
        writer.tensors[outputs[0]] = _OPERATORS[name](writer, equation)
    else:
        raise UserError(f"not exported: there is no ONNX operator here for JAX's {name}")
