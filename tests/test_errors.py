"""Standard streams that are closed, as some services do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, sys
from pathlib import Path
from agenet.errors import UserError, one_line_errors

with one_line_errors():
    null = os.stat(os.devnull).st_rdev
    opened = [number for number in range(3) if os.fstat(number).st_rdev == null]
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(f"{opened} {sys.stderr.isatty()} {sys.stdin.read()!r}")
    raise UserError("a mistake")
"""


@pytest.mark.parametrize("closed", [[2], [0, 1, 2], [1]])
def test_closed_streams(tmp_path: Path, closed: list[int]) -> None:
    close = " ".join(f"{number}>&-" for number in closed)  # by a shell, as users do
    found = subprocess.run(
        ["sh", "-c", f'exec "$@" {close}', "sh", sys.executable, "-c", PROGRAM, tmp_path / "found"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout == ("" if 1 in closed else "out\n")
    assert found.stderr == ("" if 2 in closed else "err\nerror: a mistake\n")
    assert (tmp_path / "found").read_text() == f"{sorted({0, *closed})} False ''"
