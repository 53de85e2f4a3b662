"""The number of cores that a process may use."""

import math
import os
from pathlib import Path


def available_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The number of cores that this process may use, by its affinity and its container's limit.

    Args:
        cgroups: where Linux mounts control groups.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min([cores, *_quotas(cgroups)])


def _quotas(cgroups: Path) -> list[int]:
    """The limits of Linux control groups on a process's share of processor time, in cores."""
    quotas = []
    # Version 2 has one file with both numbers, version 1 two files with one number each.
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period, *_ = " ".join((cgroups / name).read_text() for name in names).split()
            share = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # There is no such file, or no limit: "max".
        if share > 0:  # -1 is no limit, too.
            quotas.append(math.ceil(share))
    return quotas
