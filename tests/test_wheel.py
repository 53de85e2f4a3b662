"""The built wheel, installed in an environment of its own and used far from the clone."""

import os
import re
import shlex
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("hatchling")
pytestmark = pytest.mark.slow

# A network that compiles in seconds, on small images.
TINY = """
from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "drawn_faces/faces"
    config.dataset.data_dir = "data"
    config.model.name = "levi_hassner"
    config.input.size = 72
    config.input.crop_size = 67
    config.batch_size = 16
    config.duration = "2 steps"
    config.evaluate_every = "2 steps"
    config.trackers = ()
    return config
"""
SWEEP = """
def get_sweep():
    variants = [{"name": "1", "fields": {"seed": 1}}]
    return {"config": "tiny.py", "fields": {}, "tables": {"Seed": variants}}
"""


def build(folder: Path, kind: str, out: Path) -> Path:
    """Builds a wheel or an sdist of the project in `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of an environment with the wheel and the packages of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # A path file leaves out this environment's own path files, and so an editable agenet.
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(packages) / "others.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder far from the clone, with nothing in it but two files of the user's."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "tiny.py").write_text(TINY)
    (folder / "tiny_sweep.py").write_text(SWEEP)
    return folder


def call(installed: Path, folder: Path, *command: str) -> str:
    """What a program of the environment prints, both streams."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [installed / command[0], *command[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def printed_by_prepare(installed: Path, empty: Path) -> str:
    """What `agenet prepare` prints; small drawn faces are in the folder `data` afterwards."""
    code = (
        "from pathlib import Path; from agenet.files import make_shipped_importable\n"
        "make_shipped_importable()\n"
        "from data_prep.drawn_faces.release import write_release\n"
        "Path('release').mkdir(); write_release(Path('release'), count=300, seed=0)"
    )
    call(installed, empty, "python", "-c", code)
    arguments = ("drawn_faces", "--manual_dir=release", "--data_dir=data")
    return call(installed, empty, "agenet", "prepare", *arguments)


def test_all_files_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "agenet", "configs", "data_prep"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("not a clone")
    shipped = {n if n.startswith("agenet/") else f"agenet/shipped/{n}" for n in tracked}
    assert shipped <= names
    assert "agenet/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"agenet", "agenet_faces-0.1.0.dist-info"}


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build(ROOT, "sdist", tmp_path)
    subprocess.run(["tar", "xzf", sdist], cwd=tmp_path, check=True)
    again = build(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path)
    names = [zipfile.ZipFile(path).namelist() for path in (wheel, again)]
    assert sorted(names[0]) == sorted(names[1])


def test_the_wheel_is_what_runs(installed: Path, empty: Path) -> None:
    code = "import agenet, agenet.files; print(agenet.__file__, agenet.files.SHIPPED)"
    where, shipped = call(installed, empty, "python", "-c", code).split()
    assert str(installed.parent) in where and str(installed.parent) in shipped
    assert "prepare" in call(installed, empty, "agenet", "--help")


def test_prepare_and_the_command_it_prints(
    installed: Path, empty: Path, printed_by_prepare: str
) -> None:
    command = re.findall(r"^next: (.*)$", printed_by_prepare, re.M)[-1]
    assert command == (
        "agenet train --config=quickstart --workdir=runs/drawn_faces --config.dataset.data_dir=data"
    )
    # The network is a smaller one, which compiles in seconds.
    fewer = ("--config.duration=2 steps", "--config.schedule.warmup=1 steps")
    small = ("--config.model.name=levi_hassner", "--config.input.size=72")
    call(installed, empty, *shlex.split(command), *fewer, *small, "--config.input.crop_size=67")
    assert (empty / "runs/drawn_faces/report.json").is_file()
    printed = call(installed, empty, "agenet", "report", "runs/drawn_faces")
    assert "agenet report runs/drawn_faces OTHER_RUN" in printed


@pytest.mark.usefixtures("printed_by_prepare")
def test_folds_and_sweep_of_the_users_own_files(installed: Path, empty: Path) -> None:
    call(installed, empty, "agenet", "folds", "--config=tiny.py", "--workdir=folds")
    assert "5 of 5 folds" in (empty / "folds/folds.md").read_text()
    call(installed, empty, "agenet", "sweep", "--sweep=tiny_sweep.py", "--workdir=sweep")
    assert "1 of 1 runs" in (empty / "sweep/sweep.md").read_text()
    call(installed, empty, "agenet", "report", "A=folds/fold_0", "B=folds/fold_1")
    assert (empty / "comparison/comparison.html").is_file()


@pytest.mark.usefixtures("printed_by_prepare")
def test_predict(installed: Path, empty: Path) -> None:
    code = (
        "import cv2, numpy as np; from agenet.inference.export_faces import draw_faces\n"
        "cv2.imwrite('face.png', np.ascontiguousarray(draw_faces(128)[0][..., ::-1]))"
    )
    call(installed, empty, "python", "-c", code)
    call(installed, empty, "agenet", "predict", "--cropped", "face.png", "--csv=faces.csv")
    head, row = (empty / "faces.csv").read_text().splitlines()
    assert head.startswith("file,face") and row.startswith("face.png,1,0,0,128,128,")
