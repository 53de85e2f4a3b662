"""Records of runs that are JSON but not as expected end every command in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from agenet.data.records import Records
from agenet.errors import UserError
from agenet.runs import launch, reporting
from agenet.runs.reporting import report_again
from agenet.training.finished_run import read_run_weights
from tests.tiny import tiny_config, use_records

# Fields of a record, by dots, and the values that take their place; None: the field is missing.
CHANGES: list[dict[str, Any]] = [
    {"config.model.name": "levi_hasner"},
    {"config.model.name": "levi_hassner"},
    {"config.model.flavour": "of another"},
    {"config.model.extra_layers": True},
    {"config.input.std": [1, 1, 0]},
    {"config.input.mean": [1, 2]},
    {"config.input.size": 8},
    {"config.input.crop_size": 10**9},
    {"config.heads.age": "years\nerror: b"},
    {"config.heads.age": None},
    {"config.heads": 3},
    {"config.batch_size": "\x1b[2J"},
    {"config.batch_size": None, "config.optimizer": [[]]},
    {"config.schedule.learning_rate": float("nan")},
    {"config": {}},
    {"classes": {}},
    {"trained_on": {"noise": "no base64"}},
    {"progress.sums": 3},
    {"total_steps": 10**400},
    {"splits.train": "x"},
    {"value": None},
]


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records()


@pytest.fixture(scope="module")
def finished(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use_records(records, patch.setattr)
        launch.launch(tiny_config(), workdir, "command")
    return workdir


def change_records(workdir: Path, fields: dict[str, Any]) -> None:
    """Changes the records of all checkpoints, which then are as an earlier version left them."""
    for path in workdir.glob("checkpoints/*/*/run/metadata"):
        record = json.loads(path.read_text())
        del record["digest"], record["digests"]
        flat = flatten_dict(record, sep=".", keep_empty_nodes=True)
        for name, value in fields.items():
            kept = {k: v for k, v in flat.items() if k != name and not k.startswith(f"{name}.")}
            flat = kept if value is None else kept | {name: value}
        path.write_text(json.dumps(unflatten_dict(flat, sep=".")))


@pytest.mark.parametrize("fields", CHANGES, ids=lambda fields: ",".join(fields))
def test_in_one_line(
    finished: Path,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    use_records(records, monkeypatch.setattr)
    monkeypatch.setattr(reporting, "report_run", lambda *args, **options: None)
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    change_records(workdir, fields)
    lines = []
    for use in (
        lambda: read_run_weights(workdir),
        lambda: report_again(workdir, None),
        lambda: launch.launch(tiny_config(), workdir, "command"),
        lambda: launch.launch(tiny_config(init=str(workdir)), tmp_path / "next", "command"),
    ):
        try:
            use()
        except UserError as error:
            lines.append(str(error))
    assert lines and all(line.isprintable() for line in lines), lines


def test_unchanged_records_of_an_earlier_version(
    finished: Path, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_records(records, monkeypatch.setattr)
    shutil.copytree(finished, tmp_path / "run")
    change_records(tmp_path / "run", {})
    assert read_run_weights(tmp_path / "run").spec.model == "tiny"
    launch.launch(tiny_config(), tmp_path / "run", "command")
