import os
from pathlib import Path

import pytest

from agenet.errors import UserError
from agenet.faces.output import OutputFile


def test_older_file_stays_until_something_is_published(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    path.write_bytes(b"old")
    output = OutputFile(path, overwrite=True)
    with output.temporary.open("wb", buffering=0) as file:  # As FFmpeg does.
        file.write(b"new")
        assert path.read_bytes() == b"old"
        output.publish()
        assert path.read_bytes() == b"new" or os.name == "nt"
        file.write(b"er")
    output.close()
    assert path.read_bytes() == b"newer" and list(tmp_path.iterdir()) == [path]


def test_what_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    path.write_bytes(b"old")
    output = OutputFile(path, overwrite=True)
    output.temporary.write_bytes(b"new")
    output.close(keep=False)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_file_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    output = OutputFile(path, overwrite=False)
    output.temporary.write_bytes(b"ours")
    path.write_bytes(b"theirs")
    with pytest.raises(UserError, match=r"a.avi exists: name another file"):
        output.publish()
    output.close(keep=False)
    assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]


def test_two_programs_that_replace_the_same_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    outputs = [OutputFile(path, overwrite=True) for _ in range(2)]
    for content, output in zip((b"first", b"second"), outputs, strict=True):
        output.temporary.write_bytes(content)
        output.publish()
    with pytest.raises(UserError, match="replaced by another program: its content is in") as lost:
        outputs[0].close()
    outputs[1].close()
    assert path.read_bytes() == b"second"
    assert Path(str(lost.value).split(" is in ")[1]).read_bytes() == b"first"


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    path, secret = tmp_path / "a.avi", tmp_path / "secret"
    secret.write_bytes(b"kept")
    path.symlink_to(secret)
    output = OutputFile(path, overwrite=True)
    output.temporary.write_bytes(b"new")
    output.close()
    assert secret.read_bytes() == b"kept" and not path.is_symlink()
    assert path.stat().st_mode & 0o777 == secret.stat().st_mode & 0o777  # As the umask says.
