"""The report of a run, from made-up predictions on coloured squares."""

import copy
import doctest
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from agenet.evaluation import figure_style, figures, summary
from agenet.evaluation.document import compose
from agenet.evaluation.face_sheet import choose_faces, face_sheet
from agenet.evaluation.metrics import report_metrics
from agenet.evaluation.page import Image, to_markdown
from agenet.evaluation.report import write_report
from agenet.labels import TASK_CLASSES
from agenet.runs import logging

FILES = {"report.html", "report.md", "report.json", "predictions.npz"}
KINDS = ("confusion", "reliability", "subgroups", "faces")
NOTICE = "Drawn faces, not photographs"
HOSTILE = "<script>alert(1)</script> *x* $a$ `b` |c|"


def faces(indices):
    """A uniform image for each row of the data set [K, 8, 8, 3], whose colour is the row."""
    return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), 8, 8, 3))


def measure(predictions, task):
    groups = {name: predictions[name] for name in TASK_CLASSES if name in predictions}
    years = np.random.default_rng(0).integers(-1, 80, len(predictions["index"]))
    return report_metrics(
        task,
        predictions[f"{task}_log_probs"],
        predictions[task],
        predictions["subject_id"],
        groups,
        true_age=years if task == "age" else None,
        predicted_age=years + 2.5 if task == "age" else None,
    )


def finished_run(tasks=("age", "gender"), n=60, perfect=False, dataset="other/1.0.0", **changes):
    rng = np.random.default_rng(0)
    predictions = {"index": np.arange(n) + 100, "subject_id": rng.integers(0, 40, n)}
    results = {}
    for task in tasks:
        classes = len(TASK_CLASSES[task])
        labels = rng.integers(-1, classes, n).astype(np.int32)
        log_probs = np.log(rng.dirichlet(np.ones(classes), n)).astype(np.float32)
        if perfect:
            log_probs = np.log(np.eye(classes, dtype=np.float32)[labels] * 0.9 + 0.01)
        predictions |= {task: labels, f"{task}_log_probs": log_probs}
    for task in tasks:
        results[task] = measure(predictions, task)
    counts = {"faces": 1000, "subjects": 90, "age": [100] * 8, "gender": [480, 490]}
    summary = {
        "command": "python -m agenet.main --config=configs/quickstart.py --workdir=run",
        "config": {
            "seed": 0,
            "duration": "5 epochs",
            "optimizer": {"name": "adam", "learning_rate": 1e-4},
        },
        "dataset": {
            "name": dataset,
            "notice": "",
            "labels": "official",
            "protocol": "subject",
            "test_fold": 0,
            "seed": 0,
            "counts": {"train": counts, "validation": counts, "test": counts},
            "leakage": {"test_faces": 1000, "seen_subject": 0},
        },
        "model": {
            "name": "levi_hassner",
            "flavour": "report",
            "initial": "random",
            "parameters": 11_415_048,
            "trained": 11_415_048,
        },
        "machine": {
            "devices": "1 x cpu",
            "processor": "Some | CPU",
            "versions": {"python": "3.11", "jax": "0.10", "flax": "0.12"},
        },
        "training": {
            "seconds": 3725.0,
            "epochs_found": 0,
            "steps": 100,
            "epochs": 5.0,
            "pictures_per_second": 21.4,
            "best_step": 60,
            "best_metric": "validation/loss",
            "best_value": 1.25,
        },
        "evaluation": {"split": "test", "step": 60, "seconds": 4.2, "tasks": results},
    }
    summary["dataset"] |= changes
    history = [
        {"step": 20 * e, "epoch": e, "train/loss": 2 / e, "validation/loss": 2.2 / e}
        | {"train/age_accuracy": 0.1 * e, "validation/gender_accuracy": 0.15 * e}
        for e in range(1, 6)
    ]
    return SimpleNamespace(summary=summary, history=history, predictions=predictions)


def write(folder, run):
    before = copy.deepcopy(run.summary)
    write_report(folder, run.summary, run.history, run.predictions, faces)
    assert run.summary == before
    return (folder / "report.md").read_text()


def markdown(summary):
    return to_markdown(compose(summary, {}, {}))


