"""Traces a function of images to a flat list of JAX primitives, with constants evaluated.

Calls are inlined, the standard lowering is chosen where there are several, and unused equations are
dropped.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from agenet.errors import UserError

BATCH = "batch"

# Maps images uint8 [B, S, S, 3] to float32 arrays [B, ...] by name.
Forward = Callable[[jax.Array], dict[str, jax.Array]]

# Functions that are not inlined, because ONNX has an operator for each.
_WHOLE = {
    "relu6": jax.nn.relu6,
    "softplus": jax.nn.softplus,
    "log_softmax": jax.nn.log_softmax,
}
_CALLS = {"jit", "closed_call", "custom_jvp_call", "custom_vjp_call"}
_SAME = {"stop_gradient", "optimization_barrier", "copy"}
_ELEMENTWISE = {"add", "sub", "mul", "div", "max", "min", "neg", "select_n", "convert_element_type"}


@dataclass(eq=False)
class Value:
    """An array of the traced function.

    Attributes:
        shape: its shape; the batch size is symbolic.
        dtype: its type.
        known: its value if it does not depend on the images, possibly of size 1 along axes (also
            the batch) where it is constant.
    """

    shape: tuple[Any, ...]
    dtype: np.dtype
    known: np.ndarray | None = None


@dataclass(eq=False)
class Equation:
    """`outputs` = the primitive `name` of `inputs`."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    params: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A traced function of `images`, uint8 [batch, size, size, 3]."""

    images: Value
    equations: list[Equation]
    outputs: dict[str, Value]

    def uses(self) -> Counter[Value]:
        """How often each value is used, as an input of an equation or an output of the function."""
        read = [value for equation in self.equations for value in equation.inputs]
        return Counter(read + list(self.outputs.values()))


def trace(function: Forward, size: int) -> Program:
    """Traces a function of images uint8 [B, size, size, 3], for any B.

    Raises:
        UserError: its computation depends on the images' values or on B.
    """
    (batch,) = export.symbolic_shape(BATCH)
    shape = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    jaxpr, outputs = jax.make_jaxpr(function, return_shape=True)(shape)
    if not isinstance(outputs, dict):
        raise TypeError(f"the function returns {type(outputs).__name__}, not a dict of arrays")
    images = Value(shape.shape, shape.dtype)
    equations: list[Equation] = []
    results = _inline(jaxpr, [images], equations)
    # JAX orders a dict's leaves by key.
    program = Program(images, equations, dict(zip(sorted(outputs), results, strict=True)))
    _find_means(program)
    _drop_unused(program)
    return program


def _inline(jaxpr: ClosedJaxpr, inputs: Sequence[Value], into: list[Equation]) -> list[Value]:
    """Appends the equations of `jaxpr`; returns its outputs."""
    values = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
        values[variable] = _known(variable.aval, constant)

    def read(atom: Any) -> Value:
        return _known(atom.aval, atom.val) if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars], into)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _apply(eqn: Any, inputs: list[Value], into: list[Equation]) -> list[Value]:
    name, params = eqn.primitive.name, eqn.params
    if name == "platform_index":
        # The default lowering.
        return [_known(eqn.outvars[0].aval, params["platforms"].index(None))]
    if name == "cond":
        chosen, *inputs = inputs
        if chosen.known is None:
            raise UserError("not exported: the network's control flow depends on the images")
        return _inline(params["branches"][int(chosen.known)], inputs, into)
    body = _body(eqn)
    if body is not None and not (_is_whole(eqn, body) and inputs[0].known is None):
        return _inline(body, inputs, into)
    if name in _SAME or (name == "convert_element_type" and inputs[0].dtype == params["new_dtype"]):
        return inputs
    if name == "max" and any(_is_scalar(value, -np.inf) for value in inputs):
        return [value for value in inputs if not _is_scalar(value, -np.inf)][:1]
    if all(value.known is not None for value in inputs):
        return _evaluate(eqn, inputs)
    if body is not None:
        name = params["name"]
    outputs = [Value(variable.aval.shape, variable.aval.dtype) for variable in eqn.outvars]
    into.append(Equation(name, inputs, outputs, params))
    return outputs


def _is_whole(eqn: Any, body: ClosedJaxpr) -> bool:
    """Whether the call is one of `_WHOLE`, by its name and its equations."""
    original = _WHOLE.get(eqn.params.get("name"))
    if original is None or len(eqn.invars) != 1:
        return False
    aval = eqn.invars[0].aval
    jaxpr = jax.make_jaxpr(original)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    return list(_steps(body.jaxpr)) == list(_steps(jaxpr.jaxpr))


def _steps(jaxpr: Jaxpr) -> Iterator[tuple[Any, ...]]:
    for eqn in jaxpr.eqns:
        if (body := _body(eqn)) is not None:
            yield from _steps(body.jaxpr)
        else:
            literals = [float(atom.val) for atom in eqn.invars if isinstance(atom, Literal)]
            yield eqn.primitive.name, literals, eqn.params.get("axes")


def _body(eqn: Any) -> ClosedJaxpr | None:
    if eqn.primitive.name not in _CALLS:
        return None
    return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))


def _evaluate(eqn: Any, inputs: list[Value]) -> list[Value]:
    if eqn.primitive.name == "broadcast_in_dim":
        # Not expanded: ONNX operators broadcast, and per-channel constants stay small.
        known = np.asarray(inputs[0].known)
        sizes = [1] * len(eqn.params["shape"])
        for axis, count in zip(eqn.params["broadcast_dimensions"], known.shape, strict=True):
            sizes[axis] = count
        return [_known(eqn.outvars[0].aval, known.reshape(sizes))]
    shapes = [value.shape for value in inputs] + [v.aval.shape for v in eqn.outvars]
    fixed = all(isinstance(size, int) for shape in shapes for size in shape)
    if not fixed and eqn.primitive.name not in _ELEMENTWISE:
        raise UserError(f"not exported: JAX's {eqn.primitive.name} of the batch size")
    arrays = [
        np.broadcast_to(np.asarray(v.known), [n if isinstance(n, int) else 1 for n in v.shape])
        for v in inputs
    ]
    results = eqn.primitive.bind(*arrays, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    return [_known(v.aval, result) for v, result in zip(eqn.outvars, results, strict=True)]


def _known(aval: Any, value: Any) -> Value:
    return Value(aval.shape, aval.dtype, np.asarray(value, aval.dtype))


def _is_scalar(value: Value, number: float) -> bool:
    return value.known is not None and value.known.size == 1 and float(value.known.item()) == number


def _find_means(program: Program) -> None:
    """Replaces sums that are divided by their number of terms by means."""
    made = {equation.outputs[0]: equation for equation in program.equations}
    uses = program.uses()
    for equation in program.equations:
        if equation.name != "div" or equation.inputs[1].known is None:
            continue
        value, count = equation.inputs
        while uses[value] == 1 and value in made and made[value].name == "broadcast_in_dim":
            (value,) = made[value].inputs
        source = made.get(value)
        if source is None or source.name != "reduce_sum" or uses[value] != 1:
            continue
        sizes = [source.inputs[0].shape[axis] for axis in source.params["axes"]]
        if all(isinstance(n, int) for n in sizes) and _is_scalar(count, float(np.prod(sizes))):
            source.name, equation.name = "reduce_mean", "same"
            equation.inputs = equation.inputs[:1]


def _drop_unused(program: Program) -> None:
    needed = set(program.outputs.values())
    kept = []
    for equation in reversed(program.equations):
        if needed.intersection(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    program.equations[:] = reversed(kept)
