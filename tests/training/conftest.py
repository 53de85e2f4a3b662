"""Fixtures for the tests of checkpoints."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenet.training.checkpoints import Checkpoints


@pytest.fixture
def quiet_remains() -> Iterator[None]:
    """Ends with the test what Orbax leaves behind after a failure."""
    hook = sys.unraisablehook
    yield
    gc.collect()
    sys.unraisablehook = hook


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(tmp_path)
    yield checkpoints
    checkpoints.close()
