"""What networks and detectors do in a forked process, which has not the threads of its parent.

A library that waits there for one of its threads waits for ever.
"""

import ctypes
import os
import sys
from typing import Any, Protocol
from weakref import WeakSet

from agenet.errors import UserError


class Restarting(Protocol):
    """Something that must start its threads and locks again in a forked process."""

    def restart(self) -> None:
        """Called in the child, right after the fork: forgets what has threads or is locked."""
        ...


_owners: WeakSet[Any] = WeakSet()
_jax_was_running = False


def restart_after_fork(owner: Restarting) -> None:
    """Has `owner.restart` called in every process that is forked from this one."""
    _owners.add(owner)


def abandon(thing: Any) -> None:
    """Keeps alive for ever what a forked process no longer uses.

    ONNX Runtime's sessions wait for their threads when they are deleted, also at the process's end.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def check_jax_can_run() -> None:
    """Raises `UserError` if this process was forked from one in which JAX was running."""
    if _jax_was_running:
        raise UserError(
            "JAX cannot run in a process forked from one that uses it: start processes by "
            'multiprocessing.get_context("spawn"), or load the predictor with '
            'engine="onnxruntime" before the fork'
        )


def _in_child() -> None:
    global _jax_was_running
    bridge = sys.modules.get("jax._src.xla_bridge")
    # Without the function, in a JAX to come, an import counts as use.
    running = bridge is not None and getattr(bridge, "backends_are_initialized", lambda: True)()
    _jax_was_running = _jax_was_running or running
    for owner in list(_owners):
        owner.restart()


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(after_in_child=_in_child)
