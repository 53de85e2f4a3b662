"""ONNX models of functions of pictures, written operator by operator.

Normalisations become part of the convolutions before them, and arrays with channels lie as ONNX's
convolutions want them from the first to the last, so that runtimes find nothing left to do but to
fuse activations.
"""

from typing import Any

from agenet.errors import UserError
from agenet.export.arithmetic import ARITHMETIC
from agenet.export.equations import BATCH, Answer, Equation, trace
from agenet.export.graph import Tensor
from agenet.export.shapes import SHAPES, write_split
from agenet.export.writer import Writer

INPUT = "images"

_OPERATORS = ARITHMETIC | SHAPES


def to_onnx(
    function: Answer, size: int, *, half: bool = False, metadata: dict[str, str] | None = None
) -> bytes:
    """An ONNX model of a function, with the parameters that it is closed over.

    The model's input is `images`, uint8 [batch, size, size, 3] for any batch; its outputs have
    the names and shapes that the function gives them, in float32. All arithmetic is in float32.

    Args:
        function: takes `images`, gives a dict of arrays float32 [batch, ...].
        size: side of the pictures in pixels.
        half: store large constants in half precision, which halves the file.
        metadata: texts by name to put into the file.

    Raises:
        UserError: the function uses a primitive of JAX that no operator is known for here.
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
    return writer.graph.model(INPUT, shape, outputs, half=half, metadata=metadata or {})


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
