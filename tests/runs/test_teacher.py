"""Distillation runs: from a file of predictions and from a network, with one-line mistakes."""

import io
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from agenet.data.records import Records
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError
from agenet.runs import launch
from agenet.runs.batches import reason_for_images
from agenet.runs.create import create_experiment
from agenet.runs.description import describe_origin
from agenet.runs.experiment import Experiment
from agenet.runs.memory import measure
from agenet.runs.teacher_file import write_predictions
from agenet.training.distillation import KNOWN
from agenet.training.finished_run import read_run_weights
from agenet.weights.load import save_weights
from scripts import write_teacher_predictions
from tests.tiny import on_batch, result, tiny_config, use_records

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records()


@pytest.fixture(autouse=True)
def _runs(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    use_records(records, monkeypatch.setattr)


@pytest.fixture(scope="module")
def teacher(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    workdir = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        use_records(records, patch.setattr)
        launch.launch(tiny_config(heads__age="ordinal", duration="7 steps"), workdir, "command")
    return workdir


@pytest.fixture(scope="module")
def arrays(teacher: Path, records: Records) -> Arrays:
    """Its predictions for all faces, in predictions.npz as the script writes it."""
    path = teacher / "predictions.npz"
    with pytest.MonkeyPatch.context() as patch:
        use_records(records, patch.setattr)
        write_teacher_predictions.main([f"--teacher={teacher}", "--data_set=noise/x", str(path)])
    with np.load(path) as archive:
        return dict(archive)


def save(path: Path, arrays: Arrays) -> str:
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    path.write_bytes(content.getvalue())
    return str(path)


def create(**fields: Any) -> Experiment:
    return create_experiment(tiny_config(**fields), create_mesh(jax.devices()[:1]))


def test_file_holds_what_the_network_predicts(
    teacher: Path, arrays: Arrays, records: Records
) -> None:
    assert arrays.keys() == {
        *("index", "dataset", "teacher"),
        *("age_log_probs", "years_log_probs", "gender_log_probs"),
    }
    for name in ("age_log_probs", "years_log_probs", "gender_log_probs"):
        np.testing.assert_allclose(np.exp(arrays[name]).sum(1), 1, rtol=1e-4)
    by_row = create(distill__teacher=str(teacher / "predictions.npz"), augment__flip=0.0)
    by_image = create(distill__teacher=str(teacher))
    rows = by_row.splits.train[:16]
    assert by_row.teacher and by_image.teacher
    found = by_row.teacher.teacher.predict(by_row.teacher.teacher.arrays, rows)
    # The same centre crops, as the student normalises them.
    batch = next(iter(by_image.stream_images().batches([(rows, None)])))
    images = by_image.eval_transform(batch["image"])
    seen = by_image.teacher.teacher.predict(by_image.teacher.teacher.arrays, images)
    assert found.keys() == seen.keys() == {"age", "years", "gender", KNOWN}
    assert np.all(found[KNOWN]) and np.all(seen[KNOWN])
    for name in ("age", "years", "gender"):
        np.testing.assert_allclose(found[name], seen[name], atol=2e-4)
    assert not np.any(
        by_row.teacher.teacher.predict(by_row.teacher.teacher.arrays, by_row.splits.test[:16])[
            KNOWN
        ]
    )


def test_network_of_another_size_and_normalisation(teacher: Path) -> None:
    """The teacher gets its own size and normalisation, whatever those of the student."""
    student = create(
        distill__teacher=str(teacher),
        input__crop_size=12,
        input__mean=(10.0, 20.0, 30.0),
        input__std=(2.0, 3.0, 4.0),
    )
    assert student.teacher
    same = create(distill__teacher=str(teacher))
    assert same.teacher
    grey = np.full((2, 1, 1, 3), (100.0, 150.0, 200.0), np.float32)
    small = (np.tile(grey, (1, 12, 12, 1)) - student.config.input.mean) / student.config.input.std
    large = (np.tile(grey, (1, 16, 16, 1)) - same.config.input.mean) / same.config.input.std
    one, two = (
        run.teacher.teacher.predict(run.teacher.teacher.arrays, images.astype(np.float32))  # type: ignore[union-attr]
        for run, images in ((student, small), (same, large))
    )
    np.testing.assert_allclose(one["age"], two["age"], atol=1e-4)


def test_images_are_needed_only_for_networks(teacher: Path, arrays: Arrays) -> None:
    def reason(**fields: Any) -> str:
        return reason_for_images(tiny_config(**fields), True)

    assert reason(distill__teacher=str(teacher / "predictions.npz")) == ""
    assert reason(distill__teacher=str(teacher)) == "the teacher sees images"
    assert reason(augment__cutmix=0.1) == "CutMix mixes images"
    assert "balanced sampling" in reason(dataset__sampling="age_balanced")
    assert reason(augment__erase=0.5, augment__randaugment=2) == ""


def test_memory_of_the_teacher(teacher: Path) -> None:
    plain, taught = create(), create(distill__teacher=str(teacher))
    needs = measure(taught)
    assert needs.state["teacher"] > 4 * 300
    assert needs.step > measure(plain).step
    assert any(line.startswith("  teacher") for line in needs.lines())
    # What the teacher was trained on, its student was, too.
    known = describe_origin(taught)
    assert known["teacher"]["digest"] and known["trained_on"].keys() == {"noise"}


def test_a_run_learns_resumes_and_knows_its_teacher(
    teacher: Path, arrays: Arrays, tmp_path: Path
) -> None:
    part = {name: array[:150] if len(array) == 200 else array for name, array in arrays.items()}
    path = tmp_path / "part.npz"
    fields: dict[str, Any] = {
        "distill__teacher": save(path, part),
        "distill__weight": 0.7,
        "augment__mixup": 0.3,
        "duration": "10 steps",
    }
    launch.launch(tiny_config(**fields), tmp_path / "whole", "command")
    with pytest.MonkeyPatch.context() as patch:
        on_batch(4, lambda: signal.raise_signal(signal.SIGTERM), patch.setattr)
        launch.launch(tiny_config(**fields), tmp_path / "stopped", "command")
    save(path, arrays)
    with pytest.raises(UserError, match=r"learns from other weights than those that are in .*npz"):
        launch.launch(tiny_config(**fields), tmp_path / "stopped", "command")
    save(path, part)
    launch.launch(tiny_config(**fields), tmp_path / "stopped", "command")
    found = result(tmp_path / "whole")
    assert result(tmp_path / "stopped") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a | {"dataset": a["dataset"] + 1},
            "predictions for another data set than noise",
        ),
        (lambda a: a | {"age_log_probs": a["age_log_probs"][:, :5]}, "is 200 x 5, not 200 x 8"),
        (lambda a: a | {"index": a["index"] * 0}, "index is not a list of rows, each once"),
        (lambda a: a | {"index": a["index"] + 1}, "rows outside of 0 to 199"),
        (lambda a: a | {"age_log_probs": np.exp(a["age_log_probs"]) + 1}, "no logarithms of prob"),
        (lambda a: {n: v for n, v in a.items() if n != "dataset"}, "it lacks dataset"),
        (
            lambda a: {n: v for n, v in a.items() if n in ("index", "dataset", "years_log_probs")},
            "predicts nothing, not age or gender",
        ),
        (lambda a: {n: v[:0] if len(v) == 200 else v for n, v in a.items()}, "no prediction for"),
        (lambda a: a | {"index": a["index"].astype("U3")}, r"index\.npy is not a plain array"),
        (lambda a: a | {"teacher": np.frombuffer(b"{}", np.uint8)}, "must have the fields"),
    ],
)
def test_wrong_files(
    arrays: Arrays, tmp_path: Path, change: Callable[[Arrays], Arrays], message: str
) -> None:
    path = save(tmp_path / "wrong.npz", change(arrays))
    with pytest.raises(UserError, match=message) as caught:
        _ = create(distill__teacher=path).teacher
    assert "\n" not in str(caught.value) and str(caught.value).startswith("distill.teacher")


