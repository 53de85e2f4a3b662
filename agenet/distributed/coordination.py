"""Exchange of small values between the processes of a run.

Values go through the key-value store of the coordinator that JAX starts in process 0. JAX has no
public access to it: `jax.experimental.multihost_utils` exchanges arrays in device collectives,
which time out where one process is busy for minutes, as the first one is with a report.
"""

import itertools
import json
from typing import Any

import jax
from jax._src.distributed import global_state

_WAIT_MS = 1000  # Ctrl-C is not handled while C++ waits.
_calls = itertools.count()


def is_first_process() -> bool:
    """Whether this is the process that logs and writes: process 0, or the only one."""
    return jax.process_index() == 0


def broadcast(value: Any) -> Any:
    """Returns process 0's `value`, which must be JSON-serialisable.

    All processes must call `broadcast` and `all_gather` in the same order.
    """
    if jax.process_count() == 1:
        return value
    key = f"agenet/broadcast/{next(_calls)}"
    if is_first_process():
        client().key_value_set(key, json.dumps(value))
    return json.loads(_wait_for(key))


def all_gather(value: Any) -> list[Any]:
    """Returns the JSON-serialisable values of all processes, once all have called it."""
    if jax.process_count() == 1:
        return [value]
    key = f"agenet/all_gather/{next(_calls)}"
    client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_wait_for(f"{key}/{index}")) for index in range(jax.process_count())]


def client() -> Any:
    """The client of the coordinator's key-value store."""
    return global_state.client


def session() -> Any:
    """JAX's record of what this process was started with, known before it has joined the others.

    Its fields are `coordinator_address` (None while unknown), `num_processes` and `process_id`.
    """
    return global_state


def _wait_for(key: str) -> str:
    while True:  # If the process waited for has ended, `Watchdog` ends this one.
        try:
            return client().blocking_key_value_get(key, _WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
