"""Fixtures shared by the tests of runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agenet.data.records import Records
from agenet.runs import launch
from tests.tiny import tiny_config, use_records

Run = Callable[..., Path]


@pytest.fixture
def run(
    make_records: Callable[..., Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Launches a tiny run in a new work directory, which it returns."""
    use_records(make_records(), monkeypatch.setattr)

    def run(name: str = "run", **fields: Any) -> Path:
        launch.launch(tiny_config(**fields), tmp_path / name, "command")
        return tmp_path / name

    return run
