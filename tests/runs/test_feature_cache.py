"""Heads trained on kept features end as those trained through the frozen backbone."""

import contextlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from filelock import FileLock

from agenet.data.records import Records
from agenet.errors import UserError
from agenet.runs import launch
from agenet.runs.feature_cache import PART, View, find_obstacle, hash_weights
from agenet.training.checkpoints import Checkpoints
from tests.tiny import read_rows, tiny_config, use_records

Run = Callable[..., Path]
FROZEN = {"freeze": "backbone", "duration": "2 epochs", "input__size": 24}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all views."""
    monkeypatch.setenv("AGENET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def run(
    make_records: Callable[..., Records],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
) -> Run:
    """Launches a tiny run on the frozen backbone of another, "first"."""
    use_records(make_records(), monkeypatch.setattr)
    # Only the backbone's features count here; other seeds and folds test on subjects that "first"
    # was trained on.
    monkeypatch.setattr("agenet.runs.initial_state.check_not_seen", lambda *_: None)

    def run(name: str, **fields: Any) -> Path:
        config = tiny_config(**{"init": str(tmp_path / "first"), **FROZEN, **fields})
        launch.launch(config, tmp_path / name, "command")
        return tmp_path / name

    run("first", init="random", freeze="none")
    return run


def states(workdir: Path) -> dict[str, np.ndarray]:
    """Parameters, statistics and optimiser of the latest and the best state."""
    checkpoints = Checkpoints(workdir, read_only=True)
    found = {
        name: manager.restore(manager.latest_step())["state"]
        for name, manager in (("latest", checkpoints._latest), ("best", checkpoints._best))
    }
    checkpoints.close()
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(found)}


def assert_same(first: Path, second: Path) -> None:
    """The same runs but for rounding."""
    one, two = states(first), states(second)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for row, other in zip(read_rows(first), read_rows(second), strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def epochs_found(workdir: Path) -> int:
    """As a report takes it from the latest checkpoint."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        run = checkpoints.read_run("latest")
    assert run is not None
    return run["progress"]["epochs_found"]


def files(cache: Path) -> dict[str, int]:
    """The parts on disk and when they were written."""
    found = cache.glob("*/*.safetensors")
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize("extra_layers", [False, True])
def test_features_and_images_train_the_same(
    run: Run, cache: Path, capsys: pytest.CaptureFixture, extra_layers: bool
) -> None:
    fields = {"model__extra_layers": extra_layers, "new_parts": "heads"}
    augment = {"augment__rotate": 20, "augment__contrast": 0.2}
    naive = run("naive", feature_cache="off", **fields, **augment)
    assert not files(cache)
    assert "features: computed for every step, as feature_cache is off" in capsys.readouterr().err
    cached = run("cached", input__placement="stream", **fields, **augment)
    assert "features: computed once" in capsys.readouterr().err
    assert_same(naive, cached)
    assert [epochs_found(workdir) for workdir in (naive, cached)] == [0, 0]
    names = {name.split("-")[0] for name in files(cache)}
    assert names == {"epoch_0", "epoch_1", "evaluation"}
    # The checkpoint is one of the whole network, and a run can start from it as from any other.
    assert any("backbone" in name for name in states(cached))
    run("next", init=str(cached), feature_cache="off", **fields)