def written(folder):
    return {path.name for path in folder.iterdir()}


def test_all_files(tmp_path):
    run = finished_run()
    text = write(tmp_path, run)
    images = {"learning_curves.png"} | {
        f"{kind}_{task}.png" for kind in KINDS for task in TASK_CLASSES
    }
    assert written(tmp_path) == images | FILES
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in images)
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href|url)\W+(?!data:|#)["\']?(https?:)?//', html)
    known = run.predictions
    faces_shown = sum(
        len(group)
        for task in TASK_CLASSES
        for _, group in choose_faces(known[f"{task}_log_probs"], known[task], known["subject_id"])
    )
    assert html.count("<svg") == 7 and html.count("data:image/webp") == faces_shown > 50
    for shown in ("1 h 2 min", "levi_hassner, flavour report", "Full config", "5 epochs"):
        assert shown in html
    assert set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)) == images
    assert json.loads((tmp_path / "report.json").read_text()) == run.summary
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as saved:
        assert dict(saved).keys() == run.predictions.keys()
        assert all(np.array_equal(saved[name], run.predictions[name]) for name in saved)


def test_tables_are_whole(tmp_path):
    text = write(tmp_path, finished_run(dataset="adience/faces/1.0.0", notice=""))
    tables = [p.splitlines() for p in text.split("\n\n") if p.startswith("|")]
    assert len(tables) == 10
    for lines in tables:
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
        assert len(lines) >= 3 and len(set(cells)) == 1, lines[0]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(finished_run(perfect=True), id="no mistakes"),
        pytest.param(finished_run(tasks=("gender",)), id="one task"),
        pytest.param(finished_run(n=3), id="absent classes"),
    ],
)
def test_unusual_runs(tmp_path, run):
    run.history = run.history[:1]
    write(tmp_path, run)
    tasks = run.summary["evaluation"]["tasks"]
    assert len(written(tmp_path)) == len(FILES) + 1 + len(KINDS) * len(tasks)


def test_nothing_to_draw(tmp_path):
    run = finished_run(tasks=("gender",), n=4)
    run.predictions["gender"][:] = -1
    run.summary["evaluation"]["tasks"]["gender"] = measure(run.predictions, "gender")
    run.history = []
    assert "| Accuracy % | – |" in write(tmp_path, run)
    assert written(tmp_path) == FILES


def test_results_and_baseline():
    run = finished_run(tasks=("gender",), n=4)
    log_probs = np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1]])
    run.predictions |= {"gender": np.array([0, 1, 1, 1]), "gender_log_probs": log_probs}
    run.summary["evaluation"]["tasks"]["gender"] = measure(run.predictions, "gender")
    text = markdown(run.summary)
    assert "| Accuracy % | **50.0** (no interval) |" in text
    assert "| Always the largest class % | 75.0 (male) |" in text
    assert "| Balanced accuracy % | 66.7 (no interval) |" in text
    assert "| female | 480 | 1 | 100.0 | – |" in text
    assert "| male | 490 | 3 | 33.3 | female (66.7 %) |" in text
    assert "| 5 | 100 | 1 h 2 min | 21.4 | 60 (epoch 3) | 1.2500 | 4.2 s |" in text


def test_intervals_and_subgroups():
    run = finished_run()
    tasks = run.summary["evaluation"]["tasks"]
    low, high = tasks["gender"]["intervals"]["roc_auc"]
    tasks["age"] |= {"exact_ages": 1234, "mae": 7.125, "cs5": 0.4}
    tasks["age"]["intervals"] |= {"mae": [6.5, 8.25], "cs5": None}
    tasks["gender"]["subgroups"]["age"][2] |= {"count": 1000, "subjects": 9, "loss": 0.5}
    tasks["gender"]["subgroups"]["age"][2]["intervals"]["loss"] = None
    text = markdown(run.summary)
    assert f"| ROC-AUC | – | {tasks['gender']['roc_auc']:.3f} ({low:.3f}–{high:.3f}) |" in text
    assert "| Faces of exact age | 1,234 | – |" in text
    assert "| MAE, years | 7.12 (6.50–8.25) | – |" in text
    assert "| CS@5 % | 40.0 (no interval) | – |" in text
    assert re.search(r"\| age: 8-12 \| 1,000 \| 9 \|.*\| 0\.5000 \(no interval\) \|", text)
    assert "No interval: fewer than 10 subjects" in text


