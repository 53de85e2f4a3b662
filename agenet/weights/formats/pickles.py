"""Interprets the few pickle instructions that a file of tensors needs, without unpickling.

A pickle is a program for a small stack machine whose instructions import functions and call them.
`pickletools` only parses that program. `load` then interprets it with a machine that knows plain
values and containers. To this machine a function is only a name: it looks the name up in the
caller's table of replacements and rejects every name that is not in the table.
"""

import pickletools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import IO, Any

ADVICE = "where it was made, save the weights alone: torch.save(module.state_dict(), 'weights.pth')"
# EfficientNet-B7's weights take about 60,000.
MAX_INSTRUCTIONS = 1_000_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"}  # also Python 2's
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()
_MOST_ARGUMENTS = 16


@dataclass(frozen=True)
class Name:
    """The name of a function or class that the pickle refers to; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


def load(
    file: IO[bytes],
    functions: Mapping[str, Callable[..., Any]],
    classes: Mapping[str, Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """Returns the value of the pickle at the current position of `file`, and stops after it.

    Args:
        file: the file, positioned at the start of the pickle.
        functions: replacements, by "module.name", for the functions that the pickle may call.
        classes: replacements for names that the pickle may mention but not call.
        persistent: creates an object from a persistent identifier.

    Raises:
        ValueError: the pickle is damaged, too long, or uses anything else.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_INSTRUCTIONS:
            raise ValueError("its pickle is too long for a dict of tensors")
        try:
            _step(opcode.name, arg, stack, memo, functions, classes, persistent)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"its pickle is damaged at instruction {count}") from error
    if len(stack) != 1:
        raise ValueError("its pickle is damaged at its end")
    return stack[0]


def _step(
    code: str,
    arg: Any,
    stack: list[Any],
    memo: dict[int, Any],
    functions: Mapping[str, Callable[..., Any]],
    classes: Mapping[str, Any],
    persistent: Callable[[Any], Any],
) -> None:
    if code in _CONSTANTS:
        stack.append(_CONSTANTS[code])
    elif code in _VALUES or code in _TEXTS:
        stack.append(arg)
    elif code in _EMPTY:
        stack.append(_EMPTY[code]())
    elif code == "MARK":
        stack.append(_MARK)
    elif code in ("BINPUT", "LONG_BINPUT"):
        memo[arg] = stack[-1]
    elif code == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif code in ("BINGET", "LONG_BINGET"):
        stack.append(memo[arg])
    elif code in _TUPLES:
        stack.append(tuple(_pop(stack, _TUPLES[code])))
    elif code == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif code in ("APPEND", "APPENDS"):
        items = _pop(stack, 1) if code == "APPEND" else _pop_to_mark(stack)
        _top(stack, list).extend(items)
    elif code in ("SETITEM", "SETITEMS"):
        items = _pop(stack, 2) if code == "SETITEM" else _pop_to_mark(stack)
        pairs = zip(items[::2], items[1::2], strict=True)
        _top(stack, dict).update((_key(key), value) for key, value in pairs)
    elif code == "GLOBAL":
        stack.append(_find(Name(*arg.split(" ", 1)), functions, classes))
    elif code == "STACK_GLOBAL":
        module, name = _pop(stack, 2)
        # Converted to text, nested tuples can exceed any memory.
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("its pickle has a name that is not text")
        stack.append(_find(Name(module, name), functions, classes))
    elif code == "REDUCE":
        function, args = _pop(stack, 2)
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise ValueError("its pickle calls something that is not a function")
        if len(args) > _MOST_ARGUMENTS:
            raise ValueError("its pickle calls a function with too many arguments")
        stack.append(functions[str(function)](*args))
    elif code == "BUILD":
        # A state dict has version numbers as an attribute; attributes are ignored.
        _pop(stack, 1)
        _top(stack, dict)
    elif code == "BINPERSID":
        stack.append(persistent(_pop(stack, 1)[0]))
    elif code not in ("PROTO", "FRAME", "STOP"):
        raise ValueError(f"its pickle uses {code}, which a dict of tensors does not need: {ADVICE}")


def _find(
    name: Name, functions: Mapping[str, Callable[..., Any]], classes: Mapping[str, Any]
) -> Any:
    if str(name) in functions:
        return name
    if str(name) in classes:
        return classes[str(name)]
    raise ValueError(
        f"its pickle names {name}, which a dict of tensors does not need; nothing was executed: "
        + ADVICE
    )


def _pop(stack: list[Any], count: int) -> list[Any]:
    items = stack[-count:]
    if len(items) < count or any(item is _MARK for item in items):
        raise ValueError("its pickle takes more values than it has created")
    del stack[-count:]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _top(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise ValueError(f"its pickle expects a {kind.__name__} and has none")
    return stack[-1]


def _key(key: Any) -> Hashable:
    # Hashing deeply nested tuples exhausts the stack of the process.
    if not isinstance(key, str | int | float | None):
        raise ValueError("its pickle has a dict with keys that are neither text nor numbers")
    return key
