"""Describes the machine that a run uses, for reports."""

import platform
from pathlib import Path
from typing import Any

import flax
import jax

from agenet.distributed.cores import available_cores


def describe_machine() -> dict[str, Any]:
    """Devices, processor and versions."""
    devices, processes = jax.devices(), jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}{of}",
        "processor": f"{processor_name()}, {available_cores()} cores",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
    }


def processor_name() -> str:
    """The name of the CPU, or of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
