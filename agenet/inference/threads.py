"""Sets the number of CPU threads of the libraries that run networks and process images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from agenet.distributed.cores import available_cores
from agenet.errors import UserError

_XLA_THREADS = "NPROC"  # read by XLA when JAX starts, see xla/pjrt/utils.cc


def choose_threads(threads: int | None) -> int | None:
    """The number of threads to use; None leaves each library its own default.

    The libraries count the cores of the machine. A process that may use fewer, such as one in a
    container with a limit, would start too many threads, which then wait for each other.

    Args:
        threads: as the user wants; None for as many as there are cores for this process.

    Raises:
        UserError: it is not a positive integer.
    """
    if threads is None:
        cores = available_cores()
        return cores if cores < (os.cpu_count() or 1) else None
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"threads: give a whole number from 1, not {str(threads)[:100]}")
    return threads


def limit_opencv(threads: int | None) -> None:
    """Sets the number of OpenCV's threads, for the whole process."""
    if threads is not None and threads != cv2.getNumThreads():
        cv2.setNumThreads(threads)


@contextmanager
def xla_threads(threads: int | None) -> Iterator[None]:
    """JAX on CPUs has so many threads if it starts in this block; later it keeps its number."""
    before = os.environ.get(_XLA_THREADS)
    if threads is not None:
        os.environ[_XLA_THREADS] = str(threads)
    try:
        yield
    finally:
        if threads is not None:
            os.environ.pop(_XLA_THREADS)
            if before is not None:
                os.environ[_XLA_THREADS] = before