def test_wrong_teachers(teacher: Path, tmp_path: Path, records: Records) -> None:
    for name, fields, message in (
        ("nothing.npz", {}, "there is no file nothing.npz: write one with"),
        ("nothing", {}, 'there are no weights "nothing"'),
        # Another fold and so other test subjects, whom the teacher was trained on.
        (str(teacher), {"dataset__test_fold": 3}, "these weights were trained on subjects of"),
        (save(tmp_path / "text.npz", {}), {}, "it lacks index"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            _ = create(distill__teacher=name, **fields).teacher
        assert str(caught.value).startswith("distill.teacher")
    (tmp_path / "damaged.npz").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="is not a file of predictions"):
        _ = create(distill__teacher=str(tmp_path / "damaged.npz")).teacher
    weights = read_run_weights(teacher)
    of_gender = {n: t for n, t in weights.tensors.items() if "heads/age" not in n}
    spec = replace(weights.spec, classes={"gender": 2}, heads={"gender": "softmax"})
    save_weights(tmp_path / "gender.safetensors", replace(weights, tensors=of_gender, spec=spec))
    gender = str(tmp_path / "gender.safetensors")
    with pytest.raises(UserError, match=r"predicts gender, not age: give another teacher"):
        _ = create(distill__teacher=gender, tasks="age").teacher
    with pytest.raises(UserError, match=r"name a file that ends in \.npz"):
        write_predictions(gender, records, tmp_path / "predictions")
    with pytest.raises(UserError, match="there is no folder"):
        write_predictions(gender, records, tmp_path / "none" / "predictions.npz")
