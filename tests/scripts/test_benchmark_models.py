import json
import math
import os
import signal
from pathlib import Path

import pytest

from agenet.frameworks.timing import Engine
from agenet.frameworks.worker import Worker
from scripts.benchmarks import models
from scripts.benchmarks.engines import OpenVino, Work
from scripts.benchmarks.turns import median_ratio, roofline
from tests.conftest import run_program

TINY = ["--size=32", "--batch_size=2", "--rounds=1", "--seconds=0", "--peers="]


@pytest.mark.slow
def test_figures_of_a_tiny_setting(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    output = run_program(
        "scripts/benchmarks/models.py", "--models=efficientnet_lite0", f"--json={file}", *TINY
    )
    figures = json.loads(file.read_text())
    assert figures["dtype"] == "float32" and "jax" in figures["machine"]["versions"]
    (model,) = figures["models"]
    assert (model["size"], model["parameters"]) == (32, 4652008)
    assert [found["batch"] for found in model["stages"].values()] == [1, 2, 2]
    for found in model["stages"].values():
        (ours,) = found["engines"].values()
        numbers = [value for value in ours.values() if isinstance(value, float)]
        assert all(math.isfinite(number) for number in numbers) and len(numbers) >= 8
        assert 1e-4 < ours["minimum"] <= ours["median"] < 60
        assert 1e7 < ours["program_bytes"] < ours["peak_bytes"] < 8e9
        assert 1e8 < ours["bandwidth"] < 1e13 and 1e8 < ours["peak_flops"] < 1e16
    # 2 x 0.41 billion multiplications and additions at 224 px, the head's 3 % apart.
    flops = [found["engines"]["agenet"]["flops"] for found in model["stages"].values()]
    assert 0.8 < flops[0] / (2 * 0.41e9 * (32 / 224) ** 2) < 2
    # Adam on 4.7 million parameters is as much again as so small a network.
    assert 1.6 < flops[1] / flops[0] < 2.4 < flops[2] / flops[1] < 9
    assert "### efficientnet_lite0, 32 px" in output and "| training | " in output


@pytest.mark.slow
def test_a_peer_beside_ours(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "figures.json"
    options = [*TINY[:-1], "--models=levi_hassner", "--peers=torch,openvino", f"--json={file}"]
    models.main(options)
    stages = json.loads(file.read_text())["models"][0]["stages"]
    for found in stages.values():
        ours, torch = (found["engines"][name] for name in ("agenet", "torch"))
        assert torch["ratio"] == pytest.approx(torch["median"] / ours["median"])
    openvino = stages["inference"]["engines"]["openvino"]
    assert "ratio" in openvino or "No module named" in openvino["error"]
    assert "openvino" not in stages["training"]["engines"]


def test_ratio_is_the_median_of_rounds() -> None:
    # The machine is ten times slower in the second round, and one call is disturbed.
    ours = [[1.0, 1.0, 9.0], [10.0, 10.0], [1.0]]
    theirs = [[2.0, 2.0], [20.0, 20.0, 20.0], [3.0]]
    assert median_ratio(ours, theirs) == 2.0
    assert median_ratio(theirs, ours) == 0.5


@pytest.mark.parametrize(
    ("flops", "moved", "bound", "fraction"),
    [(100.0, 10.0, "arithmetic", 0.5), (10.0, 40.0, "memory", 0.2)],
)
def test_roofline(flops: float, moved: float, bound: str, fraction: float) -> None:
    # Two limits of a machine that halves its speed: 100 and 50 operations, as many bytes.
    rates = [{"copy": 100.0, "product": 100.0}, {"copy": 50.0, "product": 50.0}]
    found = roofline(flops, moved, [[2.0], [4.0, 4.0]], rates)
    assert found["bound"] == bound and found["fraction"] == pytest.approx(fraction)
    assert (found["bandwidth"], found["peak_flops"]) == (75.0, 75.0)


class StubWorker(Worker):
    """Answers without a process; has memory for three images."""

    def ask(self, method: str, *arguments: int) -> object:
        self.idle = (1.0, 0.0)
        if method == "prepare" and arguments[1] > 3:
            return {"error": "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
        prepared = {"flops": 1.0, "bytes": 1.0}
        answers = {"prepare": prepared, "rates": {"copy": 1.0, "product": 1.0}, "measure": [0.5]}
        return answers.get(method)


def test_batch_is_halved_until_it_fits() -> None:
    workers = [StubWorker(name, Engine, Work(), 1.0) for name in ("agenet", "torch", "limits")]
    args = models.parse(["--rounds=2"])
    found = models.run_stage("training", 8, workers[:2], workers[2], args)
    assert (found["batch"], found["requested"]) == (2, 8)
    assert found["engines"]["torch"]["ratio"] == 1.0


class Counter(Engine):
    def __init__(self) -> None:
        self.calls = 0

    def build(self, stage: str, batch: int) -> dict[str, float]:
        self.call = self.count
        return {"compile_seconds": 1.5}

    def count(self) -> None:
        self.calls += 1


def test_a_turn_has_at_least_one_call() -> None:
    engine = Counter()
    assert engine.prepare("latency", 1)["compile_seconds"] == 1.5 and engine.calls == 1
    # The first call of a turn is not counted.
    assert len(engine.measure("latency", 0.0)) == 1 and engine.calls == 3
    times = engine.measure("latency", 0.01)
    assert 0.01 <= sum(times) < 1 and engine.calls == 4 + len(times)
    engine.pipelined = True
    assert len(engine.measure("training", 0.01)) == 1


def test_a_crash_is_an_answer() -> None:
    with Worker("openvino", OpenVino, Work(), 60.0) as worker:  # imports nothing before it prepares
        assert worker.start() == {}
        os.kill(worker._process.pid, signal.SIGSEGV)
        for method in ("measure", "release"):
            assert worker.ask(method) == {"error": "its process ended with code -11"}


class CrashingWorker(StubWorker):
    """Ends in its first turn."""

    def ask(self, method: str, *arguments: int) -> object:
        if method == "measure":
            self.error = "its process ended with code -11"
        return {"error": self.error} if self.error else super().ask(method, *arguments)


@pytest.mark.parametrize("crashing", ["agenet", "openvino"])
def test_a_crash_is_a_line_of_the_table(crashing: str, capsys: pytest.CaptureFixture[str]) -> None:
    limits, *workers = (
        (CrashingWorker if name == crashing else StubWorker)(name, Engine, Work(), 1.0)
        for name in ("limits", "agenet", "openvino")
    )
    args = models.parse(["--rounds=2"])
    stages = {stage: models.run_stage(stage, 2, workers, limits, args) for stage in models.STAGES}
    figures = {"model": "tiny", "size": 32, "parameters": 1, "stages": stages}
    models.print_model(figures)
    output = capsys.readouterr().out
    assert f"- {crashing}, inference: failed: its process ended with code -11" in output
    assert ("| training | 1e-09 |" in output) == (crashing == "openvino")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--models=resnet51", "did you mean resnet50?"),
        ("--peers=tourch", "'tourch' is not one of torch, "),
        ("--batch_size=0", "--batch_size=0 must be at least 1"),
        ("--json=nowhere/x.json", "there is no folder"),
        ("--dtype=float8", "invalid choice: 'float8'"),
    ],
)
def test_bad_options_are_one_line(option: str, message: str) -> None:
    output = run_program("scripts/benchmarks/models.py", option, fails=True)
    assert output.startswith("error: ") and message in output and output.count("\n") == 1