def test_reports_of_older_versions_are_still_read():
    run = finished_run()
    known = {"count", "loss", "accuracy", "one_off", "balanced_accuracy"}
    known |= {"recall", "support", "confusion"}
    for task, metrics in run.summary["evaluation"]["tasks"].items():
        run.summary["evaluation"]["tasks"][task] = {k: v for k, v in metrics.items() if k in known}
    text = to_markdown(
        compose(run.summary, {"confusion_age": Image("confusion_age.png", b"", "")}, {})
    )
    assert "| Faces | " in text and "confusion_age.png" in text
    for absent in ("interval", "Calibration", "subgroup", "MAE"):
        assert absent not in text


def test_cached_features_are_mentioned_with_the_time():
    run = finished_run(tasks=("gender",), n=4)
    assert "cached on disk" not in markdown(run.summary)
    run.summary["training"]["epochs_found"] = 1
    note = "Features of 1 epoch were cached on disk: their time is not included."
    assert note in markdown(run.summary)


def test_leakage_is_a_warning():
    clean = markdown(finished_run().summary)
    assert "0 % of the test faces (0 of 1,000) show a subject from training." in clean
    assert "Warning" not in clean
    leakage = {"test_faces": 1000, "seen_subject": 945}
    leaking = markdown(finished_run(protocol="random", leakage=leakage).summary)
    assert "> **Warning: 94.5 % of the test faces (945 of 1,000) show a subject" in leaking


def test_published_results_are_shown_for_real_adience_only():
    def has_table(**settings):
        return "Levi & Hassner 2015" in markdown(finished_run(**settings).summary)

    assert has_table(dataset="adience/faces/1.0.0")
    assert not has_table(dataset="adience/faces/1.0.0", notice=NOTICE)
    assert not has_table(dataset="fairface/1.0.0")


def test_the_first_of_joined_data_sets_is_tested():
    joined = "adience/faces/1.1.0 + fairface/partial/1.0.0 + imdb_wiki/faces/1.0.0"
    text = markdown(finished_run(dataset=joined).summary)
    assert text.startswith("# levi_hassner on adience/faces/1.1.0\n")
    assert "- Data: adience/faces/1.1.0, official labels\n- Split: test fold 0, split by" in text
    assert "Also trained on fairface/partial/1.0.0, imdb_wiki/faces/1.0.0.\n" in text
    assert "Levi & Hassner 2015" in text


def test_data_that_the_initial_weights_were_trained_on():
    run = finished_run()
    assert "trained on faces" not in markdown(run.summary)
    run.summary["initial"] = {"digest": "0123", "data": ["adience", "fairface"]}
    assert "The initial weights were trained on faces of adience and fairface." in markdown(
        run.summary
    )


def test_runs_that_keep_the_last_state():
    run = finished_run(tasks=("gender",))
    run.summary["training"] |= {"best_step": 100, "best_metric": "last", "best_value": 100.0}
    assert "| 5 | 100 | 1 h 2 min | 21.4 | 100 (epoch 5) | 4.2 s |" in markdown(run.summary)


def test_notice_is_in_the_report_and_every_figure():
    run = finished_run(notice=NOTICE)
    assert markdown(run.summary).splitlines()[2] == f"> **{NOTICE}**"
    metrics = run.summary["evaluation"]["tasks"]["age"]
    for figure in (
        figures.learning_curves(run.history, ["age"], run.summary["training"], "model", NOTICE),
        figures.confusion_matrix("age", metrics, "model", NOTICE),
        figures.reliability_diagram("age", metrics, "model", NOTICE),
        figures.subgroup_bars("age", metrics, "model", NOTICE),
        face_sheet("age", run.predictions, faces, "model", NOTICE),
    ):
        assert NOTICE in [text.get_text() for text in figure.texts]


