"""The command line: every mistake is one line, and help does not wait for JAX."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from agenet.errors import UserError
from agenet.files import exclusive_lock
from agenet.runs import launch
from agenet.runs.config import parse_config
from configs import default
from tests.conftest import ROOT, run_program

CONFIG = "configs/default.py"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--config=FILE and --workdir=DIR are needed"),
        (["--config", CONFIG], "--config=FILE and --workdir=DIR are needed"),
        (["--config=configs/quickstrat.py"], "did you mean configs/quickstart.py?"),
        (["--config.optimizr.name=sgd"], "optimizr.name: did you mean optimizer.name?"),
        (["--config.batch_size=many"], "--config.batch_size=many"),
        (["--wrkdir=x"], "wrkdir"),
        (["stray"], "stray is not a flag"),
        (["--profile=5"], "--profile=5 is not FIRST:COUNT"),
    ],
)
def test_mistake_is_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    if arguments and not any(a in ("--config", CONFIG) for a in arguments):
        given = any(a.startswith("--config=") for a in arguments)
        arguments = [*([] if given else [f"--config={CONFIG}"]), *arguments]
        arguments.append(f"--workdir={tmp_path / 'run'}")
    output = run_program("-m", "agenet.main", *arguments, fails=True)
    *_, last = output.splitlines()
    assert last.startswith("error: ")
    assert told in last
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("tasks", "height", '"age", "gender" or "age,gender"'),
        ("model.name", "levi_hasner", "levi_hassner"),
        ("batch_size", 9, "--config.batch_size=8 or 16"),
        ("label_smoothing", 1.0, "label_smoothing 1 must be less than 1"),
        ("ema", -0.1, "ema -0.1 must be greater than or equal to 0"),
        ("class_weights", "even", 'use "none" or "balanced"'),
        ("augment.mixup", -1.0, "augment.mixup -1 must be greater than or equal to 0"),
        ("input.size", 100, "--config.input.size=227 or more"),
        ("dataset.labels", "all", '"all" is not known'),
        ("dataset.data_dir", "nowhere", "agenet prepare adience --config=faces"),
    ],
)
def test_mistake_in_a_field(tmp_path: Path, field: str, value: object, told: str) -> None:
    fields = flatten_dict(default.get_config().to_dict(), sep=".") | {"batch_size": 16}
    fields |= {field: value}

    def run() -> None:
        launch.launch(parse_config(unflatten_dict(fields, sep=".")), tmp_path / "run", "command")

    with pytest.raises(UserError) as caught:
        run()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def get_config(:", "SyntaxError"),
        ("def get_config():\n    return 3", "AttributeError"),
        (
            "from configs import default\n\n\ndef get_config():\n"
            "    config = default.get_config()\n    config.sed = 1\n    return config",
            "sed",
        ),
    ],
)
def test_mistake_in_a_config_file(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "config.py"
    file.write_text(text)
    output = run_program(
        "-m", "agenet.main", f"--config={file}", f"--workdir={tmp_path / 'run'}", fails=True
    )
    assert output.startswith(f"error: config file {file}: ")
    assert told in output
    assert len(output.splitlines()) == 1


def test_help_does_not_import_jax() -> None:
    for module, *command in (("agenet.main",), ("agenet.cli", "evaluate")):
        code = (
            "import runpy, sys\n"
            f"sys.argv = {[module, *command, '--help']}\n"
            "try:\n"
            f"    runpy.run_module('{module}', run_name='__main__')\n"
            "except SystemExit:\n"
            "    assert 'jax' not in sys.modules and 'orbax' not in sys.modules\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "--workdir" in result.stdout


def test_config_files_load() -> None:
    names = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
    assert "quickstart.py" in names
    for name in names:
        assert isinstance(importlib.import_module(f"configs.{name[:-3]}").get_config(), ConfigDict)


# As if TensorFlow were not installed. None in sys.modules would not do: to TFDS that is loaded.
HIDE_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)


sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.mark.slow
def test_drawn_faces_without_tensorflow(drawn_faces: Path, tmp_path: Path) -> None:
    """Training, stopped and continued, testing, reporting, and the test from the checkpoint."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE_TENSORFLOW)
    environment = {"PYTHONPATH": str(hidden)}
    assert "No module named 'tensorflow'" in run_program(
        "-c", "import tensorflow", fails=True, **environment
    )
    workdir = tmp_path / "run"
    arguments = [
        "-m",
        "agenet.main",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--config.dataset.data_dir={drawn_faces}",
        "--config.input.size=72",
        "--config.input.crop_size=67",
        "--config.duration=8 steps",
        "--config.schedule.warmup=2 steps",
        "--config.log_every=1 steps",
        "--config.evaluate_every=8 steps",
    ]
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = ""
        while "train     1 " not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        process.terminate()
        told += process.stderr.read()
    assert process.returncode == 0
    assert "SIGTERM: stopped and saved at step" in told
    assert "to resume, run the same command again" in told
    assert "goes on without it" not in told
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert not (workdir / "report.json").exists()

    with exclusive_lock(workdir):
        output = run_program(*arguments, fails=True, **environment)
    assert f"error: --workdir {workdir} is in use by another process: wait until it ends" in output

    output = run_program(*arguments, **environment)
    assert "resuming from step" in output
    assert "Drawn faces, not photographs" in output
    assert "test images show a subject from training" in output
    for name in ("report.md", "report.json", "learning_curves.png", "faces_age.png"):
        assert (workdir / name).stat().st_size > 100
    report = (workdir / "report.json").read_text()

    assert "this run is finished" in run_program(*arguments, **environment)

    checkpoint_alone = tmp_path / "copy"
    shutil.copytree(workdir / "checkpoints", checkpoint_alone / "checkpoints")
    run_program("-m", "agenet.cli", "evaluate", f"--workdir={checkpoint_alone}", **environment)
    again = (checkpoint_alone / "report.json").read_text()
    assert _tasks(again) == _tasks(report)


def _tasks(report: str) -> object:
    return json.loads(report)["evaluation"]["tasks"]


def test_evaluating_what_is_no_run(tmp_path: Path) -> None:
    output = run_program("-m", "agenet.cli", "evaluate", f"--workdir={tmp_path}", fails=True)
    assert output.startswith("error: ")
    assert "holds no checkpoints" in output
