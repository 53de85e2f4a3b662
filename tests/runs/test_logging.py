import errno
import json
import logging
import re
from pathlib import Path

import pytest

from agenet.errors import UserError
from agenet.evaluation.history import digest_row, read_history, read_rows
from agenet.files import exclusive_lock
from agenet.runs.logging import create_writer, log_to
from agenet.training.run_record import Progress


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = create_writer(tmp_path, Progress())
    writer.write_scalars(4, {"train/loss": 0.5})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 4, "train/loss": 0.5}]
    writer.close()


def test_continuing_drops_what_came_after_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 4}, {"step": 6}, {"step": 6, "validation/loss": 1.0}]
    # The last row was cut off by a kill.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "tr')
    assert read_rows(path) == rows
    digest = digest_row(digest_row("", rows[0]), rows[1])
    progress = Progress(rows=2, rows_digest=digest)
    writer = create_writer(tmp_path, progress)
    writer.write_scalars(6, {"validation/loss": 2.0})
    writer.close()
    assert read_rows(path) == [*rows[:2], {"step": 6, "validation/loss": 2.0}]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert progress == Progress(rows=2, rows_digest=digest)
    assert "some have changed" not in capsys.readouterr().err


@pytest.mark.parametrize("lines", [b'{"step": 4}\n', b'{"step": 4}\n{"step": 7}\n', b""])
def test_rows_that_are_lost_or_changed_are_spoken_of(
    tmp_path: Path, capsys: pytest.CaptureFixture, lines: bytes
) -> None:
    digest = digest_row(digest_row("", {"step": 4}), {"step": 6})
    progress = Progress(rows=2, rows_digest=digest)
    (tmp_path / "metrics.jsonl").write_bytes(lines)
    with log_to():
        create_writer(tmp_path, progress).close()
    assert "metrics.jsonl: of the 2 rows that were written, some" in capsys.readouterr().err
    assert progress.rows == lines.count(b"\n")
    # What is left is what later sessions compare with.
    with log_to():
        create_writer(tmp_path, progress).close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "line", [b'{"step": \xff}', b"[" * 100_000, b"[]", b'{"step": [[1]]}', b"x", b""]
)
def test_damaged_rows_are_one_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "epoch": 0.5}\n' + line + b'\n{"step": 3, "epoch": 1.5}\n')
    with pytest.raises(UserError, match=r"line 2 is not a row of numbers: remove that line, of "):
        read_history(path)


def test_history_is_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = '{"step": 1, "epoch": 0.5, "a": NaN, "b": Infinity, "c": "x", "d": true, "e": null}\n'
    path.write_text(row + '{"step": 2}\n')
    assert read_history(path) == [{"step": 1, "epoch": 0.5}]
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="it is not a file, or too large"):
        read_history(path)


def test_no_rows_yet(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_one_process_alone_in_a_folder(tmp_path: Path) -> None:
    in_use = pytest.raises(UserError, match=r"is in use by another process")
    with exclusive_lock(tmp_path), in_use, exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):  # which a lock that is left does not hinder
        pass


def test_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("agenet.files.FileLock.acquire", refuse)
    with exclusive_lock(tmp_path):
        pass


def test_log_goes_to_terminal_and_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "train.log"
    path.write_text("before\n")
    log = logging.getLogger("agenet.somewhere")
    with log_to(path):
        log.info("step %d", 3)
    log.info("after")
    assert path.read_text().startswith("before\n")
    for text in (path.read_text(), capsys.readouterr().err):
        assert text.endswith(" step 3\n")


def test_the_end_of_a_run_is_logged_to_the_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "train.log"
    with pytest.raises(UserError), log_to(path):
        raise UserError("a mistake")
    assert path.read_text().endswith(" UserError: a mistake\n")
    with pytest.raises(ZeroDivisionError), log_to(path):
        print(1 / 0)
    assert "Traceback" in path.read_text()
    assert capsys.readouterr().err == ""


def test_other_processes_only_warn(capsys: pytest.CaptureFixture) -> None:
    log = logging.getLogger("agenet.somewhere")
    with log_to(process=2):
        log.info("step %d", 3)
        log.warning("a damaged file")
    assert re.fullmatch(r"\d\d:\d\d:\d\d process 2: a damaged file\n", capsys.readouterr().err)
