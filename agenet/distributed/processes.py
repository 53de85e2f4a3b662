"""Several processes as one run: they join, agree, and end together.

Every process runs the same program on its own part of each batch. What decides the way of the
program is agreed on, for processes that go different ways wait for each other for ever. Messages
go through the coordinator that JAX itself needs, in process 0.
"""

import ctypes
import errno
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import jax
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state

from agenet.distributed.mesh import create_mesh, make_largest
from agenet.errors import UserError

log = logging.getLogger(__name__)

# Seconds to wait for the coordinator and for all processes to come, and for one to show up again.
START_TIMEOUT, LOST_TIMEOUT = "AGENET_START_TIMEOUT", "AGENET_LOST_TIMEOUT"
_DEFAULTS = {START_TIMEOUT: 300, LOST_TIMEOUT: 60}
_FORM = '--processes must be "auto" or "HOST:PORT,COUNT,INDEX", such as "10.0.0.1:1234,2,0"'
# How often a process shows that it lives and looks whether the others do.
_BEAT = 0.5
# JAX gives up later than we do, and with less of an explanation.
_JAX_WAITS_LONGER = 30
_GLANCE = 1000  # ms, for so long C++ waits deaf to Ctrl-C
_turns: Iterator[int] = itertools.count()


@contextmanager
def joined(processes: str) -> Iterator[None]:
    """Makes this process one of several in the block, before JAX touches a device.

    Whatever ends the block in one process ends all, with its line; one that is silent for
    `AGENET_LOST_TIMEOUT` seconds, 60 by default, counts as dead, which ends the others. Where
    nobody else takes SIGTERM, it ends the block as Ctrl-C does. Without processes, or with one
    alone, nothing else happens.

    Args:
        processes: "auto", as JAX recognises SLURM, Cloud TPUs, Kubernetes and Open MPI, or
            "HOST:PORT,COUNT,INDEX" with the coordinator's address, where process 0 is; or "".

    Raises:
        UserError: `processes` is wrong, or is not that of the others.
    """
    lost = _seconds(LOST_TIMEOUT)
    if processes:
        _join(processes, lost)
    with _ending_at_sigterm():
        if not processes or jax.process_count() == 1:
            yield
            return
        watch = _Watch(lost)
        try:
            _check_count()
            # Processors connect when they first compute together, and wait 30 s for each other
            # then. Now they are all here; later one may compile, or import TensorFlow, for longer.
            make_largest(create_mesh())(0).block_until_ready()
            yield
            gather(None)  # The first is last to finish: it writes the report.
        except BaseException as error:
            if _may_be_anothers(error):
                time.sleep(lost + 4 * _BEAT)  # The watch will know, and end this process.
            watch.fail(error)
            raise
        watch.stop()
        jax.distributed.shutdown()


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """Has SIGTERM raise in the block, so that all hear of it; a second one ends the process."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        log.warning("SIGTERM: stopped; to go on, run the same command again")
        error = SystemExit("SIGTERM")
        error.code = 128 + number  # As shells put it.
        raise error

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def is_first() -> bool:
    """Whether this is the process that writes and tells: the first, or the only one."""
    return jax.process_index() == 0


def agree(value: Any) -> Any:
    """The first process's value, JSON-serialisable; all must ask, in the same order."""
    if jax.process_count() == 1:
        return value
    key = f"agenet/agree/{next(_turns)}"
    if is_first():
        _client().key_value_set(key, json.dumps(value))
    return json.loads(_wait_for(key))


def gather(value: Any) -> list[Any]:
    """The values of all processes, JSON-serialisable, when all have asked, in the same order."""
    if jax.process_count() == 1:
        return [value]
    key = f"agenet/gather/{next(_turns)}"
    _client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_wait_for(f"{key}/{index}")) for index in range(jax.process_count())]


def _client() -> Any:
    """Of the coordinator; there is no public way to it."""
    return global_state.client


def _wait_for(key: str) -> str:
    while True:  # Whoever waits for a process that has ended is ended by the watch.
        try:
            return _client().blocking_key_value_get(key, _GLANCE)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _may_be_anothers(error: BaseException) -> bool:
    """Whether it may be but the end of another process, which JAX tells in many ways."""
    found = [
        each for each in (error, error.__cause__) if isinstance(each, jax.errors.JaxRuntimeError)
    ]
    return any(
        "RESOURCE_EXHAUSTED" not in str(each) and "out of memory" not in str(each).lower()
        for each in found
    )


def _seconds(variable: str) -> int:
    text = os.environ.get(variable, str(_DEFAULTS[variable]))
    if not (text.isdecimal() and int(text)):
        raise UserError(f"{variable}={text} must be a whole number of seconds")
    return int(text)


def parse(processes: str) -> dict[str, Any]:
    """What `jax.distributed.initialize` takes for the value of the flag.

    Raises:
        UserError: it is neither "auto" nor an address, a count and an index below it.
    """
    if processes == "auto":
        return {}
    address, *numbers = processes.split(",")
    port = address.rpartition(":")[2]
    if ":" not in address[1:] or len(numbers) != 2 or not all(map(str.isdecimal, [port, *numbers])):
        raise UserError(f"{_FORM}, not {processes!r}")
    if not 0 < int(port) < 2**16:
        raise UserError(f"--processes={processes}: ports go from 1 to 65535, not to {port}")
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(
            f"--processes={processes}: of {count} processes the first is 0 and the last "
            f"{count - 1}, none is {index}"
        )
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",  # It would share out the devices, too.
    }


