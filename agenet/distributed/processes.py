"""Runs one program in several processes: start-up, common end, and handling of SIGTERM.

Every process runs the same program on its own part of each batch. Decisions that change what the
program does next are made in one process and broadcast (`agenet.distributed.coordination`):
processes that take different branches would wait for each other for ever.
"""

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import jax
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from agenet.distributed.coordination import all_gather, broadcast, session
from agenet.distributed.failures import Watchdog, exit_with, exit_with_line_on_abort
from agenet.errors import UserError

log = logging.getLogger(__name__)

# Environment variables: seconds to wait until all processes have joined, and seconds without a
# heartbeat after which a process counts as dead.
START_TIMEOUT, LOST_TIMEOUT = "AGENET_START_TIMEOUT", "AGENET_LOST_TIMEOUT"
_DEFAULT_TIMEOUTS = {START_TIMEOUT: 300, LOST_TIMEOUT: 60}
_FORM = '--processes must be "auto" or "HOST:PORT,COUNT,INDEX", such as "10.0.0.1:1234,2,0"'
# JAX's own timeouts are longer than ours by this, because ours end with a clearer message.
_JAX_EXTRA_SECONDS = 30


@contextmanager
def distributed_session(processes: str) -> Iterator[None]:
    """Makes this process one of several in the block; must be entered before JAX uses a device.

    An error that ends the block in one process ends all of them with its message. A process
    without a heartbeat for `AGENET_LOST_TIMEOUT` seconds (60 by default) counts as dead, which ends
    the others. Unless the program handles SIGTERM itself, SIGTERM ends the block as Ctrl-C does.
    With `processes` empty, or with a single process, only the handling of SIGTERM applies.

    Args:
        processes: "auto", where JAX recognises the cluster (SLURM, Cloud TPU, Kubernetes, Open
            MPI); "HOST:PORT,COUNT,INDEX" with the address of process 0, the coordinator; or "".

    Raises:
        UserError: `processes` is malformed or differs from that of the other processes, or they
            cannot be reached.
    """
    lost_timeout = _read_timeout(LOST_TIMEOUT)
    if processes:
        _join(processes, lost_timeout)
    with _exit_on_sigterm():
        if not processes or jax.process_count() == 1:
            yield
            return
        watchdog = Watchdog(lost_timeout)
        try:
            _check_count()
            # CPU devices connect in their first collective, with a timeout of 30 s. Now all
            # processes are here; later one may compile for longer than that.
            multihost_utils.sync_global_devices("agenet")
            yield
            all_gather(None)  # Process 0, which writes the report, finishes last.
        except BaseException as error:
            watchdog.report_failure(error)
            raise
        watchdog.stop()
        jax.distributed.shutdown()


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Has SIGTERM raise SystemExit in the block; a second SIGTERM kills the process."""

    def exit_(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        log.warning("SIGTERM: stopped; to resume, run the same command again")
        error = SystemExit("SIGTERM")
        error.code = 128 + number  # The shells' convention.
        raise error

    previous = signal.signal(signal.SIGTERM, exit_)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def parse_processes(processes: str) -> dict[str, Any]:
    """Converts the value of the flag to arguments of `jax.distributed.initialize`.

    Raises:
        UserError: it is neither "auto" nor an address, a count and an index below the count.
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
        # Detection would assign each process one of the machine's devices, too.
        "cluster_detection_method": "deactivate",
    }


def _join(processes: str, lost_timeout: int) -> None:
    """Connects to the coordinator, or starts it in process 0, and waits for all processes."""
    arguments, seconds = parse_processes(processes), _read_timeout(START_TIMEOUT)
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    # JAX's preemption service would take over SIGTERM, which the training loop handles.
    jax.config.update("jax_enable_preemption_service", False)
    exit_with_line_on_abort(
        lambda: (
            f"{_whoami()} could not join the others at {session().coordinator_address}, see the "
            "message of JAX above: each needs its own index, and all the same count"
        )
    )
    timer = threading.Timer(seconds, lambda: exit_with(_why_not_joined(seconds)))
    timer.daemon = True
    timer.start()
    # Python's handler of Ctrl-C cannot run while C++ waits for the others: use the system's.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        arguments = arguments or _detect_cluster(seconds)
        if arguments["process_id"] == 0:
            _check_port(arguments["coordinator_address"])
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=seconds + _JAX_EXTRA_SECONDS,
            heartbeat_timeout_seconds=lost_timeout + _JAX_EXTRA_SECONDS,
        )
    except ValueError as error:  # JAX recognises no cluster.
        raise UserError(
            "--processes=auto: JAX recognises no cluster here (SLURM, Cloud TPU, Kubernetes "
            "with jax[k8s], Open MPI): use --processes=HOST:PORT,COUNT,INDEX"
        ) from error
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"process {arguments.get('process_id')} cannot serve "
            f"{arguments.get('coordinator_address')} ({reason.splitlines()[0]}): choose another "
            "port, with --processes=auto by JAX_COORDINATOR_PORT"
        ) from error
    finally:
        signal.signal(signal.SIGINT, handler)
        timer.cancel()
    exit_with_line_on_abort(
        lambda: (
            f"{_whoami()} has lost process 0, the coordinator at "
            f"{session().coordinator_address}: see the last message of process 0"
        )
    )


def _detect_cluster(seconds: int) -> dict[str, Any]:
    """What `jax.distributed.initialize` would detect itself, for `_check_port`; else all None."""
    names = "coordinator_address", "num_processes", "process_id", "local_device_ids"
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
    return dict(zip(names, found, strict=True))


def _check_port(address: str) -> None:
    """Raises `OSError` if the coordinator cannot listen there.

    JAX 0.10 often crashes if a port is taken. If another coordinator has it, gRPC shares the port
    without an error, and the two runs would mix.
    """
    every_address = f"[::]:{address.rpartition(':')[2]}"
    host, _, port = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", every_address).rpartition(":")
    try:
        family, *_, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # The options of gRPC: IPv4 too, and ports that were closed a moment ago.
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise  # Anything else is left for JAX to report.


def _whoami() -> str:
    return f"process {session().process_id} of {session().num_processes}"


def _why_not_joined(seconds: int) -> str:
    address = session().coordinator_address or "an address that is still unknown"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"the coordinator at {address} has not answered for {seconds} s ({reason})"
    return f"not all processes have joined the coordinator at {address} within {seconds} s"


def _check_count() -> None:
    """Raises `UserError` if the processes were started with different counts."""
    own = session().num_processes
    first = broadcast(own)
    if own != first:
        raise UserError(
            f"--processes: process {jax.process_index()} expects {own} processes, process 0 {first}"
        )


def _read_timeout(variable: str) -> int:
    text = os.environ.get(variable, str(_DEFAULT_TIMEOUTS[variable]))
    if not (text.isdecimal() and int(text)):
        raise UserError(f"{variable}={text} must be a whole number of seconds")
    return int(text)
