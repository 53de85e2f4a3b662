"""What writes a program into an ONNX graph, equation by equation, has at hand."""

from collections.abc import Callable
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.export.equations import Equation, Value
from agenet.export.graph import Graph, Tensor


class Writer:
    """The graph, and where it has the values of the program."""

    def __init__(self, uses: dict[Value, int]):
        self.graph = Graph()
        self.tensors: dict[Value, Tensor] = {}
        self.uses = uses

    def tensor(self, value: Value, order: tuple[int, ...] | None = None) -> Tensor:
        """`value` in the order that is asked for, or else in the one that it has."""
        if value.known is None:
            tensor = self.tensors[value]
            return tensor if order is None else self.graph.in_order(tensor, order)
        known = value.known
        order = order or tuple(range(known.ndim))
        return Tensor(self.graph.constant(known.transpose(order)), order, known.shape)

    def whole(self, value: Value) -> Tensor:
        """`value` in JAX's order and of its whole size."""
        order = tuple(range(len(value.shape)))
        tensor = self.tensor(value, order)
        if tensor.sizes == value.shape:
            return tensor
        if value.known is not None and not all(isinstance(n, int) for n in value.shape):
            raise UserError("not exported: an array of as many equal rows as there are pictures")
        # The batch's size is that of the array, which 1 stands for.
        sizes = [n if isinstance(n, int) else 1 for n in value.shape]
        name = self.graph.node("Expand", tensor.name, self.graph.constant(sizes, np.int64))
        return Tensor(name, order, value.shape)

    def ints(self, numbers: Any) -> str:
        return self.graph.constant(list(numbers), np.int64)


Operator = Callable[[Writer, Equation], Tensor]


def refuse(equation: Equation, what: str) -> UserError:
    return UserError(f"not exported: JAX's {equation.name} with {what}")
