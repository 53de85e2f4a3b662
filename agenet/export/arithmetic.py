"""ONNX operators for JAX's arithmetic primitives."""

from collections.abc import Callable
from typing import Any

import numpy as np

from agenet.export.equations import Equation, Value
from agenet.export.graph import CHANNELS_FIRST, WEIGHTED, Graph, Tensor
from agenet.export.writer import Operator, Writer, refuse


def _elementwise(op: str) -> Operator:
    def write(writer: Writer, equation: Equation) -> Tensor:
        return _broadcast(writer, op, equation.inputs)

    return write


def _broadcast(writer: Writer, op: str, values: list[Value]) -> Tensor:
    rank = max(len(value.shape) for value in values)
    order = CHANNELS_FIRST if rank == 4 else tuple(range(rank))
    # Scalars broadcast whatever their rank.
    tensors = [writer.tensor(v, order if len(v.shape) == rank else None) for v in values]
    name = writer.graph.node(op, *(tensor.name for tensor in tensors))
    arrays = [tensor.sizes for tensor in tensors if len(tensor.sizes) == rank]
    return Tensor(name, order, tuple(map(_larger, *arrays) if len(arrays) > 1 else arrays[0]))


def _larger(*sizes: Any) -> Any:
    return next((size for size in sizes if not (isinstance(size, int) and size == 1)), 1)


def _scale_or_shift(op: str) -> Operator:
    """Multiplies or adds; per-channel constants after a convolution are folded into it."""

    def write(writer: Writer, equation: Equation) -> Tensor:
        for value, other in (equation.inputs, equation.inputs[::-1]):
            if value.known is None and other.known is not None and writer.uses[value] == 1:
                tensor = writer.tensor(value)
                if _fold(writer.graph, op, tensor, other.known):
                    return tensor
        return _broadcast(writer, op, equation.inputs)

    return write


def _fold(graph: Graph, op: str, tensor: Tensor, known: np.ndarray) -> bool:
    """Folds per-channel constants into the Conv or Gemm that made `tensor`; False if impossible."""
    node = graph.nodes.get(tensor.name)
    if node is None or node.op not in WEIGHTED:
        return False
    # Channels are the second axis in the graph, and the first one of Conv's weights.
    channels = tensor.sizes[tensor.order[1]]
    if known.ndim and known.shape != tuple(
        n if axis == tensor.order[1] else 1 for axis, n in enumerate(known.shape)
    ):
        return False
    numbers = np.broadcast_to(known.reshape(-1), [channels])
    weights, *bias = (graph.constants[name] for name in node.inputs[1:])
    if op == "Mul":
        shape = [-1] + [1] * (weights.ndim - 1) if node.op == "Conv" else [1, -1]
        weights, bias = weights * numbers.reshape(shape), [value * numbers for value in bias]
    else:
        bias = [bias[0] + numbers if bias else numbers]
    node.inputs[1:] = [graph.constant(value, np.float32) for value in (weights, *bias)]
    return True


def _max(writer: Writer, equation: Equation) -> Tensor:
    for value, other in (equation.inputs, equation.inputs[::-1]):
        if other.known is not None and other.known.size == 1 and not other.known.any():
            return _broadcast(writer, "Relu", [value])
    return _broadcast(writer, "Max", equation.inputs)


def _relu6(writer: Writer, equation: Equation) -> Tensor:
    tensor = writer.tensor(equation.inputs[0])
    limits = (writer.graph.constant(value, np.float32) for value in (0, 6))
    return Tensor(writer.graph.node("Clip", tensor.name, *limits), tensor.order, tensor.sizes)


def _log_softmax(writer: Writer, equation: Equation) -> Tensor:
    tensor = writer.whole(equation.inputs[0])
    name = writer.graph.node("LogSoftmax", tensor.name, axis=-1)
    return Tensor(name, tensor.order, tensor.sizes)


def _select(writer: Writer, equation: Equation) -> Tensor:
    which, *cases = equation.inputs
    if which.dtype != np.bool_:
        raise refuse(equation, "more than two cases")
    return _broadcast(writer, "Where", [which, *reversed(cases)])


def _one_by_one(make: Callable[[Graph, str], str]) -> Operator:
    """An elementwise primitive that takes several operators."""

    def write(writer: Writer, equation: Equation) -> Tensor:
        tensor = writer.tensor(equation.inputs[0])
        return Tensor(make(writer.graph, tensor.name), tensor.order, tensor.sizes)

    return write


def _square(graph: Graph, x: str) -> str:
    return graph.node("Mul", x, x)


def _rsqrt(graph: Graph, x: str) -> str:
    return graph.node("Reciprocal", graph.node("Sqrt", x))


def _expm1(graph: Graph, x: str) -> str:
    """(exp(x) + 1) * tanh(x / 2), which is accurate for small x."""
    one, half = (graph.constant(value, np.float32) for value in (1, 0.5))
    tanh = graph.node("Tanh", graph.node("Mul", x, half))
    return graph.node("Mul", graph.node("Add", graph.node("Exp", x), one), tanh)


def _is_finite(graph: Graph, x: str) -> str:
    return graph.node("Less", graph.node("Abs", x), graph.constant(np.inf, np.float32))


def _convert(writer: Writer, equation: Equation) -> Tensor:
    if equation.outputs[0].dtype != np.float32:
        raise refuse(equation, f"the type {equation.outputs[0].dtype}")
    value = equation.inputs[0]
    # Images are transposed while they are uint8, which is the cheapest.
    tensor = writer.tensor(value, CHANNELS_FIRST if len(value.shape) == 4 else None)
    name = writer.graph.node("Cast", tensor.name, to=1)
    return Tensor(name, tensor.order, tensor.sizes)


