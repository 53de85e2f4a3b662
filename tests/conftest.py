"""Fixtures shared by the tests; eight virtual CPU devices stand in for accelerators."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest
from filelock import FileLock

from agenet.data.records import Records
from agenet.labels import AGE_GROUPS
from agenet.models.layers import BatchNorm

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"

# Most of a test's time is compilation: it is kept on disk, for the programs that tests start, the
# other processes of pytest-xdist and the next run of the tests; and done at low optimisation
# (JAX_DISABLE_MOST_OPTIMIZATIONS=0 turns that off).
# Child processes import this file too: their folder is the parent's.
COMPILED = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or ROOT / ".jax_cache")
JAX_SETTINGS = {
    "jax_compilation_cache_dir": str(COMPILED),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_disable_most_optimizations": int(os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")),
}
# JAX 0.10 compiles small functions four times as fast without its newer emitters of fusions; later
# versions have no such flag, and refuse unknown ones.
if JAX_SETTINGS["jax_disable_most_optimizations"] and jax.__version_info__ < (0, 11):
    _flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if _flags not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flags}"
for _name, _value in JAX_SETTINGS.items():
    os.environ[_name.upper()] = str(_value)
    jax.config.update(_name, _value)
jax.config.update("jax_num_cpu_devices", 8)

LOWEST, HIGHEST = zip(*(map(int, group.split("-")) for group in AGE_GROUPS), strict=True)


@pytest.fixture(scope="session", autouse=True)
def _hear_ctrl_c() -> None:
    """Programs in the background of a shell have Ctrl-C ignored, and theirs inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-skipped",
        metavar="FILE",
        help="write the tests that were skipped, to run them elsewhere with `pytest @FILE`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the order of files, and the folder of compiled functions small and whole."""
    config.option.loadscopereorder = False  # pytest-xdist would start with the most tests.
    if "PYTEST_XDIST_WORKER" in os.environ or not COMPILED.is_dir():
        return
    sizes = {path: path.stat().st_size for path in COMPILED.iterdir()}
    full = sum(sizes.values()) > 2_000_000_000
    for path, size in sizes.items():
        if full or not size:  # Empty: the process that wrote it was killed.
            path.unlink(missing_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with files of slow tests, so that no process is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if path := terminalreporter.config.getoption("--write-skipped"):
        skipped = [report.nodeid for report in terminalreporter.getreports("skipped")]
        Path(path).write_text("".join(f"{nodeid}\n" for nodeid in skipped))


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all processes of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled() -> Iterator[None]:
    """Keeps memory down: hardly any module of tests runs what another one compiled."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps tests out of the user's cache."""
    os.environ["AGENET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the checkout; without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data in {REAL_DATA}")
    return REAL_DATA


class TinyNet(nn.Module):
    """Small enough to train in a test: one convolution with batch norm."""

    FLAVOURS = ("tiny",)
    STAGES = (("conv", "bn"),)
    input_size = 16

    flavour: str = "tiny"
    frozen_stages: int = 0
    dtype: np.dtype = np.float32
    width: int = 8

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        train = train and self.frozen_stages == 0
        x = nn.Conv(self.width, (3, 3), strides=2, dtype=self.dtype, name="conv")(images)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, train))
        return x if self.frozen_stages == 0 else jax.lax.stop_gradient(x)


@pytest.fixture
def tiny_net(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name under which `TinyNet` is registered during a test."""
    monkeypatch.setitem(__import__("agenet.models", fromlist=["MODELS"]).MODELS, "tiny", TinyNet)
    return "tiny"


def noise_records(
    count: int = 200, *, persons: int = 50, folds: int = 5, size: int = 20
) -> Records:
    """A data set in memory whose pictures show their labels by brightness and colour."""
    rng = np.random.default_rng(0)
    subject_id = rng.integers(0, persons, count)
    age, gender = rng.integers(-1, 8, count), rng.integers(-1, 2, count)
    pictures = []
    for row in range(count):
        image = rng.integers(0, 30, (size, size, 3), np.uint8)
        image += np.array([25 * (age[row] + 1), 100 * (gender[row] + 1), 0], np.uint8)
        pictures.append(cv2.imencode(".png", image)[1].tobytes())
    return Records(
        name="noise/faces/1.0.0",
        notice="",
        images=pictures,
        fold=(subject_id % folds).astype(np.int32),
        subject_id=subject_id,
        labels={"age": age.astype(np.int32), "gender": gender.astype(np.int32)},
        age_low=np.array([*LOWEST, -1], np.int32)[age],
        age_high=np.array([*HIGHEST, -1], np.int32)[age],
    )


@pytest.fixture(scope="session")
def make_records() -> Callable[..., Records]:
    return noise_records


@pytest.fixture(scope="session")
def drawn_faces(shared_tmp: Path) -> Path:
    """A data_dir in which a small `drawn_faces/faces` is prepared, by the program users call."""

    def prepare(data_dir: Path) -> None:
        from data_prep.drawn_faces.release import write_release

        write_release(shared_tmp / "release", count=300, seed=0)
        run_prepare("drawn_faces", shared_tmp / "release", data_dir)

    return once(shared_tmp / "drawn_faces", prepare)


@pytest.fixture(scope="session")
def adience(real_data: Path, shared_tmp: Path) -> Path:
    """A data_dir in which the real `adience/faces` is prepared; half a minute and 100 MB."""
    return once(
        shared_tmp / "adience", lambda path: run_prepare("adience", real_data / "adience", path)
    )


def once(folder: Path, prepare: Callable[[Path], None]) -> Path:
    """Has one process of pytest-xdist `prepare` a folder, which the others wait for."""
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            prepare(folder)
            done.touch()
    return folder


def run_prepare(dataset: str, manual_dir: Path, data_dir: Path) -> None:
    run_program(
        "scripts/prepare.py", dataset, f"--manual_dir={manual_dir}", f"--data_dir={data_dir}"
    )


def run_program(*arguments: str, fails: bool = False, **env: str) -> str:
    """Runs `python ARGUMENTS` in the checkout's root; returns its output, both streams."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert (result.returncode != 0) == fails, result.stdout
    return result.stdout