def test_runs_share_what_does_not_depend_on_them(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run("one")
    before = files(cache)
    # Neither the images nor the backbone are needed again.
    monkeypatch.setattr("agenet.runs.experiment.Experiment.load_images", None)
    run("batches", batch_size=8)
    run("rate", optimizer__name="sgd", schedule__learning_rate=0.1, model__dropout_rate=0.1)
    heads = run("heads", heads__gender="sigmoid", duration="9 steps")
    run("extra", model__extra_layers=True)
    assert capsys.readouterr().err.count("2 of 2 epochs are cached") == 4
    assert files(cache) == before and epochs_found(heads) == 2


def test_mixed_images_have_no_features_to_keep(
    run: Run, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    run("mixed", augment__mixup=0.2, duration="1 steps")
    assert "features: computed for every step, as mixup mixes" in capsys.readouterr().err
    assert not files(cache)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"augment__flip": 0.0},
        {"input__size": 22},
        {"input__mean": (1.0, 2.0, 3.0), "input__std": (1.0, 2.0, 3.0)},
        {"model__dtype": "bfloat16"},
        {"dataset__test_fold": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_features_are_not_taken(run: Run, cache: Path, fields: dict[str, Any]) -> None:
    run("one")
    before = files(cache)
    run("two", **fields)
    epochs = [name for name in files(cache).keys() - before.keys() if "epoch" in name]
    assert len(epochs) == 2 and files(cache).items() >= before.items()


def test_features_of_another_backend_are_not_taken(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("one")
    before = files(cache)
    monkeypatch.setattr(jax, "default_backend", lambda: "other")
    run("two")
    assert len(files(cache)) == 2 * len(before)


def test_features_of_other_weights_are_not_taken(
    run: Run, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("one")
    run("second", init="random", freeze="none", schedule__learning_rate=0.02)
    naive = run("naive", init=str(tmp_path / "second"), feature_cache="off")
    ours = set(files(cache))
    cached = run("cached", init=str(tmp_path / "second"))
    assert len(files(cache)) == 2 * len(ours)
    assert_same(naive, cached)
    # Nor where they lie in the others' place.
    for name in set(files(cache)) - ours:
        theirs = next(other for other in ours if name.split("-")[0] == other.split("-")[0])
        shutil.copy(cache / theirs, cache / name)
    assert_same(naive, run("again", init=str(tmp_path / "second")))
    assert "is damaged or belongs to something else: computed again" in capsys.readouterr().err


def test_interrupted_run_goes_on(run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole")
    shutil.rmtree(cache)
    run("part", duration="7 steps", evaluate_every="7 steps")
    assert {name.split("-")[0] for name in files(cache)} == {"epoch_0", "evaluation"}
    before = files(cache)
    assert_same(whole, run("part_again"))
    assert files(cache).items() > before.items()


def test_limit(run: Run, cache: Path, capsys: pytest.CaptureFixture) -> None:
    naive = run("small", feature_cache_bytes=5000)
    reason = "because they take 2.05e-05 GB, more than feature_cache_bytes 5e-06 GB"
    assert f"features: computed for every step, {reason}" in capsys.readouterr().err
    assert not files(cache)
    assert_same(naive, run("cached"))
    before = files(cache)
    # Room for one run's views: those of the other have to go.
    run("other", seed=1, feature_cache_bytes=24_000)
    assert not files(cache).keys() & before.keys() and len(files(cache)) == 3
    assert "to stay within feature_cache_bytes" in capsys.readouterr().err


def test_epochs_left_behind_are_not_kept_in_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[View] = []
    read = View.read

    def spy(view: View, rows: np.ndarray) -> np.ndarray:
        views.append(view)
        return read(view, rows)

    monkeypatch.setattr(View, "read", spy)
    run("one")
    kept = {view.folder.name.split("-")[0]: view._part.cache_info().currsize for view in views}
    assert kept == {"epoch_0": 0, "epoch_1": 1, "evaluation": 1}


def create_view(root: Path, calls: list[int], weights: str = "a") -> View:
    def compute(rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return np.stack([rows, -rows], 1).astype(np.float32)

    rows = np.random.default_rng(0).permutation(2 * PART + 10) * 3
    return View(root, "epoch_0", {"weights": weights}, rows, 2, compute)


def test_view_computes_only_what_is_asked_for_and_lacking(tmp_path: Path) -> None:
    calls: list[int] = []
    view = create_view(tmp_path, calls)
    asked = view.rows[[PART + 1, PART - 1, 0]]
    np.testing.assert_array_equal(view.read(asked), np.stack([asked, -asked], 1))
    assert sorted(calls) == [PART, PART]
    assert view.holds(2 * PART) and not view.holds(len(view.rows))
    again = create_view(tmp_path, calls)
    np.testing.assert_array_equal(again.read(view.rows)[:, 0], view.rows)
    assert calls[2:] == [10] and again.holds(len(view.rows))
    assert sum(p.stat().st_size for p in view.folder.iterdir()) > again.nbytes == len(view.rows) * 8
    assert create_view(tmp_path, calls, "b").folder != view.folder


def test_two_at_once_compute_every_part_once(tmp_path: Path) -> None:
    calls: list[int] = []
    views = [create_view(tmp_path, calls) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for features in pool.map(lambda view: view.read(view.rows), views):
            np.testing.assert_array_equal(features[:, 0], views[0].rows)
    assert sorted(calls) == [10, PART, PART]


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "shape", "name"])
def test_damaged_parts_are_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    view = create_view(tmp_path, calls)
    expected = view.read(view.rows)
    path = sorted(view.folder.glob("*.safetensors"))[2]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-1]
    elif damage == "bit":
        data[-3] ^= 1
    elif damage == "text":
        data = bytearray(b"nothing")
    else:
        name, size = ("features", 9) if damage == "shape" else ("other", 10)
        metadata = {"source": view._source, "sha256": ""}
        data = bytearray(safetensors.numpy.save({name: np.zeros((size, 2), "f4")}, metadata))
    path.write_bytes(data)
    path.with_name(f".{path.name}.1").write_bytes(data)  # A process was killed while it wrote.
    np.testing.assert_array_equal(create_view(tmp_path, calls).read(view.rows), expected)
    assert calls == [PART, PART, 10, 10]
    assert f"{path} is damaged or belongs to something else: computed again" in caplog.text
    create_view(tmp_path, calls).read(view.rows)
    assert len(calls) == 4 and not list(view.folder.glob(".part*"))


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    calls: list[int] = []
    (tmp_path / "file").write_text("")
    view = create_view(tmp_path / "file", calls)
    assert "cannot be used" in find_obstacle(tmp_path / "file", [view], 10**9)
    with pytest.raises(UserError, match=r"cannot be written to .*--config.feature_cache=off"):
        view.read(view.rows)


def test_views_in_the_making_are_not_removed(tmp_path: Path) -> None:
    calls: list[int] = []
    old, other, new = (create_view(tmp_path, calls, weights) for weights in "abc")
    for view in (old, other):
        view.read(view.rows)
    (tmp_path / "file").write_text("of someone")
    with FileLock(old.folder / ".lock"):
        assert not find_obstacle(tmp_path, [new], new.nbytes)
    assert old.holds(len(old.rows)) and not other.folder.exists()
    assert not find_obstacle(tmp_path, [new], new.nbytes) and not old.folder.exists()
    assert (tmp_path / "file").exists()


def test_a_view_that_is_removed_in_the_making_is_made_again(tmp_path: Path) -> None:
    view = create_view(tmp_path, [])

    def compute(rows: np.ndarray) -> np.ndarray:
        shutil.rmtree(view.folder)
        return np.stack([rows, rows], 1)

    view._compute = compute
    view.read(view.rows[:PART])
    assert view.holds(PART)


def test_errors_of_the_computation_are_not_those_of_the_disk(tmp_path: Path) -> None:
    view = create_view(tmp_path, [])

    def compute(rows: np.ndarray) -> np.ndarray:
        raise OSError("of an image")

    view._compute = compute
    with pytest.raises(OSError, match="of an image"):
        view.read(view.rows)


def test_hash_of_weights() -> None:
    weights = {"params": {"a": np.zeros(2, np.float32), "b": np.ones(1, np.float32)}}
    same = json.loads(json.dumps(jax.tree.map(np.ndarray.tolist, weights)))
    same = jax.tree.map(
        lambda leaf: np.array(leaf, np.float32), same, is_leaf=lambda x: type(x) is list
    )
    others = [
        {"params": {**weights["params"], "a": value}}
        for value in (np.zeros(2), -np.zeros(2, "f4"), np.zeros((2, 1), "f4"))
    ]
    assert hash_weights(same) == hash_weights(weights)
    assert len({hash_weights(tree) for tree in [weights, *others]}) == 4