def _conv(writer: Writer, equation: Equation) -> Tensor:
    value, kernel = equation.inputs
    params = equation.params
    numbers = params["dimension_numbers"]
    if kernel.known is None:
        raise refuse(equation, "a kernel that depends on the images")
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise refuse(equation, "a dilated input or batch groups")
    name = writer.graph.node(
        "Conv",
        writer.tensor(value, numbers.lhs_spec).name,
        writer.graph.constant(kernel.known.transpose(numbers.rhs_spec), np.float32),
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[end[side] for side in (0, 1) for end in params["padding"]],
        kernel_shape=[kernel.known.shape[axis] for axis in numbers.rhs_spec[2:]],
    )
    return Tensor(name, tuple(numbers.out_spec), equation.outputs[0].shape)


def _max_pool(writer: Writer, equation: Equation) -> Tensor:
    (value,), params = equation.inputs, equation.params
    window, strides, padding = (
        [params[name][axis] for axis in CHANNELS_FIRST]
        for name in ("window_dimensions", "window_strides", "padding")
    )
    whole = (1, 1) == tuple(window[:2]) == tuple(strides[:2]) and {*padding[:2]} == {(0, 0)}
    if not whole or {*params["base_dilation"], *params["window_dilation"]} != {1}:
        raise refuse(equation, "windows over other axes than rows and columns")
    name = writer.graph.node(
        "MaxPool",
        writer.tensor(value, CHANNELS_FIRST).name,
        kernel_shape=window[2:],
        strides=strides[2:],
        pads=[end[side] for side in (0, 1) for end in padding[2:]],
    )
    return Tensor(name, CHANNELS_FIRST, equation.outputs[0].shape)


def _reduce(op: str) -> Operator:
    def write(writer: Writer, equation: Equation) -> Tensor:
        value, axes = equation.inputs[0], equation.params["axes"]
        graph = writer.graph
        kept = tuple(axis for axis in range(len(value.shape)) if axis not in axes)
        sizes = equation.outputs[0].shape
        order = tuple(range(len(kept)))
        tensor = writer.tensors[value]
        if tensor.order == CHANNELS_FIRST and kept == (0, 3) and op == "ReduceMean":
            pooled = graph.node("GlobalAveragePool", tensor.name)
            return Tensor(graph.node("Squeeze", pooled, writer.ints((2, 3))), order, sizes)
        tensor = writer.whole(value)
        name = graph.node(op, tensor.name, writer.ints(axes), keepdims=0)
        return Tensor(name, order, sizes)

    return write


def _dot(writer: Writer, equation: Equation) -> Tensor:
    """The product of the last axis with a constant matrix."""
    value, matrix = equation.inputs
    contracted, batch = equation.params["dimension_numbers"]
    last = len(value.shape) - 1
    wanted = ((last,), (0,)), ((), ())
    found = tuple(map(tuple, contracted)), tuple(map(tuple, batch))
    if matrix.known is None or matrix.known.ndim != 2 or found != wanted or last not in (1, 3):
        raise refuse(equation, "other than the last axis and a constant matrix")
    shape = equation.outputs[0].shape
    if last == 3:  # a pointwise convolution
        kernel = writer.graph.constant(matrix.known.T[:, :, None, None], np.float32)
        x = writer.tensor(value, CHANNELS_FIRST).name
        return Tensor(writer.graph.node("Conv", x, kernel), CHANNELS_FIRST, shape)
    x, rows = _flattened(writer, value, matrix.known)
    name = writer.graph.node("Gemm", x, writer.graph.constant(rows, np.float32))
    return Tensor(name, (0, 1), shape)


def _flattened(writer: Writer, value: Value, matrix: np.ndarray) -> tuple[str, np.ndarray]:
    """An array [batch, C] and the matrix to multiply it with.

    If the array is a flattened feature map, the map keeps its layout in the graph, and the rows of
    the matrix are reordered accordingly.
    """
    tensor = writer.whole(value)
    reshape = writer.graph.nodes.get(tensor.name)
    transpose = reshape and writer.graph.nodes.get(reshape.inputs[0])
    if reshape is None or transpose is None or transpose.op != "Transpose":
        return tensor.name, matrix
    flattened = next(v for v, t in writer.tensors.items() if t.name == transpose.inputs[0])
    _, *sizes = flattened.shape
    order = writer.tensors[flattened].order
    rows = matrix.reshape(*sizes, -1).transpose(*(axis - 1 for axis in order[1:]), 3)
    name = writer.graph.node("Flatten", transpose.inputs[0])
    return name, rows.reshape(matrix.shape)


# By the primitive's name in JAX or in `agenet.export.equations`.
ARITHMETIC: dict[str, Operator] = {
    "abs": _elementwise("Abs"),
    "add": _scale_or_shift("Add"),
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "div": _elementwise("Div"),
    "dot_general": _dot,
    "exp": _elementwise("Exp"),
    "expm1": _one_by_one(_expm1),
    "is_finite": _one_by_one(_is_finite),
    "log": _elementwise("Log"),
    "log_softmax": _log_softmax,
    "logistic": _elementwise("Sigmoid"),
    "max": _max,
    "min": lambda writer, equation: _broadcast(writer, "Min", equation.inputs),
    "mul": _scale_or_shift("Mul"),
    "neg": _elementwise("Neg"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_mean": _reduce("ReduceMean"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _max_pool,
    "relu6": _relu6,
    "rsqrt": _one_by_one(_rsqrt),
    "select_n": _select,
    "softplus": _elementwise("Softplus"),
    "sqrt": _elementwise("Sqrt"),
    "square": _one_by_one(_square),
    "sub": _elementwise("Sub"),
    "tanh": _elementwise("Tanh"),
}
