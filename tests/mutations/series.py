"""`agenet sweep` and `agenet folds`, killed and run again; their runs are tiny."""

import json
from pathlib import Path
from typing import Any

from tests.data_prep import test_adience
from tests.mutations.kills import again, kind

CONFIG = """\
from configs import default

def get_config():
    config = default.get_config()
    config.model.name = "tiny"
    config.tasks = "gender"
    config.dataset.name = "adience/faces"
    config.dataset.data_dir = {data!r}
    config.dataset.validation_fraction = 0.25
    config.input.size = 20
    config.batch_size = 8
    config.duration = "6 steps"
    config.evaluate_every = "3 steps"
    config.checkpoint_every = "2 steps"
    config.log_every = "2 steps"
    config.trackers = ()
    return config
"""
SWEEP = """\
def get_sweep():
    variants = [dict(name=str(seed), fields=dict(seed=seed)) for seed in (1, 2)]
    return dict(config={config!r}, fields={{}}, source="a test", tables=dict(Seeds=variants))
"""


def write(folder: Path) -> None:
    """Data that are prepared already, a config and a sweep file."""
    (folder / "release").mkdir()
    test_adience.write_release(folder / "release", size=20, per_fold=12)
    options = [f"--manual_dir={folder / 'release'}", f"--data_dir={folder / 'data'}"]
    again(["prepare", "adience", *options], folder)


def arguments(command: str, folder: Path, output: Path) -> list[str]:
    # Paths differ from case to case, so these files are not part of the input.
    config, sweep = output / "config.py", output / "sweep.py"
    if not sweep.exists():
        config.write_text(CONFIG.format(data=str(folder / "data")))
        sweep.write_text(SWEEP.format(config=str(config)))
    what = f"--sweep={sweep}" if command == "sweep" else f"--config={config}"
    return [command, what, f"--workdir={output / command}"]


def sweep_arguments(folder: Path, output: Path) -> list[str]:
    return arguments("sweep", folder, output)


def folds_arguments(folder: Path, output: Path) -> list[str]:
    return arguments("folds", folder, output)


def sweep_result(output: Path) -> Any:
    found = json.loads((output / "sweep/sweep.json").read_text())
    assert found["complete"]
    return {name: [run["validation"], run["test"]] for name, run in found["runs"].items()}


def folds_result(output: Path) -> Any:
    found = json.loads((output / "folds/folds.json").read_text())
    assert found["complete"]
    return found["summary"]


KINDS = {
    "series.sweep": kind(
        "series.sweep", write, sweep_arguments, sweep_result, in_place=True, sample=0
    ),
    "series.folds": kind(
        "series.folds", write, folds_arguments, folds_result, in_place=True, sample=0
    ),
}
