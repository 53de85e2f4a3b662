import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import run_program

SCRIPT = "scripts/benchmarks/server.py"


@pytest.mark.slow
def test_table_of_a_tiny_setting(tmp_path: Path) -> None:
    if not shutil.which("hey"):
        pytest.skip("no hey, the load generator")
    file = tmp_path / "figures.json"
    options = ("--clients=1,2", "--rounds=1", "--seconds=0.5", f"--json={file}")
    output = run_program(SCRIPT, *options)
    found = json.loads(file.read_text())
    for clients in ("1", "2"):
        figures = found["clients"][clients]["agenet"]
        assert figures["answers"] > 0 and 0 < figures["p50"] <= figures["p99"]
        assert re.search(rf"^\| {clients} \| \d", output, re.M)
    assert min(found["bytes"]["agenet"]) > 50e6
    assert found["library_1"] > 0


@pytest.mark.parametrize(
    "option", ["--clients=0", "--clients=a", "--rounds=0", "--image=/gone.jpg"]
)
def test_mistakes(option: str) -> None:
    if not shutil.which("hey"):
        pytest.skip("no hey, the load generator")
    output = run_program(SCRIPT, option, fails=True)
    assert output.startswith("error: --") and output.count("\n") == 1
