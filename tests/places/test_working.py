"""Work directories at addresses: a run that resumes elsewhere ends as one that never stopped."""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agenet.data.records import Records
from agenet.errors import UserError
from agenet.places import copies, lease
from agenet.places.stores import parse_address
from agenet.places.working import look_at_workdir, open_data_dir, open_workdir
from agenet.runs import launch
from tests.places.stores import use_memory
from tests.tiny import on_batch, result, tiny_config, use_records

AT = "memory://bucket/runs/a"


class Machine:
    """Has the cache of a machine of its own."""

    def __init__(self, folder: Path, patch: Callable[..., None]) -> None:
        patch(copies, "cache_dir", lambda: folder)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    Machine(tmp_path / "first", monkeypatch.setattr)
    # Nobody is waited for.
    monkeypatch.setattr(lease, "DEAD", 0.0)
    monkeypatch.setattr(lease, "_SETTLE", 0.0)
    return use_memory(monkeypatch)


@pytest.fixture
def run(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    use_records(make_records(), monkeypatch.setattr)

    def run(name: str | Path, **fields: Any) -> Path:
        with open_workdir(name) as place:
            launch.launch(tiny_config(**fields), place.folder, "command", after_save=place.send)
        return place.folder

    return run


def test_a_run_resumes_elsewhere_from_each_time_that_it_was_sent(
    store: Any, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = result(run(tmp_path / "local"))
    seen: list[dict[str, Any]] = []
    put = type(store).put_file

    def noted(self: Any, path: str, name: str) -> None:
        put(self, path, name)
        seen.append({key: file.getvalue() for key, file in self.store.items()})

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", noted)
        assert result(run(AT)) == uninterrupted
    assert not store.exists(f"/bucket/runs/a/{lease.NAME}")
    assert len(seen) > 20
    # As a kill leaves it after this or that object.
    for number in range(0, len(seen), 5):
        store.store.clear()
        for name, content in seen[number].items():
            store.pipe_file(name, content)
        Machine(tmp_path / f"machine_{number}", monkeypatch.setattr)
        assert result(run(AT)) == uninterrupted, number
    # And what is there then is all of it.
    Machine(tmp_path / "reader", monkeypatch.setattr)
    assert result(look_at_workdir(AT)) == uninterrupted


def test_a_run_that_is_told_to_stop(
    store: Any,
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uninterrupted = result(run(tmp_path / "local"))
    with monkeypatch.context() as patch:
        on_batch(4, lambda: signal.raise_signal(signal.SIGTERM), patch.setattr)
        run(AT)
    Machine(tmp_path / "second", monkeypatch.setattr)
    capsys.readouterr()
    assert result(run(AT)) == uninterrupted
    assert "resuming from step 4 of 20" in capsys.readouterr().err


def test_a_connection_that_is_lost_loses_nothing(
    store: Any,
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uninterrupted = result(run(tmp_path / "local"))

    def fail(self: Any, path: str, name: str) -> None:
        raise OSError(5, "no connection")

    with monkeypatch.context() as patch:
        on_batch(9, lambda: patch.setattr(type(store), "put_file", fail), patch.setattr)
        with pytest.raises(UserError, match=f"{AT}: no answer to use: .*no connection"):
            run(AT)
        kept = result(copies.Copy(parse_address(AT), "work").folder)
    sent = result(look_at_workdir(AT))
    assert kept["latest"] == 10 > sent["latest"]
    capsys.readouterr()
    assert result(run(AT)) == uninterrupted
    assert "resuming from step 10 of 20" in capsys.readouterr().err


def test_one_process_at_a_time(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "DEAD", 60.0)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with open_workdir(AT):
        with (
            pytest.raises(UserError, match=f"^{AT} is in use by another process: wait until"),
            open_workdir(AT),
        ):
            pass
        Machine(tmp_path / "second", monkeypatch.setattr)
        with (
            pytest.raises(UserError, match=f"{AT} is in use: another process uses it"),
            open_workdir(AT),
        ):
            pass


def test_one_that_another_has_taken_over_sends_nothing(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(open_workdir(AT))
        (first.folder / "mine").write_text("1")
        Machine(tmp_path / "second", monkeypatch.setattr)
        with open_workdir(AT) as second:
            (second.folder / "other").write_text("2")
        with pytest.raises(UserError, match=f"{AT} is in use: another process has taken it over"):
            stack.close()
    assert store.exists("/bucket/runs/a/other") and not store.exists("/bucket/runs/a/mine")


def test_what_a_failed_run_leaves_is_sent(store: Any) -> None:
    for error, text in ((UserError("the loss is not finite"), "why"), (KeyboardInterrupt(), "")):
        with contextlib.suppress(UserError, KeyboardInterrupt), open_workdir(AT) as place:
            (place.folder / "train.log").write_text(text)
            raise error
    assert store.cat_file("/bucket/runs/a/train.log") == b"why"


def test_nothing_is_sent_if_not_all_could_be_fetched(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_workdir(AT) as place:
        (place.folder / "a").write_text("old")
        (place.folder / "b").write_text("old")
    Machine(tmp_path / "second", monkeypatch.setattr)
    with open_workdir(AT) as place:
        (place.folder / "a").write_text("newer")
        (place.folder / "b").write_text("newer")
    Machine(tmp_path / "first", monkeypatch.setattr)

    def fail(self: Any, name: str, path: str) -> None:
        raise OSError(5, "no connection")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", fail)
        with pytest.raises(UserError, match="no connection"), open_workdir(AT):
            pass
    assert store.cat_file("/bucket/runs/a/a") == b"newer"
    with open_workdir(AT) as place:
        assert (place.folder / "b").read_text() == "newer"


def test_a_run_that_must_exist(store: Any) -> None:
    with (
        pytest.raises(UserError, match=f"{AT}: there is nothing there"),
        open_workdir(AT, exists=True),
    ):
        pass
    assert not store.find("/bucket")
    assert not list(look_at_workdir(AT).iterdir())


def test_folders_of_this_machine(tmp_path: Path) -> None:
    with open_workdir(tmp_path) as place:
        place.send()
    assert place.folder == tmp_path == look_at_workdir(tmp_path)
    with open_data_dir(tmp_path, "a/b") as root:
        assert root == tmp_path


def test_a_data_set_that_fails_is_not_sent(store: Any) -> None:
    with contextlib.suppress(UserError), open_data_dir("memory://bucket/data", "a/b") as root:
        (root / "a/b/shard").write_text("1")
        raise UserError("the disk is full")
    assert not store.find("/bucket")
    with open_data_dir("memory://bucket/data", "a/b") as root:
        assert not (root / "a/b/shard").exists()
        (root / "a/b/1.0.0").mkdir()
        (root / "a/b/1.0.0/dataset_info.json").write_text("{}")
    assert store.find("/bucket") == ["/bucket/data/a/b/1.0.0/dataset_info.json"]
