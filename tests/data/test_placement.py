import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from agenet.data import placement
from agenet.data.placement import (
    choose_placement,
    free_device_memory,
    free_host_memory,
    host_memory,
    load_images,
    min_free_memory,
)
from agenet.data.records import Records
from agenet.data.resident import ResidentImages
from agenet.data.stream import StreamedImages
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError

GB = 10**9


def choose(asked: str, *, device: float = math.inf, host: float = 100 * GB) -> str:
    """The placement of 10 GB with two devices."""
    return choose_placement(asked, 10 * GB, devices=2, free_device=device, free_host=host)[0]


def test_auto_takes_the_first_placement_with_enough_memory() -> None:
    assert choose("auto") == choose("auto", device=10 * GB) == "device"
    assert choose("auto", device=9.9 * GB) == choose("auto", device=0, host=20 * GB) == "host"
    assert choose("auto", host=19.9 * GB) == choose("auto", device=0, host=GB) == "stream"


def test_several_processes_stream_instead_of_host() -> None:
    memory: dict[str, Any] = {"devices": 2, "free_host": 100 * GB, "processes": 2}
    assert choose_placement("auto", 10 * GB, free_device=0, **memory)[0] == "stream"
    assert choose_placement("host", 10 * GB, free_device=0, **memory)[0] == "host"


def test_each_process_decodes_for_its_own_devices() -> None:
    memory: dict[str, Any] = {"devices": 32, "free_device": 60 * GB, "processes": 4}
    for asked in ("device", "auto"):
        assert choose_placement(asked, 103 * GB, free_host=60 * GB, **memory)[0] == "device"
    assert choose_placement("auto", 103 * GB, free_host=50 * GB, **memory)[0] == "stream"
    for asked, takes in (("device", "25.8"), ("host", "103.0")):
        message = rf"take {takes} GB and this machine has 25\.0 GB of memory free for each process"
        with pytest.raises(UserError, match=message):
            choose_placement(asked, 103 * GB, free_host=25 * GB, **memory)


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [[4.0, 50.0, "b"], [2.0, 60.0, "b"]]
    monkeypatch.setattr(placement, "all_gather", lambda own: [own, *others])
    monkeypatch.setattr(placement, "free_host_memory", lambda: 30.0)
    monkeypatch.setattr("socket.gethostname", lambda: "a")
    assert min_free_memory(3.0) == {"free_device": 2.0, "free_host": 25.0}
    monkeypatch.setattr("socket.gethostname", lambda: "b")
    assert min_free_memory(3.0) == {"free_device": 2.0, "free_host": 10.0}


def test_requested_placement_is_used_if_it_fits() -> None:
    assert choose("device", device=5 * GB, host=10 * GB) == "device"
    assert choose("host", device=0, host=10 * GB) == "host"
    assert choose("stream", device=0, host=0) == "stream"


@pytest.mark.parametrize(
    ("asked", "memory", "message"),
    [
        (
            "device",
            {"device": 4.9 * GB},
            "take 5.0 GB for each device, which has 4.9 GB free: use "
            "--config.input.placement=host, or stream",
        ),
        ("device", {"host": 9 * GB}, "--config.input.placement=stream, or smaller ones"),
        ("host", {"host": 9 * GB}, "take 10.0 GB and this machine has 9.0 GB of memory free: use"),
    ],
)
def test_impossible_placements_are_one_line_errors(asked: str, memory: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        choose(asked, **memory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "host", "kind", "line"),
    [
        (
            "auto",
            1e6,
            ResidentImages,
            "on the devices: 0.0 GB for each device",
        ),
        ("host", 1e6, ResidentImages, "on the host, sent batch by batch: as input.placement says"),
        (
            "auto",
            1e3,
            StreamedImages,
            "read and decoded batch by batch: this machine has 0.0 GB of memory",
        ),
    ],
)
def test_the_choice_is_logged(
    make_records: Callable[..., Records],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: str,
    host: float,
    kind: type,
    line: str,
) -> None:
    monkeypatch.setattr(placement, "free_host_memory", lambda: host)
    records = make_records(41)
    with caplog.at_level(logging.INFO, "agenet"):
        images = load_images(records, size=20, mesh=create_mesh(), placement=asked)
    assert isinstance(images, kind)
    assert f"images: 0.00 GB as uint8 {line}" in caplog.text
    rows = np.arange(8)
    (batch,) = images.batches([(rows, None)])
    np.testing.assert_array_equal(batch["row"], rows)


def test_cpu_devices_have_no_limit() -> None:
    assert free_device_memory(jax.devices()[0]) == np.inf


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_free_memory_of_this_machine() -> None:
    assert 1e6 < free_host_memory() < 1e14


@pytest.mark.parametrize(
    ("files", "free", "limit"),
    [
        ({}, 800 * 1024, host_memory()),
        (  # The limit of a parent.
            {
                "proc/self/cgroup": "1:cpu:/\n0::/job/step\n",
                "sys/fs/cgroup/job/memory.max": "5000",
                "sys/fs/cgroup/job/memory.stat": "anon 1000\nfile 3000\n",
                "sys/fs/cgroup/job/step/memory.max": "max",
                "sys/fs/cgroup/job/step/memory.stat": "anon 900\nfile 3000\n",
            },
            4000,
            5000,
        ),
        (  # In a container, the path is that outside of it.
            {
                "proc/self/cgroup": "4:memory:/docker/1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000",
                "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_rss 500\n",
            },
            6500,
            7000,
        ),
    ],
)
def test_control_group_limits(tmp_path: Path, files: dict[str, str], free: int, limit: int) -> None:
    write_files(tmp_path, {"proc/meminfo": "MemFree: 9 kB\nMemAvailable:  800 kB\n"} | files)
    assert free_host_memory(tmp_path) == free
    assert host_memory(tmp_path) == limit


def test_free_memory_without_proc(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) > 1e6
