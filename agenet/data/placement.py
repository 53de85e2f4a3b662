"""Where pictures are kept: on the devices or the host, or nowhere, but read for every batch."""

import logging
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from agenet.data.records import Records
from agenet.data.resident import Resident
from agenet.data.stream import Stream
from agenet.distributed.coordination import all_gather
from agenet.errors import UserError

log = logging.getLogger(__name__)

PLACEMENTS = ("auto", "device", "host", "stream")
# Of free memory: on a device the rest is for the network's activations, on the host for others.
_SHARE = 0.5

Pictures = Resident | Stream


def load_pictures(
    records: Records, *, size: int, mesh: Mesh, placement: str, progress: bool = False
) -> Pictures:
    """Decodes and places a data set, or prepares to do so batch by batch; logs which and why.

    Args:
        records: the data set, N pictures.
        size: side of the square pictures, in pixels.
        mesh: the devices that batches are made for.
        placement: one of `PLACEMENTS`.
        progress: show a progress bar.

    Raises:
        UserError: unknown placement, not enough memory, or a broken picture.
    """
    nbytes = len(records.fold) * size * size * 3
    where, why = choose_placement(
        placement,
        nbytes,
        devices=mesh.size,
        processes=jax.process_count(),
        **agree_on_free(min(map(free_device_memory, mesh.local_devices))),
    )
    log.info("pictures: %.2f GB as uint8 %s: %s", nbytes / 1e9, _TEXTS[where], why)
    if where == "stream":
        return Stream(records, size=size, mesh=mesh)
    return Resident(records, size=size, mesh=mesh, on_device=where == "device", progress=progress)


_TEXTS = {
    "device": "on the devices",
    "host": "on the host, sent batch by batch",
    "stream": "read and decoded batch by batch",
}


def check_placement(placement: str) -> None:
    """Raises `UserError` if it is none of `PLACEMENTS`."""
    if placement not in PLACEMENTS:
        raise UserError(f'input.placement "{placement}" is not known: use one of {PLACEMENTS}')


def choose_placement(
    placement: str,
    nbytes: int,
    *,
    devices: int,
    free_device: float,
    free_host: float,
    processes: int = 1,
) -> tuple[str, str]:
    """One of `PLACEMENTS` without "auto", and why.

    Args:
        placement: what the config has.
        nbytes: of all pictures, decoded.
        devices: among which they would be divided.
        free_device: bytes that every device has left.
        free_host: bytes that every process has left on its host, through which devices get theirs.
        processes: each decodes what its devices hold, or on the host all pictures.

    Raises:
        UserError: unknown placement, or what it asks for does not fit.
    """
    check_placement(placement)
    if placement == "stream":
        return placement, "as input.placement says"
    each = nbytes / devices
    on_device = f"{_gigabytes(each)} for each device, which has {_gigabytes(free_device)} free"
    on_host = f"this machine has {_gigabytes(free_host)} of memory free"
    on_host += " for each process" if processes > 1 else ""
    decoded = nbytes if placement == "host" else nbytes / processes
    if placement == "auto":
        if decoded > _SHARE * free_host:
            return "stream", on_host
        on_host_or_none = "host" if processes == 1 else "stream"
        return ("device" if each <= _SHARE * free_device else on_host_or_none), on_device
    if placement == "device" and each > free_device:
        raise UserError(
            f"the pictures take {on_device}: use --config.input.placement=host, or stream"
        )
    if decoded > free_host:
        raise UserError(
            f"the decoded pictures take {_gigabytes(decoded)} and {on_host}: use "
            "--config.input.placement=stream, or smaller ones with --config.input.size"
        )
    return placement, "as input.placement says"


def _gigabytes(nbytes: float) -> str:
    return "unlimited memory" if nbytes == math.inf else f"{nbytes / 1e9:.1f} GB"


def agree_on_free(free_device: float) -> dict[str, float]:
    """`free_device` and `free_host` for `choose_placement`, the same in all processes.

    The least of what they have, where those of one machine share its memory; all must ask.

    Args:
        free_device: bytes that every device of this process has left.
    """
    machine = socket.gethostname()
    devices, hosts, machines = zip(
        *all_gather([free_device, free_host_memory(), machine]), strict=True
    )
    shares = [free / machines.count(name) for free, name in zip(hosts, machines, strict=True)]
    return {"free_device": min(devices), "free_host": min(shares)}


def free_device_memory(device: jax.Device) -> float:
    """Bytes that a device has left; infinite if it does not tell, as a CPU does not."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return math.inf
    return stats["bytes_limit"] - stats["bytes_in_use"]


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or the least that this process's control groups allow."""
    return min([_machine_memory(), *(limit for limit, _ in _limits(root))])


def free_host_memory(root: Path = Path("/")) -> float:
    """Bytes that this process may take, by what the system and its control groups say."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(available.split()[1]) * 1024
    except (OSError, StopIteration):  # Another system than Linux.
        free = _machine_memory()
    return min([free, *(limit - used for limit, used in _limits(root))])


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Bytes that each group with a limit allows this process's memory, and those it uses."""
    for folder, limit, used in _control_groups(root):
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found = int((folder / limit).read_text()), int(stat[used])
        except (OSError, ValueError, KeyError):  # Not there, or no limit.
            continue
        yield found


def _control_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folders of the groups that this process is in, and what limit and use are called there."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "anon")
        elif controllers == "memory":
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "total_rss")
        else:
            continue
        folder = top / path.lstrip("/")
        # A limit may be any parent's. In a container the path may be one of outside it.
        for each in (folder, *folder.parents):
            yield each, *names
            if each == top:
                break
