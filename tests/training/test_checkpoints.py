import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.runs.identity import check_same_run, find_differences
from agenet.training.checkpoints import Checkpoints
from agenet.training.run_record import is_complete
from tests.training.states import assert_equal, make_record, make_state

pytestmark = pytest.mark.usefixtures("quiet_remains")


def test_no_checkpoint_at_first(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest_step is checkpoints.best_step is None
    assert checkpoints.read_run("latest") is checkpoints.read_run("best") is None


def test_latest_and_best_are_separate(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save_best(make_state(6), make_record(6, value=0.1))
    for step in (5, 10, 15):
        checkpoints.save_latest(make_state(step), make_record(step, asked={"at": [step]}))
    for kept in (checkpoints, Checkpoints(tmp_path, read_only=True)):
        assert (kept.latest_step, kept.best_step) == (15, 6)
        assert kept.read_run("latest") == make_record(15, asked={"at": [15]})
        assert kept.read_run("best") == make_record(6, value=0.1)
        assert_equal(kept.restore_latest(make_state(0)), make_state(15))
        assert_equal(kept.restore_best(make_state(0).variables), make_state(6).variables)
    # The one before the latest as well, in case that a disk damages the latest.
    assert {path.name for path in (tmp_path / "checkpoints/latest").iterdir()} == {"10", "15"}


def test_moving_averages_are_saved(checkpoints: Checkpoints) -> None:
    state, template = make_state(5), make_state(0)
    template.params["backbone"] = state.params["backbone"] = {"conv": jnp.ones(3)}
    average = {"params": {"backbone": {}, "conv": {"kernel": jnp.full((3, 4), 0.5)}}}
    average["batch_stats"] = {"mean": jnp.zeros(4)}
    state = state.replace(average=average)
    checkpoints.save_latest(state, make_record(5))
    checkpoints.save_best(state, make_record(5))
    assert_equal(checkpoints.restore_latest(state), state)
    best = checkpoints.restore_best(template.variables)
    np.testing.assert_array_equal(best["params"]["conv"]["kernel"], np.full((3, 4), 0.5))
    np.testing.assert_array_equal(best["params"]["backbone"]["conv"], np.ones(3))
    np.testing.assert_array_equal(best["batch_stats"]["mean"], np.zeros(4))


def test_unused_fields_are_not_saved(checkpoints: Checkpoints) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))
    found = checkpoints._latest.restore(5)["state"]
    assert set(found) == {"step", "params", "batch_stats", "opt_state"}


def test_a_step_is_saved_once(checkpoints: Checkpoints) -> None:
    checkpoints.save_latest(make_state(5), make_record(5, first=True))
    checkpoints.save_latest(make_state(5), make_record(5, first=False))
    # But the record of the run may have changed.
    assert checkpoints.read_run("latest") == make_record(5, first=False)
    assert_equal(checkpoints.restore_latest(make_state(0)), make_state(5))


def test_state_is_safe_when_save_returns(checkpoints: Checkpoints) -> None:
    state = make_state(5)
    expected = jax.tree.map(np.array, state)
    checkpoints.save_latest(state, make_record(5))
    jax.jit(lambda x: jax.tree.map(lambda y: y * 0, x), donate_argnums=0)(state)
    assert_equal(checkpoints.restore_latest(make_state(0)), expected)


def test_remains_of_a_killed_save_are_removed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))
    folder = tmp_path / "checkpoints/latest"
    shutil.copytree(folder / "5", folder / "9.orbax-checkpoint-tmp")
    # Killed while it removed the previous one.
    shutil.copytree(folder / "5", folder / "3")
    shutil.rmtree(folder / "3/state")
    again = Checkpoints(tmp_path)
    assert again.latest_step == 5
    again.save_latest(make_state(7), make_record(7))
    assert {path.name for path in folder.iterdir()} == {"5", "7"}
    assert_equal(again.restore_latest(make_state(0)), make_state(7))


def test_failed_save_keeps_the_previous_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))

    def fail(*args: Any, **options: Any) -> None:
        (tmp_path / "checkpoints/latest/6.orbax-checkpoint-tmp").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._latest, "save", fail)
    with pytest.raises(UserError, match=r"no space left on the disk for .*/latest/6: free some"):
        checkpoints.save_latest(make_state(6), make_record(6))
    assert [path.name for path in (tmp_path / "checkpoints/latest").iterdir()] == ["5"]
    assert_equal(checkpoints.restore_latest(make_state(0)), make_state(5))


