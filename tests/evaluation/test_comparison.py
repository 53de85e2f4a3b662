"""Pages that compare runs: metrics of folds and pairs, escaping, and damaged folders."""

import io
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from agenet.cli.app import run_command
from agenet.errors import UserError
from agenet.evaluation.comparison import contents, figures
from agenet.evaluation.comparison.panels import style_of
from agenet.evaluation.comparison.runs import read_runs
from agenet.evaluation.comparison.statistics import (
    confusion,
    differences,
    estimate,
    reliability,
    subgroups,
)
from agenet.evaluation.figures import reliability_diagram
from agenet.evaluation.page import (
    Cell,
    Code,
    Details,
    Facts,
    Heading,
    Image,
    Listing,
    Table,
    Text,
    to_html,
    to_markdown,
)
from tests.evaluation.test_report import HOSTILE, finished_run, measure


@pytest.fixture(scope="module")
def made() -> SimpleNamespace:
    """What a run leaves, made up once; it is changed in copies only."""
    return finished_run(dataset="adience/faces/1.0.0", n=120)


def leave(
    folder: Path, made: SimpleNamespace, fold: int = 0, swap: int = 0, **dataset: Any
) -> Path:
    """A run whose first `swap` ages are answered with the true class."""
    predictions = {name: values.copy() for name, values in made.predictions.items()}
    for row in np.flatnonzero(predictions["age"] >= 0)[:swap]:
        log_probs = predictions["age_log_probs"][row]
        right, largest = predictions["age"][row], log_probs.argmax()
        log_probs[[right, largest]] = log_probs[[largest, right]]
    summary = json.loads(json.dumps(made.summary))
    if swap:
        summary["evaluation"]["tasks"]["age"] = measure(predictions, "age")
    predictions["index"] += 1000 * fold
    summary["dataset"] |= {"test_fold": fold, **dataset}
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(summary))
    rows = [
        {"step": 20 * e, "epoch": e, "validation/age_loss": 2 / e, "validation/age_accuracy": 0.4}
        for e in range(1, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez_compressed(folder / "predictions.npz", **predictions)
    sheet = np.full((300, 2000, 3), 200, np.uint8)
    (folder / "faces_age.png").write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
    return folder


def leave_folds(folder: Path, made: SimpleNamespace) -> Path:
    for fold in range(5):
        leave(folder / f"fold_{fold}", made, fold, swap=10 * fold)
    (folder / "folds.json").write_text(json.dumps({"complete": True}))
    return folder


def compare(out: Path, *runs: Path | str, flags: tuple[str, ...] = ()) -> str:
    run_command(["report", *map(str, runs), f"--out={out}", *flags])
    return (out / "comparison.html").read_text()


def test_one_page_that_needs_nothing_else(tmp_path: Path, made: SimpleNamespace) -> None:
    one = leave(tmp_path / "plain", made)
    leakage = {"test_faces": 1000, "seen_subject": 945}
    other = leave(tmp_path / "other", made, protocol="random", leakage=leakage)
    html = compare(tmp_path / "out", f"{HOSTILE}={one}", other)
    assert not re.search(r'(src|href|url)\W+(?!data:|#)["\']?(https?:)?//', html)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert html.count("<svg") >= 8 and "image/webp" in html
    assert "94.5 % of its test faces (945 of 1,000) show a subject from training" in html
    for published in ("67.14", "0.8037", "8,464 s", "Levi &amp; Hassner 2015"):
        assert published in html
    text = (tmp_path / "out/comparison.md").read_text()
    assert "<script" not in text and r"\*x\* \$a\$ \`b\` \|c\|" in text
    shown = re.findall(r"\]\((comparison_pictures/[^)]+)\)", text)
    images = list((tmp_path / "out/comparison_pictures").iterdir())
    assert {str(path.relative_to(tmp_path / "out")) for path in images} == set(shown)
    tables = [p.splitlines() for p in text.split("\n\n") if p.startswith("|")]
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines[0]

    (tmp_path / "out/comparison_pictures/mine.png").write_bytes(b"kept")
    html = compare(tmp_path / "out", one, flags=("--no-faces",))
    assert (tmp_path / "out/comparison_pictures/mine.png").exists()
    assert "image/webp" not in html
    assert not list((tmp_path / "out").rglob("*.webp")), "faces of an earlier page"
    html = compare(tmp_path / "out", leave(tmp_path / "b", made, name="fairface/1.0.0"), one)
    assert "different data sets (fairface/1.0.0, adience/faces)" in html


def test_joined_data_sets_and_last_states(tmp_path: Path, made: SimpleNamespace) -> None:
    name = "adience/faces/1.0.0"
    one = leave(tmp_path / "one", made, name=name, notice="A part of it")
    html = compare(tmp_path / "out", one, flags=("--no-faces",))
    assert "What was tested: the state that was best on validation data: one. A dash" in html
    assert "Levi &amp; Hassner 2015" not in html
    joined = leave(tmp_path / "joined", made, name=f"{name} + fairface/partial/1.0.0")
    change(joined, "training", "best_metric", to="last")
    change(joined, "config", "dataset", to={"extra": "fairface/partial"})
    html = compare(tmp_path / "out", one, joined, flags=("--no-faces",))
    assert "validation data: one; the state at the end of training: joined." in html
    assert '<td class="left">adience/faces/1.0.0<small>also trained on fairface/partial' in html
    assert "Levi &amp; Hassner 2015" in html


def test_folds_are_averaged_and_pooled(tmp_path: Path, made: SimpleNamespace) -> None:
    folder = leave_folds(tmp_path / "folds", made)
    single = leave(tmp_path / "single", made)
    change(folder / "fold_1", "training", "epochs_found", to=3)
    run, alone = read_runs([str(folder), str(single)])
    accuracies = [test.tasks["age"]["accuracy"] for test in run.tests]
    found = estimate(run, "age", "accuracy")
    assert found is not None and found.interval is None and found.deviation is not None
    assert found.value == pytest.approx(np.mean(accuracies))
    assert found.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert accuracies[4] > accuracies[0]
    pooled = confusion(run, "age")
    count = alone.tests[0].tasks["age"]["count"]
    assert pooled.sum() == 5 * count
    # Of equally large folds, pooled accuracy is the mean.
    assert pooled.trace() / pooled.sum() == pytest.approx(found.value)
    bins = reliability(run, "age")
    assert bins is not None and bins[0].sum() == 5 * count
    assert bins[0] @ bins[2] / bins[0].sum() == pytest.approx(found.value)
    bars = subgroups(run, "age", "gender")
    assert set(bars) == {"female", "male"} and len(bars["male"].folds) == 5
    html = compare(tmp_path / "out", folder, single)
    assert html.count("<small>mean of a fold,\nfeatures cached</small>") == 2
    assert "whose time is not included. folds: 3 epochs.</p>" in html
    assert f"<b>{100 * found.value:.1f}</b><small>± {100 * found.deviation:.1f}</small>" in html
    assert (
        html.count("For folds the faces of all folds are pooled, which is not quite the difference")
        == 2
    )


def test_results_state_their_number_of_faces(tmp_path: Path, made: SimpleNamespace) -> None:
    folds, single = leave_folds(tmp_path / "folds", made), leave(tmp_path / "single", made)
    task = made.summary["evaluation"]["tasks"]["age"]
    change(folds / "fold_3", *AGE, "exact_ages", to=task["exact_ages"] + 1)
    change(single, *AGE, "exact_ages", to=task["count"])
    html = compare(tmp_path / "out", folds, single, flags=("--no-faces",))
    assert html.count(f",\nof {5 * task['exact_ages'] + 1} faces</small>") == 2  # MAE and CS@5
    assert html.count(" faces</small>") == 2
    # What a run's own test gives away is another thing on each fold, and not that of the papers.
    largest = 100 * max(task["support"]) / task["count"]
    for row in (
        r"folds</small></td><td class=\"left\">five folds",
        r"single.*only fold 0",
    ):
        of_test = rf"Always the largest class<small>on the test of {row}</td>"
        assert re.search(rf"{of_test}<td>{largest:.1f}</td>", html)


def test_absent_settings_of_earlier_versions_have_their_defaults(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    old, new = leave(tmp_path / "old", made), leave(tmp_path / "new", made)
    settings = {"duration": "5 epochs", "accumulate": 1, "test_views": 4, "patience": ""}
    change(new, "config", to=settings | {"optimizer": {"weight_decay": 0.0, "momentum": 0.5}})
    compare(tmp_path / "out", old, new, flags=("--no-faces",))
    text = (tmp_path / "out/comparison.md").read_text()
    rows = [line for line in text.splitlines() if line.count("|") == 4]
    fields = [line.split(" | ")[0][2:] for line in rows[2:]]
    names = ["optimizer.learning_rate", "optimizer.momentum", "optimizer.name", "seed"]
    assert fields == [*names, "test_views"] and rows[-1] == "| test_views | 1 | 4 |"


def test_lines_of_calibration_leave_out_bins_of_few_faces(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    counts, means = [9, 1000, 10], [0.2, 0.5, 0.8]
    bins = {"count": counts, "confidence": means, "accuracy": [1.0, 0.4, 0.7]}
    folder = leave(tmp_path / "run", made)
    change(folder, *AGE, "reliability", to=bins)
    (run,) = read_runs([str(folder)])
    metrics = run.tests[0].tasks["age"]
    both = figures.calibration([(run, style_of(0, run))], "age")
    assert both is not None
    for figure in (both, reliability_diagram("age", metrics, "model", "")):
        line = figure.axes[0].lines[-1]
        assert line.get_xydata().tolist() == [[0.5, 0.4], [0.8, 0.7]]


def test_pairs_on_the_same_faces(tmp_path: Path, made: SimpleNamespace) -> None:
    worse, better = leave(tmp_path / "worse", made), leave(tmp_path / "better", made, swap=60)
    elsewhere = leave(tmp_path / "elsewhere", made, fold=1)
    folds = leave_folds(tmp_path / "folds", made)
    runs = read_runs([str(path) for path in (worse, better, elsewhere, folds)])
    found, apart = differences(runs, "age")
    assert [(a.name, b.name) for a, b in apart] == [("worse", "elsewhere"), ("better", "elsewhere")]
    first = found[0]
    accuracies = [run.tests[0].tasks["age"]["accuracy"] for run in runs]
    assert first.accuracy.value == pytest.approx(accuracies[1] - accuracies[0])
    assert first.only_first == 0 and first.only_second == round(first.faces * first.accuracy.value)
    assert first.accuracy.interval is not None and first.accuracy.interval[0] > 0
    assert first.loss.value < 0
    # A single fold against the same one of five: fold 0 was not changed.
    same = next(pair for pair in found if (pair.first, pair.second) == (runs[0], runs[3]))
    assert (same.accuracy.value, same.accuracy.interval, same.faces) == (0, (0, 0), first.faces)


def test_a_run_of_one_task_is_paired_on_the_faces_that_have_its_label(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    both, one = leave(tmp_path / "both", made), leave(tmp_path / "one", made, swap=60)
    report = json.loads((one / "report.json").read_text())
    del report["evaluation"]["tasks"]["gender"]
    (one / "report.json").write_text(json.dumps(report))
    with np.load(one / "predictions.npz") as saved:
        known = saved["age"] >= 0
        kept = {name: saved[name][known] for name in saved if "gender" not in name}
    assert not known.all()
    runs = read_runs([str(both), str(one), str(leave(tmp_path / "again", made, swap=60))])
    whole = differences(runs, "age")[0][1]
    np.savez_compressed(one / "predictions.npz", **kept)
    found, apart = differences(read_runs([str(both), str(one)]), "age")
    assert not apart and found[0].faces == known.sum()
    assert (found[0].accuracy, found[0].loss) == (whole.accuracy, whole.loss)
    labels = kept["age"]
    labels[0] = (labels[0] + 1) % 8
    np.savez_compressed(one / "predictions.npz", **kept)
    report["evaluation"]["tasks"]["age"] = measure(kept, "age")
    (one / "report.json").write_text(json.dumps(report))
    found, apart = differences(read_runs([str(both), str(one)]), "age")
    assert apart and not found, "another label"


def test_older_reports_lack_metrics(tmp_path: Path, made: SimpleNamespace) -> None:
    folder = leave(tmp_path / "old", made)
    report = json.loads((folder / "report.json").read_text())
    known = {"count", "loss", "accuracy", "one_off", "balanced_accuracy"}
    known |= {"recall", "support", "confusion"}
    tasks = report["evaluation"]["tasks"]
    report["evaluation"]["tasks"] = {
        task: {name: m[name] for name in known & m.keys()} for task, m in tasks.items()
    }
    report["model"] = {"name": "levi_hassner", "parameters": 7}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "predictions.npz").unlink()
    (run,) = read_runs([str(folder)])
    bars = subgroups(run, "age", "age")
    assert [bars[name].accuracy for name in bars] == [
        r for r in tasks["age"]["recall"] if r is not None
    ]
    assert not subgroups(run, "age", "gender") and reliability(run, "age") is None
    html = compare(tmp_path / "out", folder, leave(tmp_path / "new", made))
    assert "for lack of predictions.npz: old." in html


def change(folder: Path, *path: str, to: Any) -> None:
    report = json.loads((folder / "report.json").read_text())
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    (folder / "report.json").write_text(json.dumps(report))


AGE = ("evaluation", "tasks", "age")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "name"), ["x"], "report.model.name is not text"),
        (("dataset", "leakage"), 5, "report.dataset.leakage is not an object"),
        ((*AGE, "accuracy"), 1.5, "accuracy is out of range"),
        ((*AGE, "range_accuracy"), "oops", "age.range_accuracy is not a number"),
        ((*AGE, "loss"), float("nan"), "it is not JSON"),
        ((*AGE, "confusion"), [[1] * 8] * 7, "age: not 8 classes"),
        ((*AGE, "count"), 10**9, "does not fit the number of faces"),
        ((*AGE, "reliability", "count"), [1], "several lengths"),
        ((*AGE, "intervals", "loss"), [1], "not an interval"),
        (("evaluation", "tasks"), {}, "it tests no task"),
        (("config", "duration"), "many\nepochs", "is damaged"),
        (("config", "duration"), "9 epochs", "it was tested before its end"),
    ],
)
def test_damaged_reports(
    tmp_path: Path, made: SimpleNamespace, path: tuple[str, ...], value: Any, message: str
) -> None:
    folder = leave(tmp_path / "run", made)
    change(folder, *path, to=value)
    with pytest.raises(UserError) as raised:
        compare(tmp_path / "out", folder)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def array_of(shape: str, content: bytes = b"", descr: str = "<i8") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array_of("(1 << 40,)"), "index.npy|malformed|Cannot parse"),
        (array_of(f"({1 << 50},)"), "not a plain array"),
        (array_of("(100,)"), "cut off"),
        (array_of("(1,)", b"\x80\x04N.", "|O"), "not a plain array"),
        (b"no array at all", "magic"),
    ],
)
def test_damaged_predictions(
    tmp_path: Path, made: SimpleNamespace, content: bytes, message: str
) -> None:
    runs = [leave(tmp_path / name, made) for name in ("a", "b")]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("index.npy", content)
    (runs[1] / "predictions.npz").write_bytes(archive.getvalue())
    with pytest.raises(UserError, match=rf"predictions.npz is damaged: .*({message})"):
        compare(tmp_path / "out", *runs)
    (runs[1] / "predictions.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"predictions.npz is damaged"):
        compare(tmp_path / "out", *runs)
    assert not (tmp_path / "out").exists()


def test_predictions_of_another_report(tmp_path: Path, made: SimpleNamespace) -> None:
    one, other = leave(tmp_path / "one", made), leave(tmp_path / "other", made, swap=30)
    (one / "predictions.npz").write_bytes((other / "predictions.npz").read_bytes())
    with pytest.raises(UserError, match="age differs from"):
        compare(tmp_path / "out", one, other)


def test_folders_that_are_not_runs(tmp_path: Path, made: SimpleNamespace) -> None:
    run = leave(tmp_path / "sweep" / "run", made)
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    folds = leave_folds(tmp_path / "folds", made)
    (folds / "fold_3" / "report.json").unlink()
    (tmp_path / "file").write_text("")
    for folder, message in {
        tmp_path / "absent": "absent is not a folder",
        unfinished: "unfinished is not finished",
        tmp_path / "sweep": r"is not a run.*give the runs in it, such as .*sweep/run",
        folds: r"folds is not finished \(fold_3\)",
    }.items():
        with pytest.raises(UserError, match=message):
            compare(tmp_path / "out", folder)
    with pytest.raises(UserError, match="given twice"):
        compare(tmp_path / "out", run, run)
    with pytest.raises(UserError, match="is not a folder"):
        compare(tmp_path / "file", run)


def test_a_sheet_that_is_not_an_image_is_left_out(tmp_path: Path, made: SimpleNamespace) -> None:
    folder = leave(tmp_path / "run", made)
    png = (folder / "faces_age.png").read_bytes()
    sheet = contents._smaller(folder / "faces_age.png")
    assert sheet is not None
    shown = cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (210, 1400, 3)
    for content in (b"<svg onload=alert(1)>", png[:16] + b"\xff\xff\xff\xff" * 2 + png[24:]):
        (folder / "faces_age.png").write_bytes(content)
        assert contents._smaller(folder / "faces_age.png") is None


def test_names_are_short_and_differ(tmp_path: Path, made: SimpleNamespace) -> None:
    first, second = leave(tmp_path / "a" / "run", made), leave(tmp_path / "b" / "run", made)
    field = leave(tmp_path / "name=sgd", made)
    names = [run.name for run in read_runs([str(first), f"Mine={second}", str(field)])]
    assert names == ["a/run", "Mine", f"{tmp_path.name}/name=sgd"]
    with pytest.raises(UserError, match="labels of runs must differ: Mine, Mine"):
        read_runs([f"Mine={first}", f"Mine={second}"])


def test_text_is_escaped_everywhere() -> None:
    cell = Cell(HOSTILE, HOSTILE, color=HOSTILE)
    nodes = [
        Heading(2, HOSTILE, "a"),
        Text(HOSTILE, "warning"),
        Listing([HOSTILE]),
        Facts([(HOSTILE, HOSTILE)]),
        Table([HOSTILE, "b"], [[cell, cell], HOSTILE]),
        Image("a.png", b"", HOSTILE, HOSTILE),
        Image("b.png", b"", HOSTILE, HOSTILE, "<svg></svg>"),
        Details(HOSTILE, [Text(HOSTILE)]),
    ]
    html, text = to_html(HOSTILE, nodes), to_markdown(nodes, "images")
    assert "<script" not in html + text
    assert html.count("&lt;script&gt;") == 21
    assert r"\*x\* \$a\$ \`b\` \|c\|" in text
    # Code is shown as it is, and cannot end its block.
    code = Code(f"{HOSTILE}\n````\n{HOSTILE}")
    assert "<script" not in to_html("", [code])
    assert to_markdown([code]).splitlines()[0] == to_markdown([code]).splitlines()[-1] == "`" * 5


def test_long_texts_in_tables_wrap() -> None:
    """An error message beside figures must not make the page wider than the window."""
    error = "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx"
    rows = ["Long bands, too", [Cell("failed", error), Cell("49.1", "40.0–60.0")]]
    html = to_html("", [Table(["a", "b"], rows)])
    assert f'<small class="long">{error}</small>' in html and "<small>40.0–60.0</small>" in html
    assert '<td colspan="2"><span>Long bands, too</span></td>' in html
    (rule,) = re.findall(r"td small\.long {(.*?)}", html)
    assert "white-space: normal" in rule and "overflow-wrap: anywhere" in rule
