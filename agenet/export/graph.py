"""Builds an ONNX graph: nodes, constants, and the axis order of each array.

ONNX's convolutions have channels before rows and columns, JAX's here have them last. An array keeps
the order in which it was computed until an operator needs another one.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
_IR_VERSION = 8  # the version that belongs to the opset
# Number of elements from which constants are stored in half precision and not deduplicated.
_LARGE = 1024

CHANNELS_FIRST = (0, 3, 1, 2)
# Operators whose weights may change after they are added, see `agenet.export.arithmetic`.
WEIGHTED = ("Conv", "Gemm")


@dataclass(frozen=True)
class Tensor:
    """An array in the graph.

    Attributes:
        name: its name in the graph.
        order: the axes of JAX's array in the order of the graph's axes.
        sizes: the sizes of JAX's axes; 1 where operators broadcast.
    """

    name: str
    order: tuple[int, ...]
    sizes: tuple[Any, ...]

    def axis(self, axis: int) -> int:
        """The axis in the graph of an axis in JAX."""
        return self.order.index(axis)


@dataclass
class Node:
    """An operator with one output."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


@dataclass
class Graph:
    """Nodes in order of computation, and constants by name."""

    nodes: dict[str, Node] = field(default_factory=dict)  # by output
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    _written: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Adds a constant and returns its name; equal small constants are added once."""
        value = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        key = (value.dtype.str, value.shape, value.tobytes())
        if value.size < _LARGE and key in self._written:
            return self._written[key]
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        if value.size < _LARGE:
            self._written[key] = name
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Appends an operator, unless it exists, and returns the name of its output."""
        key = (op, inputs, repr(sorted(attributes.items())))
        if op in WEIGHTED or key not in self._written:
            name = f"{op.lower()}_{len(self.nodes)}"
            self.nodes[name] = Node(op, list(inputs), name, attributes)
            self._written[key] = name
        return self._written[key]

    def in_order(self, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
        """Transposes `tensor` to the given order of axes."""
        if tensor.order == order:
            return tensor
        perm = [tensor.axis(axis) for axis in order]
        return Tensor(self.node("Transpose", tensor.name, perm=perm), order, tensor.sizes)

    def model(
        self,
        images: str,
        shape: tuple[Any, ...],
        outputs: dict[str, tuple[str, tuple[Any, ...]]],
        *,
        half: bool,
        metadata: dict[str, str],
        description: str,
    ) -> bytes:
        """Serialises the model.

        Args:
            images: name of the input, uint8.
            shape: shape of the input.
            outputs: for each output the name of its tensor and its shape.
            half: store large constants in half precision.
            metadata: texts by name.
            description: the model's documentation.
        """
        nodes = self._needed(name for name, _ in outputs.values())
        used = {name for node in nodes for name in node.inputs}
        protos, initializers = [], []
        for name, value in self.constants.items():
            if name not in used:
                continue
            if half and _fits_half(value):
                stored = f"{name}_half"
                initializers.append(numpy_helper.from_array(value.astype(np.float16), stored))
                protos.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
            else:
                initializers.append(numpy_helper.from_array(value, name))
        for node in nodes:
            proto = helper.make_node(node.op, node.inputs, [node.output], node.output)
            proto.attribute.extend(
                helper.make_attribute(key, value) for key, value in node.attributes.items()
            )
            protos.append(proto)
        for name, (source, _) in outputs.items():
            protos.append(helper.make_node("Identity", [source], [name], name))
        graph = helper.make_graph(
            protos,
            "agenet",
            [helper.make_tensor_value_info(images, TensorProto.UINT8, shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, (_, shape) in outputs.items()
            ],
            initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="agenet",
            doc_string=description,
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

    def _needed(self, outputs: Any) -> list[Node]:
        needed = set(outputs)
        nodes = []
        for name, node in reversed(self.nodes.items()):
            if name in needed:
                needed.update(node.inputs)
                nodes.append(node)
        return nodes[::-1]


def _fits_half(value: np.ndarray) -> bool:
    """Whether a constant is large and its values are in the range of half precision."""
    large = value.dtype == np.float32 and value.size >= _LARGE
    return large and bool(np.abs(value).max() <= np.finfo(np.float16).max)
