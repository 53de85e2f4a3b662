"""Finds the weights among all that a training in PyTorch has saved.

A training checkpoint holds the state dict of its network under a name of its own choice, beside
numbers, the state of the optimizer, and perhaps a moving average of the network. Wrappers of
PyTorch add parts to the names of tensors.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any

from agenet.errors import printable

log = logging.getLogger(__name__)

_DEPTH = 4  # of dicts in dicts
_OTHER = re.compile(r"optim|sched|scaler|callback", re.IGNORECASE)
AVERAGED = re.compile(r"ema|averag|swa|teacher|momentum", re.IGNORECASE)
# Added by torch.compile, FullyShardedDataParallel and activation checkpointing, DeepSpeed.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


def find_state(content: Any, tensor: type) -> dict[str, Any]:
    """The state dict in the content of a file, without the parts that wrappers add to its names.

    Of several the largest is taken, and one that is not a moving average if there is one; a line
    in the log says so.

    Args:
        content: what was unpickled.
        tensor: the class of the values of a state dict.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(content, dict):
        raise ValueError("it does not contain a state dict")
    found = dict(_states(content, tensor, ()))
    if not found:
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, tensor):
                raise ValueError(
                    f"its entry {str(name)[:100]!r} is not a tensor: expected a state dict, or one "
                    "in a dict under a name such as 'state_dict'"
                )
    chosen, *others = sorted(
        found, key=lambda path: (bool(AVERAGED.search(path)), -len(found[path]))
    ) or [""]
    if others:
        log.warning(
            "there are several networks in the file: %s is read, not %s; save another one alone "
            "to read that",
            printable(chosen),
            printable(", ".join(others), 300),
        )
    return _unwrapped(found.get(chosen, {}))


def _states(
    content: dict[Any, Any], tensor: type, path: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the dicts of tensors alone, each with its path."""
    if content and all(isinstance(value, tensor) for value in content.values()):
        if all(isinstance(name, str) for name in content):
            yield ".".join(path) or "the file itself", content
        return
    for name, value in content.items() if len(path) < _DEPTH else ():
        if isinstance(name, str) and isinstance(value, dict) and not _OTHER.search(name):
            yield from _states(value, tensor, (*path, name[:100]))


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    state = {name: value for name, value in state.items() if name != _COUNTER}
    result = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        result[".".join(parts)] = value
    # DataParallel's and AveragedModel's, which may be nested.
    while result and all(name.startswith("module.") for name in result):
        result = {name.removeprefix("module."): value for name, value in result.items()}
    if len(result) < len(state):
        raise ValueError("two of its tensors have the same name")
    return result
