"""ONNX operators for JAX's primitives that change shapes or select parts."""

from typing import Any

import numpy as np

from agenet.export.equations import Equation, Value
from agenet.export.graph import CHANNELS_FIRST, Tensor
from agenet.export.writer import Operator, Writer, refuse


def _same(writer: Writer, equation: Equation) -> Tensor:
    return writer.tensor(equation.inputs[0])


def _broadcast_in_dim(writer: Writer, equation: Equation) -> Tensor:
    """Adds axes of size 1; operators broadcast them."""
    value, placed = equation.inputs[0], equation.params["broadcast_dimensions"]
    rank = len(equation.outputs[0].shape)
    order = CHANNELS_FIRST if rank == 4 else tuple(range(rank))
    new = [order.index(axis) for axis in range(rank) if axis not in placed]
    # The old axes, in the order of the new array.
    old = tuple(placed.index(axis) for axis in order if axis in placed)
    tensor = writer.tensor(value, old)
    sizes = [1] * rank
    for axis, size in zip(placed, tensor.sizes, strict=True):
        sizes[axis] = size
    node, axes = writer.graph.nodes.get(tensor.name), writer.ints(new)
    if not new:
        name = tensor.name
    elif node is not None and node.op == "Squeeze" and node.inputs[1] == axes:
        name = node.inputs[0]
    else:
        name = writer.graph.node("Unsqueeze", tensor.name, axes)
    return Tensor(name, order, tuple(sizes))


def _reshape(writer: Writer, equation: Equation) -> Tensor:
    shape = equation.outputs[0].shape
    sizes = [n if isinstance(n, int) else -1 for n in shape]
    if sizes.count(-1) > 1 or equation.params["dimensions"] is not None:
        raise refuse(equation, f"the shape {shape}")
    name = writer.graph.node("Reshape", writer.whole(equation.inputs[0]).name, writer.ints(sizes))
    return Tensor(name, tuple(range(len(shape))), shape)


def _squeeze(writer: Writer, equation: Equation) -> Tensor:
    shape = equation.outputs[0].shape
    axes = writer.ints(equation.params["dimensions"])
    name = writer.graph.node("Squeeze", writer.whole(equation.inputs[0]).name, axes)
    return Tensor(name, tuple(range(len(shape))), shape)


def _concatenate(writer: Writer, equation: Equation) -> Tensor:
    names = [writer.whole(value).name for value in equation.inputs]
    shape = equation.outputs[0].shape
    name = writer.graph.node("Concat", *names, axis=equation.params["dimension"])
    return Tensor(name, tuple(range(len(shape))), shape)


def _slice(
    writer: Writer, value: Value, parts: dict[int, tuple[int, int, int]], shape: tuple[Any, ...]
) -> Tensor:
    """Slices `value`; `parts` has start, end and step of each axis that is not kept whole."""
    if not parts:
        return writer.tensor(value)
    tensor = writer.tensor(value)
    if tensor.sizes != value.shape:
        tensor = writer.whole(value)
    starts, ends, steps = (writer.ints(numbers) for numbers in zip(*parts.values(), strict=True))
    axes = writer.ints(map(tensor.axis, parts))
    name = writer.graph.node("Slice", tensor.name, starts, ends, axes, steps)
    return Tensor(name, tensor.order, shape)


def _plain_slice(writer: Writer, equation: Equation) -> Tensor:
    (value,), params = equation.inputs, equation.params
    starts, ends = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or [1] * len(starts)
    parts = {
        axis: part
        for axis, part in enumerate(zip(starts, ends, steps, strict=True))
        if part != (0, value.shape[axis], 1)
    }
    return _slice(writer, value, parts, equation.outputs[0].shape)


def _gather(writer: Writer, equation: Equation) -> Tensor:
    """A gather of one slice at a constant position, which is how JAX writes Python's slicing."""
    value, positions = equation.inputs
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    plain = not numbers.collapsed_slice_dims and not numbers.operand_batching_dims
    if positions.known is None or positions.known.ndim != 1 or not plain:
        raise refuse(equation, "other than one slice at a constant position")
    parts = {}
    for axis, start in zip(numbers.start_index_map, positions.known.tolist(), strict=True):
        if not 0 <= start <= value.shape[axis] - sizes[axis]:
            raise refuse(equation, f"the position {start} outside the array")
        parts[axis] = (start, start + sizes[axis], 1)
    return _slice(writer, value, parts, equation.outputs[0].shape)


def write_split(writer: Writer, equation: Equation) -> list[Tensor]:
    """Writes JAX's `split`, which has several outputs."""
    (value,), axis = equation.inputs, equation.params["axis"]
    ends = np.cumsum([0, *equation.params["sizes"]]).tolist()
    return [
        _slice(writer, value, {axis: (start, end, 1)}, output.shape)
        for start, end, output in zip(ends[:-1], ends[1:], equation.outputs, strict=True)
    ]


# By the primitive's name in JAX or in `agenet.export.equations`.
SHAPES: dict[str, Operator] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "gather": _gather,
    "reshape": _reshape,
    "same": _same,
    "slice": _plain_slice,
    "squeeze": _squeeze,
}
