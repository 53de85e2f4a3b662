import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agenet.cli.app import run_command
from agenet.data.records import open_records
from data_prep.exclusive import exclusively, needs_repair, repair, replace
from tests.conftest import ROOT
from tests.data_prep.test_adience import write_release

PREPARE = [sys.executable, "scripts/prepare.py", "adience"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PREPARE, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("it did not happen within a minute")


def test_killed_overwrite_is_repaired(tmp_path: Path) -> None:
    data_dir, folder = tmp_path / "data", tmp_path / "data/adience/faces"
    write_release(tmp_path, size=16)
    arguments = [f"--manual_dir={tmp_path}", f"--data_dir={data_dir}"]
    run_command(["prepare", "adience", *arguments])
    before = open_records("adience/faces", str(data_dir)).checksum()
    process = start(*arguments, "--overwrite")
    wait_for(lambda: [*folder.glob("incomplete.*")], process)
    process.kill()
    process.communicate()
    assert [*folder.glob("incomplete.*")] and needs_repair(folder)
    # The good one is found, before and after the repair.
    assert open_records("adience/faces", str(data_dir)).checksum() == before
    run_command(["prepare", "adience", *arguments])
    assert [path.name for path in folder.iterdir()] == ["1.1.0"]
    assert open_records("adience/faces", str(data_dir)).checksum() == before


def test_a_second_preparation_waits(tmp_path: Path) -> None:
    write_release(tmp_path, size=16)
    folder = tmp_path / "data/adience/faces"
    with exclusively(folder):
        (folder / "incomplete.of_the_first").mkdir()
        process = start(f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}")
        assert process.stdout
        assert "waiting until it ends" in process.stdout.readline()
        time.sleep(1.5)
        assert process.poll() is None and (folder / "incomplete.of_the_first").exists()
    assert "adience/faces/1.1.0 prepared" in process.communicate()[0]
    assert [path.name for path in folder.iterdir()] == ["1.1.0"]


def version(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(content)
    return folder


def test_repair(tmp_path: Path) -> None:
    version(tmp_path / "incomplete.ABCDEF_1.0.0", "unfinished")
    version(tmp_path / "replaced.1.0.0", "old")
    version(tmp_path / "1.1.0", "new")
    version(tmp_path / "replaced.1.1.0", "old")
    (tmp_path / "1.2.0").mkdir()  # not prepared, so that nothing proves that the old one may go
    version(tmp_path / "replaced.1.2.0", "old")
    (tmp_path / "notes").touch()
    repair(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1.0.0", "1.1.0", "1.2.0", "notes", "replaced.1.2.0"]
    assert (tmp_path / "1.0.0/dataset_info.json").read_text() == "old"
    assert (tmp_path / "1.1.0/dataset_info.json").read_text() == "new"


def test_replace(tmp_path: Path) -> None:
    for content in ("first", "second"):
        replace(tmp_path / "1.0.0", version(tmp_path / "new", content))
        assert (tmp_path / "1.0.0/dataset_info.json").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]


def test_failure_leaves_no_folders(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with exclusively(folder):
            raise ZeroDivisionError

    (tmp_path / "data").mkdir()
    for folder in (tmp_path / "data/a/b", tmp_path / "new/a/b"):
        with pytest.raises(ZeroDivisionError):
            fail(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert not [*(tmp_path / "data").iterdir()]
