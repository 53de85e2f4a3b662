"""The state of writing a traced program to an ONNX graph."""

from collections.abc import Callable
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.export.equations import Equation, Value
from agenet.export.graph import Graph, Tensor


class Writer:
    """The graph, and the tensor of each value of the program that is written so far."""

    def __init__(self, uses: dict[Value, int]):
        self.graph = Graph()
        self.tensors: dict[Value, Tensor] = {}
        self.uses = uses

    def tensor(self, value: Value, order: tuple[int, ...] | None = None) -> Tensor:
        """The tensor of `value`, in the given order of axes or in its present one."""
        if value.known is None:
            tensor = self.tensors[value]
            return tensor if order is None else self.graph.in_order(tensor, order)
        known = value.known
        order = order or tuple(range(known.ndim))
        return Tensor(self.graph.constant(known.transpose(order)), order, known.shape)

    def whole(self, value: Value) -> Tensor:
        """The tensor of `value` in JAX's order of axes and with its full shape."""
        order = tuple(range(len(value.shape)))
        tensor = self.tensor(value, order)
        if tensor.sizes == value.shape:
            return tensor
        if value.known is not None and not all(isinstance(n, int) for n in value.shape):
            raise UserError("not exported: a constant that is repeated for each image")
        # In Expand, 1 keeps the batch size of the array.
        sizes = [n if isinstance(n, int) else 1 for n in value.shape]
        name = self.graph.node("Expand", tensor.name, self.graph.constant(sizes, np.int64))
        return Tensor(name, order, value.shape)

    def ints(self, numbers: Any) -> str:
        """The name of a constant int64 array."""
        return self.graph.constant(list(numbers), np.int64)


Operator = Callable[[Writer, Equation], Tensor]


def refuse(equation: Equation, what: str) -> UserError:
    """The error for a use of a primitive that is not supported."""
    return UserError(f"not exported: JAX's {equation.name} with {what}")
