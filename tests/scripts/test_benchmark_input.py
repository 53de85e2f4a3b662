import re
from pathlib import Path

import pytest

from tests.conftest import run_program

CONFIG = """
from configs import default

def get_config():
    config = default.get_config()
    config.batch_size, config.input.size = 4, 227
    return config
"""


@pytest.mark.slow
def test_table_of_drawn_faces(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    output = run_program("scripts/benchmarks/input.py", f"--config={config}")
    assert "drawn_faces/faces: 1,600 images" in output
    rates = re.findall(r"^\| (.+?) \| ([\d,]+) \| (.*) \| (.*) \|$", output, re.M)
    assert len(rates) == 10 and all(int(rate.replace(",", "")) > 0 for _, rate, *_ in rates)
    peaks = {stage: float(peak[:-3]) for stage, _, _, peak in rates if peak}
    assert all(0.05 < peak < 8 for peak in peaks.values()) and len(peaks) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manual_dir=x"], "--manual_dir needs --data_set"),
        (["--data_set=adience"], "must be DATA_SET/CONFIG"),
        (["--data_set=adience/faces"], "needs --manual_dir"),
        pytest.param(
            ["--data_set=adience/faces", "--manual_dir=nowhere"],
            "nowhere: no such folder",
            marks=pytest.mark.slow,  # known only once TFDS is imported
        ),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str) -> None:
    output = run_program("scripts/benchmarks/input.py", *arguments, fails=True)
    assert output.startswith("error: ") and message in output and output.count("\n") == 1
