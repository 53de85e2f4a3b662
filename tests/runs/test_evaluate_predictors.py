"""`agenet evaluate` on faces in memory and in files, with predictors whose answers are known."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.cli.app import run_command
from agenet.data.records import Records
from agenet.errors import UserError
from agenet.evaluation.predictors.contents import Evaluation
from agenet.faces.face import Prediction
from agenet.inference.conditions import CONDITIONS
from agenet.runs import evaluate_predictors, labelled_faces
from agenet.runs.evaluate_predictors import evaluate
from agenet.runs.evaluated_models import Model, open_models, split_name
from agenet.runs.labelled_faces import TestFaces, open_prepared, open_table

PLUGIN = """
def predict(images):
    # Green is 100 for women and 200 for men, see tests.conftest.noise_records.
    male = [float(image[..., 1].mean() > 160) for image in images]
    return [30.0] * len(images), male
"""


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records(120)


@pytest.fixture
def test_faces(records: Records, monkeypatch: pytest.MonkeyPatch) -> TestFaces:
    monkeypatch.setattr(labelled_faces, "open_records", lambda *args: records)
    return open_prepared("noise/faces:fold_0")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    return f"{path}:predict"


def thirty(images: Sequence[np.ndarray]) -> list[Prediction]:
    return [Prediction(age=30.0, gender="male", gender_probability=0.9) for _ in images]


def test_parts_of_a_data_set(records: Records, test_faces: TestFaces) -> None:
    faces = test_faces.faces
    assert faces.name == "noise/faces/1.0.0, fold_0" and not faces.path
    assert (records.fold[faces.row] == 0).all() and len(faces) == (records.fold == 0).sum()
    assert len(open_prepared("noise").faces) == 120
    some = open_prepared("noise/faces:all", count=7).faces
    assert len(some) == 7 and (some.row == open_prepared("noise/faces", count=7).faces.row).all()
    message = re.escape('no split "train": noise/faces/1.0.0 has the splits fold_0, fold_1, fold_2')
    with pytest.raises(UserError, match=message):
        open_prepared("noise/faces:train")


def test_report(test_faces: TestFaces, plugin: str, tmp_path: Path) -> None:
    known = np.unique(test_faces.faces.subject)[:2]
    seen = base64.b64encode(known.astype("<i8").tobytes()).decode()
    models = [*open_models([f"mine={plugin}"]), Model("b", "a source", 20, thirty, {"noise": seen})]
    out = tmp_path / "out"
    found = evaluate(
        test_faces, models, [], out=out, conditions=True, shown_faces=9, command="agenet evaluate"
    )
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "report.md", "report.json", "predictions.csv"} < names
    report = json.loads((out / "report.json").read_text())
    mine, thirties = report["predictors"]
    assert mine["metrics"]["gender_accuracy"]["value"] == 1
    gender = test_faces.faces.gender
    share = (gender[gender >= 0] == 1).mean()
    assert thirties["metrics"]["gender_accuracy"]["value"] == pytest.approx(share)
    low, high = test_faces.faces.age_low, test_faces.faces.age_high
    outside = np.maximum(np.maximum(low - 30, 30 - high), 0)[low >= 0]
    assert mine["metrics"]["range_error"]["value"] == pytest.approx(outside.mean())
    assert mine["metrics"]["inside"]["value"] == pytest.approx((outside < 0.5).mean())
    assert list(mine["conditions"]) == list(CONDITIONS)
    # Who is mirrored keeps the colours, and who is grey does not.
    assert mine["conditions"]["mirrored"]["gender_accuracy"]["value"] == 1
    assert mine["conditions"]["grey"]["gender_accuracy"]["value"] < 0.9
    count = int(np.isin(test_faces.faces.subject, known).sum())
    assert count and thirties["notes"][0].startswith(f"{count} of the {len(gender)} faces show")
    assert not mine["notes"]
    page = (out / "report.html").read_text()
    assert page.count("<figure data-face=") == 9 and "This page holds 9 of the" in page
    assert found.measured[0].missing == 0


def write_table(folder: Path, records: Records, header: str, rows: list[str]) -> Path:
    for row in range(6):
        (folder / f"{row}.png").write_bytes(records.images[row])
    (folder / "faces.csv").write_text("\n".join([header, *rows, ""]))
    return folder / "faces.csv"


def test_a_table_on_the_command_line(
    records: Records, plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genders = [("f", "m", "")[g] for g in records.labels["gender"][:6]]
    rows = [f"{i}.png,{20 + i},{g},{'ab'[i % 2]}" for i, g in enumerate(genders)]
    table = write_table(tmp_path, records, "file,age,gender,kind", [*rows, "none.png,3,f,a"])
    other = tmp_path / "other.csv"
    other.write_text("file,gender\n0.png,f\n5.png,f\n")
    out = tmp_path / "out"
    arguments = [f"--model={plugin}", f"--predictions={other}", "--by=kind", f"--out={out}"]
    run_command(["evaluate", f"--table={table}", *arguments])
    printed = capsys.readouterr()
    assert "| MAE, years " in printed.out and str(out / "report.html") in printed.out
    assert "1 of 7 faces could not be shown to the models" in printed.err
    report = json.loads((out / "report.json").read_text())
    mine, theirs = report["predictors"]
    assert (mine["name"], mine["missing"]) == ("mine.py:predict", 1)
    assert (theirs["name"], theirs["missing"]) == ("other", 5)
    assert mine["metrics"]["mae"] == {
        "value": pytest.approx(np.mean([10, 9, 8, 7, 6, 5])),
        "interval": None,
        "faces": 6,
        "subjects": 6,
    }
    assert {("kind", "a"), ("kind", "b")} <= {
        (group["division"], group["name"]) for group in mine["subgroups"]
    }
    with pytest.raises(UserError, match="has a report: name another folder with --out, or add"):
        run_command(["evaluate", f"--table={table}", *arguments])


def test_splits_and_boxes_of_a_table(records: Records, tmp_path: Path) -> None:
    rows = ["0.png,30,train,,,,", "1.png,30-40,test,2,2,18,18", "2.png,50,test,,,,"]
    table = write_table(tmp_path, records, "path,age,split,left,top,right,bottom", rows)
    test = open_table(table)
    assert test.faces.name == "faces.csv, test" and test.faces.path == ["1.png", "2.png"]
    assert "1 are cut at the boxes of the table and 1 are whole images" in test.notes[0]
    cut, whole = test.source.load([0, 1], [64])
    assert isinstance(cut, dict) and cut[64].shape == (64, 64, 3)
    assert isinstance(whole, dict)
    image = cv2.imdecode(np.frombuffer(records.images[2], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert (whole[64] == image).all()
    assert len(open_table(table, split="all").faces) == 3
    with pytest.raises(UserError, match=r'no split "val": .* has the splits test, train, all'):
        open_table(table, split="val")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,x", "0.png,3", "faces.csv has no labels: neither an age nor a gender is known"),
        ("path,gender", "none.png,f", "none of the 1 images of faces.csv can be used: none.png: n"),
    ],
)
def test_tables_that_cannot_be_used(
    records: Records, plugin: str, tmp_path: Path, header: str, row: str, message: str
) -> None:
    table = write_table(tmp_path, records, header, [row])
    with pytest.raises(UserError, match=message):
        run_command(["evaluate", f"--table={table}", f"--model={plugin}", f"--out={tmp_path}/o"])
    assert not (tmp_path / "o").exists()


def test_a_predictor_that_fails_late_costs_no_other(
    test_faces: TestFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(evaluate_predictors, "_AT_ONCE", 10)

    def fails(images: Sequence[np.ndarray]) -> Sequence[Prediction | None]:
        calls.append(len(images))
        if len(calls) > 1:
            raise UserError("it ran out of luck")
        return thirty(images)

    def run(*models: Model) -> Evaluation:
        return evaluate(test_faces, models, [], out=tmp_path / "o", shown_faces=0, command="")

    evaluation = run(Model("a", "", 20, fails), Model("b", "", 20, thirty))
    assert [each.predictions.name for each in evaluation.measured] == ["b"]
    assert evaluation.failed == ["it ran out of luck"] and len(calls) == 2
    assert "Without a, which failed: it ran out of luck." in (tmp_path / "o/report.md").read_text()
    with pytest.raises(UserError, match="out of luck"):
        run(Model("a", "", 20, fails))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the faces: either --data DATA_SET or --table FILE"),
        (["--table=a.csv", "--data=a/b"], "name the faces: either"),
        (["--table=a.csv", "--workdir=b"], "give --model b instead"),
        (["--table=a.csv", "--test_views=2"], "--test_views goes with --workdir"),
        (["--data=a/b", "--detect"], "--detect, --images and --split go with --table"),
        (["--table=a.csv", "--predictions=x=y.csv"], "--predictions x=y.csv: no such file"),
        (["--table=none.csv"], "none.csv: no such file"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_command(["evaluate", *arguments])


def test_predictors_that_do_not_fit(test_faces: TestFaces, plugin: str, tmp_path: Path) -> None:
    def run(*models: Model) -> None:
        evaluate(test_faces, models, [], out=tmp_path / "o", shown_faces=0, command="")

    model = open_models([plugin])[0]
    for models, message in (
        ([model, model], 'two predictors are called "mine.py:predict": give one of them a name'),
        ([model] * 11, "11 predictors: at most 10 fit on one page"),
        ([Model("a\nb", "", 20, thirty)], "is no name of a predictor"),
        ([Model("a", "", 20, lambda images: [None] * len(images))], "it predicts nothing at all"),
    ):
        with pytest.raises(UserError, match=message):
            run(*models)
    with pytest.raises(UserError, match='there is no predictor "defualt": give default'):
        open_models(["defualt"])
    assert split_name("a=b=c") == ("a", "b=c")
