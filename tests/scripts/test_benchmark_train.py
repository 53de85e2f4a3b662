import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from agenet.data.records import Records
from agenet.runs import launch
from agenet.runs.batches import create_batches
from agenet.runs.experiment import Experiment
from scripts.benchmarks import train
from scripts.benchmarks.engines import filled_state
from scripts.benchmarks.loops import Faces, Loop, make_idle_step
from tests.conftest import run_program
from tests.tiny import tiny_config, use_records


@pytest.mark.slow
def test_tables_of_a_tiny_setting(tmp_path: Path, drawn_faces: Path) -> None:
    file = tmp_path / "figures.json"
    output = run_program(
        "scripts/benchmarks/train.py",
        *("--models=levi_hassner", "--size=67", "--batch_size=4", "--rounds=1", "--seconds=0"),
        *(f"--data_dir={drawn_faces}", f"--json={file}"),
    )
    (model,) = json.loads(file.read_text())["models"]
    assert (model["model"], model["size"], model["batch"]) == ("levi_hassner", 67, 4)
    ours = model["training"]["agenet, step"]
    assert ours["bound"] in ("memory", "arithmetic") and 0 < ours["fraction"] < 2
    loop = model["training"]["agenet, loop, device"]
    assert 0 < ours["median"] < 60 and 0 < loop["median"] < 60
    assert 1e-5 < model["loading"]["agenet, device"]["median"] < 1
    for name, found in (model["training"] | model["loading"]).items():
        # What this version or machine has not is a line.
        assert "median" in found or f"- {name}, " in output
    torch = model["training"].get("torch, loop", {})
    if "ratio" in torch:
        assert torch["ratio"] == pytest.approx(torch["median"] / loop["median"])
    assert "### levi_hassner, 67 px, batch 4, float32, " in output
    assert "Host time per step: " in output and "| step | " in output


@pytest.fixture
def experiment(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Experiment]:
    with monkeypatch.context() as patch:
        use_records(make_records(), patch.setattr)
        yield launch.create_experiment(
            tiny_config(duration="1000 steps", evaluate_every="100%", checkpoint_every="100%")
        )


def start_loop(experiment: Experiment, train_step: Any) -> Loop:
    state = filled_state(experiment.abstract_state(), jax.devices()[0])
    batches = create_batches(experiment, state.variables, step=0, show_progress=False)
    experiment = dataclasses.replace(experiment)
    vars(experiment)["train_step"] = train_step
    return Loop(experiment, batches, state, steps=4)


def test_a_loop_stops_and_goes_on(experiment: Experiment) -> None:
    loop = start_loop(experiment, experiment.train_step)
    # A row to warm up, and one that counts.
    (first,) = loop.run(0.0)
    assert 1e-5 < first < 60 and loop.state.step == 8
    times = loop.run(10 * first)
    assert 4 * sum(times) >= 10 * first and loop.state.step == 8 + 4 * (1 + len(times))


def test_an_idle_step_changes_nothing_but_its_number(experiment: Experiment) -> None:
    before = filled_state(experiment.abstract_state(), jax.devices()[0])
    loop = start_loop(experiment, make_idle_step(experiment))
    loop.run(0.0)
    assert loop.state.step == 8
    leaves = (jax.tree.leaves(state.replace(step=0)) for state in (before, loop.state))
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_faces_for_a_loader(make_records: Callable[..., Records]) -> None:
    records = make_records(20, size=24)
    images, ages, genders = Faces(records, 20, 16)[[3, 5]]
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
    assert ages.tolist() == records.labels["age"][[3, 5]].tolist()
    assert genders.tolist() == records.labels["gender"][[3, 5]].tolist()
    # Green tells gender; the order of channels is RGB.
    means = Faces(records, 20, 16)[list(range(20))][0].mean((1, 2))
    assert np.corrcoef(means[:, 1], records.labels["gender"])[0, 1] > 0.95


def test_shares_and_ratios_by_round() -> None:
    def figures(*times: float) -> dict[str, Any]:
        return {"rounds": [[time] for time in times], "median": sorted(times)[len(times) // 2]}

    trained = {
        "agenet, step": figures(1.0, 10.0, 1.0),
        "agenet, loop, device": figures(1.25, 12.5, 1.0),
        "agenet, loop, stream": {"error": "not known"},
        "torch, step": figures(2.0, 20.0, 1.0),
        "torch, loop": figures(2.5, 25.0, 9.0),
    }
    train.compare(trained, "device")
    assert trained["agenet, loop, device"]["of_step"] == 0.8
    assert trained["torch, loop"]["of_step"] == 0.8 and trained["torch, loop"]["ratio"] == 2.0
    assert trained["torch, step"]["ratio"] == 2.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--peers=jax", "'jax' is not one of torch, torch_compiled"),
        ("--placements=disk", "'disk' is not one of device, host, stream"),
        ("--data_set=adience", 'data set "adience" must be DATA_SET/CONFIG'),
        ("--data_set=nothing/here", "nothing/here is not prepared in"),
    ],
)
def test_bad_options_are_one_line(option: str, message: str) -> None:
    output = run_program("scripts/benchmarks/train.py", option, fails=True)
    assert output.startswith("error: ") and message in output and output.count("\n") == 1