def test_accuracy_axes_are_not_truncated():
    run = finished_run()
    figure = figures.learning_curves(
        run.history, ["age", "gender"], run.summary["training"], "model", ""
    )
    loss, *accuracies = figure.axes
    assert loss.get_ylim()[0] == 0
    assert [axis.get_ylim() for axis in accuracies] == [(0, 1), (0, 1)]
    chosen = [line for line in loss.lines if line.get_label() == "tested state"]
    assert chosen[0].get_xdata()[0] == 3.0


def test_errors_in_years_have_a_panel_where_they_were_measured():
    run = finished_run()
    rows = [row | {"validation/age_mae": 7.0 - row["epoch"]} for row in run.history]
    figure = figures.learning_curves(rows, ["age", "gender"], run.summary["training"], "m", "")
    assert len(figure.axes) == 4
    (line,) = [line for line in figure.axes[3].lines if line.get_label() == "validation"]
    assert line.get_ydata()[0] == 7.0 - line.get_xdata()[0]
    assert figure.axes[3].get_title(loc="left") == "Mean age error, years"


def test_subgroup_bars_say_where_there_is_no_interval():
    run = finished_run(n=300)
    metrics = run.summary["evaluation"]["tasks"]["gender"]
    metrics["subgroups"]["age"][0]["intervals"]["accuracy"] = None
    axis = figures.subgroup_bars("gender", metrics, "model", "").axes[0]
    assert axis.get_xlim() == (0, 1)
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["all faces", *TASK_CLASSES["age"], *TASK_CLASSES["gender"]]
    said = ["no interval" in text.get_text() for text in axis.texts]
    assert said == [name == "0-2" for name in names]
    shares = [bar.get_width() for bar in axis.patches]
    groups = [g for division in metrics["subgroups"].values() for g in division]
    assert shares == [metrics["accuracy"], *(group["accuracy"] for group in groups)]
    assert sum(line.get_marker() == "|" for line in axis.lines) == len(names) - 1


def test_a_step_logged_twice_counts_once():
    history = [
        {"step": 1, "epoch": 0.1, "x": 9.0},
        {"step": 2, "epoch": 0.2, "x": 3.0},
        {"step": 1, "epoch": 0.1, "x": 5.0},
        {"step": 2, "epoch": 0.2, "y": 7.0},
    ]
    assert figure_style.series(history, "x") == ([0.1, 0.2], [5.0, 3.0])


def test_choice_of_faces():
    #  wrong 90 %, correct 80 %, unknown, wrong 95 % of the same subject, correct 60 %
    sure = np.array([0.9, 0.8, 0.99, 0.95, 0.6])
    log_probs = np.log(np.stack([sure, 1 - sure], axis=1))
    labels, subjects = np.array([1, 0, -1, 1, 0]), np.array([7, 7, 8, 7, -1])
    errors, correct, unsure = choose_faces(log_probs, labels, subjects)
    assert errors[0] == "Most confident errors, of 2"
    assert errors[1].tolist() == [3]
    assert correct[1].tolist() == [1, 4]
    assert unsure[1].tolist() == [4, 1]


def test_faces_are_asked_for_by_row_of_the_data_set():
    run = finished_run(tasks=("gender",))
    asked = []
    face_sheet("gender", run.predictions, lambda rows: asked.extend(rows) or faces(rows), "", "")
    assert asked and min(asked) >= 100


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = finished_run(tasks=("gender",))
    text = write(tmp_path, run)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(logging.os, "replace", fail)
    run.summary["model"]["name"] = "another"
    before = written(tmp_path)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, run.summary, run.history, run.predictions, faces)
    assert written(tmp_path) == before
    assert (tmp_path / "report.md").read_text() == text


def test_docstring_examples():
    assert doctest.testmod(summary).failed == 0


def test_hostile_reports_are_escaped(tmp_path):
    run = finished_run(name=HOSTILE, notice=HOSTILE)
    run.summary["model"] |= {"name": HOSTILE, "initial": HOSTILE}
    run.summary |= {"command": HOSTILE, "config": {"duration": HOSTILE}}
    text = write(tmp_path, run)
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "<script" not in re.sub(r"```.*?```", "", text, flags=re.S)
