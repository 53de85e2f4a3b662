"""A config has no dead knobs: runs read every field of configs/default.py."""

import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from agenet.data.records import Records
from agenet.main import config_fields
from agenet.runs import launch
from configs import default
from tests.conftest import ROOT
from tests.tiny import tiny_config, use_records


@contextmanager
def recorded_reads(config: ConfigDict) -> Iterator[set[str]]:
    """Collects the dotted names of the fields that are read one by one.

    What looks at the whole config (to print or save it) does not count; what looks at the whole
    of a part, such as a network's options, reads each of its fields.
    """
    parts = {id(value): name for name, value in config.items() if isinstance(value, ConfigDict)}
    read: set[str] = set()
    whole = False

    def watch(method: str) -> Callable[..., Any]:
        original = getattr(ConfigDict, method)

        def watched(self: ConfigDict, *args: Any, **options: Any) -> Any:
            nonlocal whole
            if method == "__getitem__":
                if not whole and (self is config or id(self) in parts):
                    read.add(".".join(filter(None, (parts.get(id(self)), args[0]))))
                return original(self, *args, **options)
            if id(self) in parts and not whole:
                read.update(f"{parts[id(self)]}.{name}" for name, _ in config_fields(self))
            outermost, whole = not whole, True
            try:
                return original(self, *args, **options)
            finally:
                whole = not outermost

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for method in ("__getitem__", "to_dict", "to_json", "__str__"):
            patch.setattr(ConfigDict, method, watch(method))
        yield read


def test_reads_are_recorded() -> None:
    config = default.get_config()
    with recorded_reads(config) as read:
        config.to_dict(), str(config), config.to_json()
        assert not read
        assert config.seed == config["dataset"].test_fold == 0
    assert read == {"seed", "dataset", "dataset.test_fold"}
    with recorded_reads(config) as read:
        config.model.to_dict()
    assert read >= {f"model.{name}" for name in config.model}


def test_every_field_is_read(
    make_records: Callable[..., Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_if_asked = launch.prepare_if_asked
    use_records(make_records(), monkeypatch.setattr)
    monkeypatch.setattr(launch, "prepare_if_asked", prepare_if_asked)
    monkeypatch.setattr(launch, "find_prepared", lambda *args: tmp_path)
    runs: tuple[dict[str, Any], ...] = (
        {"optimizer__name": "adam", "dataset__protocol": "random"},
        {"optimizer__name": "sgd", "schedule__name": "piecewise", "dataset__prepare": True},
        {"init": str(tmp_path / "1"), "freeze": "backbone"},
    )
    read: set[str] = set()
    for number, fields in enumerate(runs):
        config = tiny_config(duration="2 steps", schedule__boundaries=("1 steps",), **fields)
        config.schedule.scales = (1.0, 0.1)
        with recorded_reads(config) as found:
            launch.launch(config, tmp_path / str(number), "command")
        read |= found
    known = {name for name, _ in config_fields(default.get_config())}
    assert known - read == set()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_files_state_fields_of_the_default(path: Path) -> None:
    config = runpy.run_path(str(path))["get_config"]()
    known = {name: type(value) for name, value in config_fields(default.get_config())}
    assert {name: type(value) for name, value in config_fields(config)} == known
