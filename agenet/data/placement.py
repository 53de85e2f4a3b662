"""Chooses where a data set's images are kept: on the devices, on the host, or streamed."""

import logging
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from agenet.data.config import Placement
from agenet.data.records import Records
from agenet.data.resident import ResidentImages
from agenet.data.stream import StreamedImages
from agenet.distributed.coordination import all_gather
from agenet.errors import UserError

log = logging.getLogger(__name__)

# The share of free memory that images may take: on a device the rest is for activations, on the
# host for other programs.
_SHARE = 0.5

ImageSource = ResidentImages | StreamedImages


def load_images(
    records: Records, *, size: int, mesh: Mesh, placement: Placement, progress: bool = False
) -> ImageSource:
    """Decodes and places a data set, or prepares to stream it; logs the placement and its reason.

    Args:
        records: the data set, N images.
        size: side of the square images, in pixels.
        mesh: the devices that batches are divided over.
        placement: see `choose_placement`.
        progress: show a progress bar.

    Raises:
        UserError: not enough memory, or an image that does not decode.
    """
    nbytes = len(records.fold) * size * size * 3
    where, why = choose_placement(
        placement,
        nbytes,
        devices=mesh.size,
        processes=jax.process_count(),
        **min_free_memory(min(map(free_device_memory, mesh.local_devices))),
    )
    log.info("images: %.2f GB as uint8 %s: %s", nbytes / 1e9, _TEXTS[where], why)
    if where == "stream":
        return StreamedImages(records, size=size, mesh=mesh)
    return ResidentImages(
        records, size=size, mesh=mesh, on_device=where == "device", progress=progress
    )


_TEXTS = {
    "device": "on the devices",
    "host": "on the host, sent batch by batch",
    "stream": "read and decoded batch by batch",
}


def choose_placement(
    placement: Placement,
    nbytes: int,
    *,
    devices: int,
    free_device: float,
    free_host: float,
    processes: int = 1,
) -> tuple[Placement, str]:
    """Chooses "device", "host" or "stream".

    Args:
        placement: the requested placement; "auto" takes the first that fits.
        nbytes: size of all decoded images.
        devices: number of devices that they would be divided over.
        free_device: free bytes of each device.
        free_host: free bytes of host memory for each process; decoding for devices takes it, too.
        processes: number of processes. Each decodes the images of its own devices, or all images
            for "host".

    Returns:
        The placement and the reason for it.

    Raises:
        UserError: not enough memory for the requested placement.
    """
    if placement == "stream":
        return placement, "as input.placement says"
    each = nbytes / devices
    on_device = f"{_gigabytes(each)} for each device"
    if free_device < math.inf:
        on_device += f", which has {_gigabytes(free_device)} free"
    on_host = f"this machine has {_gigabytes(free_host)} of memory free"
    on_host += " for each process" if processes > 1 else ""
    decoded = nbytes if placement == "host" else nbytes / processes
    if placement == "auto":
        if decoded > _SHARE * free_host:
            return "stream", on_host
        elsewhere: Placement = "host" if processes == 1 else "stream"
        return ("device" if each <= _SHARE * free_device else elsewhere), on_device
    if placement == "device" and each > free_device:
        raise UserError(
            f"the images take {on_device}: use --config.input.placement=host, or stream"
        )
    if decoded > free_host:
        raise UserError(
            f"the decoded images take {_gigabytes(decoded)} and {on_host}: use "
            "--config.input.placement=stream, or smaller ones with --config.input.size"
        )
    return placement, "as input.placement says"


def _gigabytes(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB"


def min_free_memory(free_device: float) -> dict[str, float]:
    """The minimum of all processes' free memory, as arguments of `choose_placement`.

    Processes on the same machine share its memory. All processes must call this.

    Args:
        free_device: free bytes of each device of this process.
    """
    machine = socket.gethostname()
    devices, hosts, machines = zip(
        *all_gather([free_device, free_host_memory(), machine]), strict=True
    )
    shares = [free / machines.count(name) for free, name in zip(hosts, machines, strict=True)]
    return {"free_device": min(devices), "free_host": min(shares)}


def free_device_memory(device: jax.Device) -> float:
    """Free bytes of a device; infinite if it does not report them, as CPU devices."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return math.inf
    return stats["bytes_limit"] - stats["bytes_in_use"]


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or the smallest limit of this process's control groups."""
    return min([_machine_memory(), *(limit for limit, _ in _limits(root))])


def free_host_memory(root: Path = Path("/")) -> float:
    """Bytes that this process may still allocate, given its control groups."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(available.split()[1]) * 1024
    except (OSError, StopIteration):  # Not Linux.
        free = _machine_memory()
    return min([free, *(limit - used for limit, used in _limits(root))])


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit and the use, in bytes, of each of this process's control groups with a limit."""
    for folder, limit, used in _control_groups(root):
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found = int((folder / limit).read_text()), int(stat[used])
        except (OSError, ValueError, KeyError):  # Absent, or no limit.
            continue
        yield found


def _control_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folders of this process's control groups, with the names of their limit and use."""
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
        # Parents may have limits, too. In a container the path may be that outside of it.
        for each in (folder, *folder.parents):
            yield each, *names
            if each == top:
                break
