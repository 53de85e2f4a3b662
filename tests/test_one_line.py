import os
import subprocess
import sys
from pathlib import Path

import pytest

from agenet.errors import UserError, one_line, one_line_errors, say
from tests.conftest import ROOT

HOSTILE = "a\x1b[2J\x1b]0;title\x07\nb\rc\u2028d\u202egpj.exe\u2066\x9b\udcff"


def run_shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    agenet = f"{sys.executable} -m agenet.cli"
    return subprocess.run(
        ["sh", "-c", command.replace("agenet", agenet, 1)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )


def test_names_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clean = "a?[2J?]0;title??b?c?d?gpj.exe???"
    assert one_line(HOSTILE) == clean
    for kept in ("家族 1.jpg", "\u202fPM.png", "👩\u200d👧.png", "نا\u200cمه"):
        assert one_line(kept) == kept
    say(HOSTILE, Path(HOSTILE))
    assert capsys.readouterr().err == f"{clean}\n" * 2
    for error in (UserError(HOSTILE), PermissionError(13, "denied", HOSTILE)):
        with pytest.raises(SystemExit) as end, one_line_errors():
            raise error
        assert clean in str(end.value.code)


@pytest.mark.parametrize(
    "command",
    ["predict {}", "predict --model={0} {0}", "webcam {}", "webcam --json {}/x --no-window"],
)
def test_commands_show_hostile_names_in_one_line(command: str) -> None:
    name = "/gone/\x1b[2Ja\n\u202eb"
    done = run_shell(f"agenet {command.format(chr(39) + name + chr(39))}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr and "\u202e" not in done.stderr


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no home folder: set HOME"), one_line_errors():
        Path("~nobody-of-this-name/photo.jpg").expanduser()
    with pytest.raises(RuntimeError, match="another"), one_line_errors():
        raise RuntimeError("another")


def test_closed_streams() -> None:
    message = "error: /gone: no such file or folder\n"
    for closed in ("<&-", ">&-", "<&- >&-"):
        assert run_shell(f"agenet predict /gone {closed}").stderr == message
    assert run_shell("agenet predict /gone 2>&-").returncode == 1
    assert run_shell("agenet --help >&-").returncode == 0


def test_full_stdout_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = run_shell("agenet --help > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device") and done.stderr.count("\n") == 1


def test_what_c_prints_is_hidden() -> None:
    code = (
        "import os, sys; from agenet.errors import native_messages_hidden\n"
        "with native_messages_hidden():\n"
        "    os.write(2, b'from C')\n"
        "    print('shown', file=sys.stderr)\n"
        "os.write(2, b'again')"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"shown\nagain"