def _join(processes: str, lost: int) -> None:
    given, seconds = parse(processes), _seconds(START_TIMEOUT)
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    # It takes SIGTERM, which is ours to hear.
    jax.config.update("jax_enable_preemption_service", False)
    _on_abort(
        lambda: (
            f"{_whoami()} could not join those at {global_state.coordinator_address}, as JAX says "
            "above: each needs an index of its own, and all the same count"
        )
    )
    timer = threading.Timer(seconds, lambda: _end(_why_not_joined(seconds)))
    timer.daemon = True
    timer.start()
    # While C++ waits for the others, Python is deaf.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        given = given or _recognised(seconds)
        if given["process_id"] == 0:
            _check_port(given["coordinator_address"])
        jax.distributed.initialize(
            **given,
            initialization_timeout=seconds + _JAX_WAITS_LONGER,
            heartbeat_timeout_seconds=lost + _JAX_WAITS_LONGER,
        )
    except ValueError as error:  # Nothing that it knows has started this process.
        raise UserError(
            "--processes=auto: this is none of what JAX recognises (SLURM, Cloud TPU, Kubernetes "
            "with jax[k8s], Open MPI): use --processes=HOST:PORT,COUNT,INDEX"
        ) from error
    except (RuntimeError, OSError) as error:
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"process {given.get('process_id')} cannot serve {given.get('coordinator_address')} "
            f"({told.splitlines()[0]}): choose another port, with --processes=auto by "
            "JAX_COORDINATOR_PORT"
        ) from error
    finally:
        signal.signal(signal.SIGINT, interrupt)
        timer.cancel()
    _on_abort(
        lambda: (
            f"{_whoami()} has lost process 0, the coordinator at "
            f"{global_state.coordinator_address}: see what that one told last"
        )
    )


def _recognised(seconds: int) -> dict[str, Any]:
    """What `jax.distributed.initialize` would find out itself; nothing but None if it cannot."""
    names = "coordinator_address", "num_processes", "process_id", "local_device_ids"
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
    return dict(zip(names, found, strict=True))


def _check_port(address: str) -> None:
    """Raises `OSError` if JAX could not serve there, of which it dies, often without a line."""
    every_address = f"[::]:{address.rpartition(':')[2]}"
    host, _, port = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", every_address).rpartition(":")
    try:
        family, *_, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As gRPC binds: IPv4 too, and over what has been closed a moment ago.
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise  # What else there may be is for JAX to find out, which may know better.


def _whoami() -> str:
    return f"process {global_state.process_id} of {global_state.num_processes}"


def _why_not_joined(seconds: int) -> str:
    address = global_state.coordinator_address or "an address still unknown"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"the coordinator at {address} has not answered for {seconds} s ({reason})"
    return f"not all processes have come to the coordinator at {address} within {seconds} s"


def _check_count() -> None:
    """All would wait for processes that only some expect."""
    count = agree(global_state.num_processes)
    if count != global_state.num_processes:
        raise UserError(
            f"--processes: process {jax.process_index()} expects {global_state.num_processes} "
            f"processes, process 0 {count}"
        )


class _Watch:
    """Ends this process when another one has failed or died."""

    def __init__(self, lost: int):
        """Begins to watch; a process that is silent for `lost` seconds is dead."""
        self._lost = lost
        self._index, self._count = jax.process_index(), jax.process_count()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Ends all processes, those that hear of it with the error's line; this one soon."""
        plain = isinstance(error, UserError | SystemExit) or not str(error)
        name = "" if plain else f"{type(error).__name__}: "
        text = (str(error) or type(error).__name__).splitlines()[0]
        with suppress(jax.errors.JaxRuntimeError):  # The first may have failed before.
            self._post(self._index, f"process {self._index} of {self._count}: {name}{text}")
        time.sleep(_BEAT * (4 if self._index == 0 else 0))  # For the others to hear of it.

    def _post(self, index: int, line: str) -> None:
        _client().key_value_set(f"agenet/failed/{index}", line, allow_overwrite=True)

    def _run(self) -> None:
        heard = dict.fromkeys(range(self._count), ("", time.monotonic()))
        for beat in itertools.count():
            with suppress(jax.errors.JaxRuntimeError):  # JAX ends us if it lasts.
                self._beat(str(beat), heard)
            if self._stopped.wait(_BEAT):
                return

    def _beat(self, beat: str, heard: dict[int, tuple[str, float]]) -> None:
        client, now = _client(), time.monotonic()
        client.key_value_set(f"agenet/alive/{self._index}", beat, allow_overwrite=True)
        failed = client.key_value_dir_get("agenet/failed")
        if failed:
            self._leave({_index(key): line for key, line in failed})
        if self._index > 0:
            return
        for key, value in client.key_value_dir_get("agenet/alive"):
            if heard[_index(key)][0] != value:
                heard[_index(key)] = value, now
        for index, (_, last) in heard.items():
            if now - last > self._lost:
                self._post(
                    index,
                    f"process {index} of {self._count} has not been heard of for {self._lost} s: "
                    "it was killed, or its machine is gone",
                )

    def _leave(self, failures: dict[int, str]) -> NoReturn:
        own = self._index in failures  # Which the program tells itself, in a moment.
        for line in () if own else failures.values():
            log.error("error: %s", line)
        # The first is last: without the coordinator JAX in the others would only say so.
        time.sleep(_BEAT * (6 if self._index == 0 else 3 if own else 0))
        sys.stderr.flush()
        os._exit(1)


def _index(key: str) -> int:
    return int(key.rpartition("/")[2])


def _end(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(1)


_handlers: list[Any] = []  # C calls them, so they must stay.


def _on_abort(tell: Any) -> None:
    """Has a line told when JAX aborts the process, as it does when it loses the coordinator.

    That happens in a thread of C++, which Python's own handlers of signals would not outlive.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _end(tell()))
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
