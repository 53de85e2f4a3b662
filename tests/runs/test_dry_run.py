"""A dry run checks what a training would meet, and leaves nothing behind."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agenet.data.records import Records
from agenet.errors import UserError
from agenet.runs import launch, memory
from agenet.runs.dry_run import dry_run
from tests.tiny import on_batch, tiny_config, use_records

Dry = Callable[..., str]


@pytest.fixture
def dry(
    make_records: Callable[..., Records],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Dry:
    """What a dry run of a tiny run tells."""
    use_records(make_records(), monkeypatch.setattr)

    def dry(workdir: Path = tmp_path / "new", **fields: Any) -> str:
        capsys.readouterr()
        dry_run(tiny_config(**fields), workdir, "command")
        return capsys.readouterr().err

    return dry


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tells_and_leaves_nothing(dry: Dry, tmp_path: Path) -> None:
    output = dry()
    for text in ("command\n", "mesh: data 1", "memory of each device", "it fits; nothing was"):
        assert text in output
    assert not list(tmp_path.iterdir())


def test_of_a_run_that_is_there(dry: Dry, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_batch(4, lambda: signal.raise_signal(signal.SIGTERM), patch.setattr)
        launch.launch(tiny_config(), workdir, "command")
    before = files(workdir)
    assert "would resume from step 4 of 20" in dry(workdir)
    with pytest.raises(UserError, match="is of another run"):
        dry(workdir, seed=3)
    with pytest.raises(UserError, match="holds no evaluated state to start from"):
        dry(init=str(workdir))
    assert files(workdir) == before


def test_initial_weights_are_read(dry: Dry, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch.launch(tiny_config(), run, "command")
    assert "it fits" in dry(init=str(run))
    # The heads are there for both tasks, which only reading shows.
    with pytest.raises(UserError, match="has the head softmax for gender"):
        dry(init=str(run), new_parts="", heads__gender="sigmoid")


def test_too_little_memory(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 400_000)
    with pytest.raises(UserError, match=r"a step on 16 images takes.*--config\.batch_size=\d+,"):
        dry()


def test_workdir_that_cannot_be_written(dry: Dry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match=r"cannot be written to: name another one"):
            dry(workdir)
