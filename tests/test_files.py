import errno
import os
from pathlib import Path

import pytest

from agenet import files
from agenet.errors import UserError
from agenet.files import LineFile, check_output, unfinished_file, write_file


def fail(_: object) -> None:
    raise ZeroDivisionError


def test_temporary_files_follow_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious, path = tmp_path / "precious", tmp_path / "out"
    precious.write_text("kept")
    # Even a name that was guessed.
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / ".out.guessed.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_file(path, b"new")
    assert precious.read_text() == "kept" and not path.exists()


def test_file_is_replaced_or_the_write_fails(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # the longest name that file systems take
    for content in (b"old", b"new"):
        write_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=str(tmp_path / "gone" / "out")):
        write_file(tmp_path / "gone" / "out", b"")
    with (
        pytest.raises(FileNotFoundError, match=r"out\.avi'$"),
        unfinished_file(tmp_path / "out.avi"),
    ):
        pass  # A library that wrote nothing and said nothing.
    with pytest.raises(ZeroDivisionError), unfinished_file(path) as unfinished:
        fail(unfinished.write_bytes(b"half"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    with unfinished_file(path) as unfinished:
        assert (unfinished.name, unfinished.parent.stat().st_mode & 0o77) == (path.name, 0)
        unfinished.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_lines_appear_at_once_and_replace_nothing_before(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with LineFile(path, overwrite=False):
        pass
    assert not path.exists()
    with LineFile(path, overwrite=False) as file:
        for count in (1, 2):
            file.write("line\n")
            assert path.read_text() == count * "line\n"
    with pytest.raises(UserError, match="exists: name another file"):
        LineFile(path, overwrite=False)
    with LineFile(path, overwrite=True) as file:
        assert path.read_text() == "line\nline\n"
        file.write("new\n")
    assert path.read_text() == "new\n"
    precious = tmp_path / "precious"
    precious.write_text("kept")
    path.unlink()
    path.symlink_to(precious)
    with LineFile(path, overwrite=True) as file:
        file.write("new\n")
    assert precious.read_text() == "kept" and path.read_text() == "new\n"


def test_two_writers_of_one_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    first, second = LineFile(path, overwrite=False), LineFile(path, overwrite=False)
    first.write("first\n")
    with pytest.raises(UserError, match=r"lines\.csv exists"):
        second.write("second\n")
    third = LineFile(path, overwrite=True)
    third.write("third\n")
    first.write("more\n")
    third.close()
    with pytest.raises(UserError, match="replaced by another program: its content is in ") as lost:
        first.close()
    assert path.read_text() == "third\n"
    assert Path(str(lost.value).split(" is in ")[1]).read_text() == "first\nmore\n"


def test_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(files.FileIO):
        def write(self, data: bytes) -> int:
            if self.tell() >= 7:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:4])

    monkeypatch.setattr(files, "FileIO", Full)
    path = tmp_path / "lines"
    with LineFile(path, overwrite=False) as file:
        file.write("whole\n")
        with pytest.raises(OSError, match=r"No space left .*lines"):
            file.write("whole\n")
    assert path.read_text() == "whole\n"


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "gone" / "file", "no such folder"),
        (Path(os.devnull), "is not a file"),
    ):
        with pytest.raises(UserError, match=message):
            check_output(path, overwrite=True)