@pytest.mark.parametrize("part", ["state/d", "state/_METADATA", "state/manifest.ocdbt"])
def test_damaged_checkpoint_is_one_line(
    checkpoints: Checkpoints, tmp_path: Path, part: str
) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))
    damaged = tmp_path / "checkpoints/latest/5" / part
    for file in [damaged, *damaged.rglob("*")]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoint .*/latest/5 cannot be read: ") as caught:
        Checkpoints(tmp_path, read_only=True).restore_latest(make_state(0))
    assert "\n" not in str(caught.value)
    assert "Restore a copy of it, or start again" in str(caught.value)


def test_other_shapes_are_refused(checkpoints: Checkpoints) -> None:
    checkpoints.save_best(make_state(5), make_record(5))
    wider = make_state(0).variables | {"params": {"conv": {"kernel": jnp.zeros((3, 5))}}}
    with pytest.raises(UserError, match="cannot be read: "):
        checkpoints.restore_best(wider)


def test_reading_creates_no_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoints"):
        Checkpoints(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())


RUN = {
    "config": {"seed": 0, "mean": (1.0, 2.0), "dataset": {"data_dir": "a", "name": "b/c"}},
    "dataset": {"name": "b/c/1.0.0", "fingerprint": "0123", "pictures": "89ab"},
    "classes": {"age": ["0-2", "4-6"]},
}


def test_same_run() -> None:
    # As read from JSON; other saved fields do not matter.
    saved = RUN | {"config": RUN["config"] | {"mean": [1.0, 2.0]}, "command": "x", "step": 3}
    check_same_run(saved, RUN, Path("run"))
    # Earlier versions did not store a checksum of the images.
    check_same_run(saved | {"dataset": {"name": "b/c/1.0.0", "fingerprint": "0123"}}, RUN, Path())
    elsewhere = RUN["config"]["dataset"] | {"data_dir": "z"}
    check_same_run(saved, RUN | {"config": RUN["config"] | {"dataset": elsewhere}}, Path("run"))


def test_every_difference_is_named() -> None:
    other = {
        "config": {"seed": 1, "mean": (1.0, 3.0), "dataset": {"data_dir": "a", "name": "b/c"}},
        "dataset": RUN["dataset"] | {"fingerprint": "4567", "pictures": "cdef"},
        "classes": {"gender": ["female", "male"]},
    }
    with pytest.raises(UserError) as caught:
        check_same_run(RUN, other, Path("runs/mine"))
    for text in (
        "the checkpoint in runs/mine is of another run",
        "config.seed: 0 there, 1 now",
        "config.mean: [1.0, 2.0] there, [1.0, 3.0] now",
        "dataset.fingerprint: images, subjects or labels have changed",
        "dataset.pictures: some images have changed",
        "classes.age: ['0-2', '4-6'] there, absent now",
        "classes.gender: absent there, ['female', 'male'] now",
        "another --workdir to start afresh",
    ):
        assert text in str(caught.value)
    assert "data_dir" not in str(caught.value)


@pytest.mark.parametrize(
    ("run", "complete"),
    [
        ({"step": 20, "total_steps": 20}, True),
        ({"step": 19, "total_steps": 20}, False),
        ({"step": 20, "total_steps": 20, "progress": {"evaluated_step": 20}}, True),
        # Stopped during the last validation.
        ({"step": 20, "total_steps": 20, "progress": {"evaluated_step": 15}}, False),
        ({"step": 9, "total_steps": 20, "progress": {"stopped_early": True}}, True),
    ],
)
def test_complete_runs_are_trained_and_validated(run: dict[str, Any], complete: bool) -> None:
    assert is_complete(run) == complete


def test_runs_without_a_newer_field() -> None:
    assert not find_differences({"config": {"seed": 0}}, {"config": {"seed": 0, "ema": 0.0}})
    assert find_differences({"config": {"seed": 0}}, {"config": {"seed": 0, "ema": 0.9}})
