"""Checkpoints that a disk or a stranger has changed are refused in one line, or are as saved."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.training.checkpoints import Checkpoints
from tests.training.states import assert_equal, make_record, make_state

pytestmark = pytest.mark.usefixtures("quiet_remains")


def rewrite_record(checkpoint: Path, **fields: Any) -> None:
    """Changes fields of a saved record, or removes those that are None."""
    path = checkpoint / "run/metadata"
    record = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


def without_digests(checkpoint: Path) -> None:
    """Makes a checkpoint as earlier versions saved it."""
    rewrite_record(checkpoint, digests=None, digest=None)


@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state"])
def test_changed_values_are_found_by_digests(tmp_path: Path, part: str) -> None:
    state = make_state(5)
    other = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), getattr(state, part))
    for name, saved in (("own", state), ("other", state.replace(**{part: other}))):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save_latest(saved, make_record(5))
        checkpoints.close()
    own = tmp_path / "own/checkpoints/latest/5"
    shutil.rmtree(own / "state")
    shutil.copytree(tmp_path / "other/checkpoints/latest/5/state", own / "state")
    with pytest.raises(UserError, match=f"/5 cannot be read: its {part} differ from what was sav"):
        Checkpoints(tmp_path / "own", read_only=True).restore_latest(make_state(0))
    # Earlier versions saved no digests.
    without_digests(own)
    found = Checkpoints(tmp_path / "own", read_only=True).restore_latest(make_state(0))
    assert_equal(getattr(found, part), other)


def test_flipped_bits_are_found_or_harmless(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))
    folder = tmp_path / "checkpoints/latest/5"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    rng, found = np.random.default_rng(0), 0
    for _ in range(40):
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        damaged = bytearray(before)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        damaged_one = Checkpoints(tmp_path, read_only=True)
        try:
            assert damaged_one.read_run("latest") == make_record(5)
            assert_equal(damaged_one.restore_latest(make_state(0)), make_state(5))
        except UserError:
            found += 1
        path.write_bytes(before)
    assert found >= 5


def test_values_that_are_not_finite(checkpoints: Checkpoints, tmp_path: Path) -> None:
    state = make_state(5)
    state.params["conv"]["kernel"] = state.params["conv"]["kernel"].at[1, 2].set(jnp.nan)
    checkpoints.save_latest(state, make_record(5))
    checkpoints.save_best(state, make_record(5))
    without_digests(tmp_path / "checkpoints/latest/5")
    again = Checkpoints(tmp_path, read_only=True)
    for restore in (
        lambda: again.restore_latest(make_state(0)),
        lambda: again.restore_best(make_state(0).variables),
    ):
        with pytest.raises(UserError, match="its params have values that are not finite"):
            restore()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"total_steps": 21}, "its record of the run differs from what was saved"),
        ({"digests": {}}, "its record of the run differs from what was saved"),
        ({"digest": None, "step": 6}, "its record is of step 6"),
        ({"digest": None, "step": None}, "step is missing"),
        ({"digest": None, "step": "5"}, "step must be a valid integer"),
        ({"digest": None, "config": []}, "config must be an object"),
        ({"digest": None, "splits": None}, "splits is missing"),
        ({"digest": None, "progress": {"rows": -1}}, "progress.rows must be greater than or equ"),
        ({"digest": None, "progress": {"sums": {"x": float("nan")}}}, "must be a finite number"),
        ({"digest": None, "classes": {"\x1b[2J": []}}, r"classes.\?\[2J must be 'age' or 'gender'"),
        ({"digest": None, "trained_on": {"adience": 3}}, "trained_on.adience must be a valid str"),
    ],
)
def test_records_that_are_not_as_expected(
    checkpoints: Checkpoints, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))
    rewrite_record(tmp_path / "checkpoints/latest/5", **fields)
    with pytest.raises(UserError, match=f"/latest/5 cannot be read: .*{problem}") as caught:
        Checkpoints(tmp_path, read_only=True).read_run("latest")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000, b'{"step": 1' + b"0" * 5000],
)
def test_records_that_are_no_objects(
    checkpoints: Checkpoints, tmp_path: Path, content: bytes
) -> None:
    checkpoints.save_best(make_state(5), make_record(5))
    (tmp_path / "checkpoints/best/5/run/metadata").write_bytes(content)
    with pytest.raises(
        UserError, match=r"/best/5 cannot be read: its record of the run is damaged"
    ):
        Checkpoints(tmp_path, read_only=True).read_run("best")


@pytest.mark.parametrize("part", ["run/metadata", "state/manifest.ocdbt"])
def test_a_pipe_is_not_waited_for(checkpoints: Checkpoints, tmp_path: Path, part: str) -> None:
    checkpoints.save_latest(make_state(5), make_record(5))
    path = tmp_path / "checkpoints/latest/5" / part
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"latest/5 cannot be read: its .*(missing|not a file)"):
        Checkpoints(tmp_path, read_only=True).restore_latest(make_state(0))


def test_the_previous_checkpoint_is_offered(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints/latest"
    for step in (5, 10):
        checkpoints.save_latest(make_state(step), make_record(step))
    rewrite_record(folder / "10", total_steps=3)
    way = f"The one of step 5 is kept as well: to go on from there, remove {folder}/10 and run the"
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path, read_only=True).read_run("latest")
    assert way in str(caught.value)
    shutil.rmtree(folder / "10")
    again = Checkpoints(tmp_path, read_only=True)
    assert again.read_run("latest") == make_record(5)
    assert_equal(again.restore_latest(make_state(0)), make_state(5))
    rewrite_record(folder / "5", total_steps=3)
    with pytest.raises(UserError, match="Restore a copy of it, or start again in another --workd"):
        again.read_run("latest")
