"""Metrics, pages and files of the evaluation of any predictors, on faces with known answers."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agenet.errors import UserError
from agenet.evaluation.metrics import task_metrics
from agenet.evaluation.page import Browser, to_html
from agenet.evaluation.predictors.contents import Evaluation, compose
from agenet.evaluation.predictors.faces import MAX_GROUPS, LabelledFaces, divide_faces
from agenet.evaluation.predictors.gallery import choose_faces, make_browser
from agenet.evaluation.predictors.measures import (
    Measured,
    compare,
    estimates,
    face_values,
    measure,
)
from agenet.evaluation.predictors.prediction_files import read_predictions
from agenet.evaluation.predictors.predictions import Predictions, from_predictions
from agenet.evaluation.predictors.report import summarize, to_csv
from agenet.faces.face import Prediction
from agenet.labels import UNKNOWN, nearest_age_group_of_range

HOSTILE = "<script>alert(1)</script>"


def make_faces(count: int = 40, **columns: list[str]) -> LabelledFaces:
    """Ages in turn 5, 20-29, unknown and 60; genders in turn; two faces of each subject."""
    ranges = [[(5, 5), (20, 29), (UNKNOWN, UNKNOWN), (60, 60)][i % 4] for i in range(count)]
    low, high = np.array(ranges, np.int32).T
    groups = [UNKNOWN if a < 0 else nearest_age_group_of_range(a, b) for a, b in ranges]
    return LabelledFaces(
        name="a table",
        notice="",
        row=np.arange(count) + 2,
        path=[f"faces/{i}.jpg" for i in range(count)],
        subject=np.arange(count) // 2,
        age_low=low,
        age_high=high,
        age_group=np.array(groups),
        gender=np.arange(count) % 2,
        columns=columns,
    )


def predict(faces: LabelledFaces, name: str = "thirty") -> Predictions:
    """30 years (25 to 34) and male with 75 % for all but the first face."""
    said = Prediction(30.0, "25-32", {"25-32": 0.5}, "male", 0.75, (25, 34))
    return from_predictions(name, [None, *[said] * (len(faces) - 1)])


def test_values_of_each_face() -> None:
    faces = make_faces(4)
    values = face_values(faces, predict(faces))
    nan = np.nan
    np.testing.assert_equal(values["gender_accuracy"], [nan, 1, 0, 1])
    np.testing.assert_equal(values["range_error"], [nan, 1, nan, 30])
    np.testing.assert_equal(values["inside"], [nan, 0, nan, 0])
    np.testing.assert_equal(values["mae"], [nan, nan, nan, 30])
    np.testing.assert_equal(values["bias"], [nan, nan, nan, -30])
    np.testing.assert_equal(values["cs5"], [nan, nan, nan, 0])
    # 20-29 is nearest to 25-32, and 60 is three groups from it.
    np.testing.assert_equal(values["age_accuracy"], [nan, 1, nan, 0])
    np.testing.assert_equal(values["one_off"], [nan, 1, nan, 0])
    np.testing.assert_equal(values["coverage"], [nan, nan, nan, 0])
    np.testing.assert_equal(values["range_coverage"], [nan, 1, nan, nan])


def test_an_age_inside_its_range_has_no_error() -> None:
    faces = make_faces(4)
    predictions = replace(predict(faces), age=np.array([5.4, 20, 3, 60.6]))
    values = face_values(faces, predictions)
    np.testing.assert_allclose(values["range_error"], [0.4, 0, np.nan, 0.6])
    np.testing.assert_equal(values["inside"], [1, 1, np.nan, 0])


def test_measures_and_subgroups() -> None:
    faces = make_faces(race=["a"] * 20 + ["b"] * 19 + [""])
    divisions = divide_faces(faces, ["race"])
    assert [(d.name, d.groups) for d in divisions] == [
        ("gender", ("female", "male")),
        ("age range", ("20-29",)),
        ("exact age", ("3-9", "60-69")),
        ("race", ("a", "b")),
    ]
    done: list[int] = []
    found = measure(faces, predict(faces), divisions, done.append)
    assert sum(done) == 8 and found.missing == 1
    gender = found.estimates["gender_accuracy"]
    assert (gender.value, gender.faces, gender.subjects) == (pytest.approx(20 / 39), 39, 20)
    assert gender.interval and gender.interval[0] < 20 / 39 < gender.interval[1]
    assert found.confusion["gender"].tolist() == [[0, 19], [0, 20]]
    # Predicted male with 75 % throughout, and right for 20 of 39.
    calibration = found.estimates["gender_calibration_error"]
    assert calibration.value == pytest.approx(0.75 - 20 / 39) and calibration.interval is None
    groups = {(g.division, g.name): g for g in found.groups}
    assert groups["gender", "male"].estimates["gender_accuracy"].value == 1
    assert groups["race", "b"].faces == 19
    assert groups["exact age", "60-69"].estimates["mae"].value == 30


def test_gender_agrees_with_the_metrics_of_runs() -> None:
    rng = np.random.default_rng(0)
    faces = make_faces(400)
    male = rng.uniform(0.01, 0.99, 400)
    said = [
        Prediction(gender=("female", "male")[int(p > 0.5)], gender_probability=max(p, 1 - p))
        for p in male
    ]
    found = measure(faces, from_predictions("x", said), [])
    expected = task_metrics("gender", np.log(np.stack([1 - male, male], 1)), faces.gender)
    assert found.estimates["gender_accuracy"].value == pytest.approx(expected["accuracy"])
    error = found.estimates["gender_calibration_error"].value
    assert error == pytest.approx(expected["calibration_error"])
    assert found.confusion["gender"].tolist() == expected["confusion"]


def test_faces_of_a_subject_are_drawn_together() -> None:
    """All images of a subject are alike: ten times as many of them narrow nothing."""
    rng = np.random.default_rng(0)
    value = rng.uniform(size=50)
    once = estimates({"x": value}, np.arange(50))["x"]
    often = estimates({"x": np.repeat(value, 10)}, np.repeat(np.arange(50), 10))["x"]
    assert once.interval == pytest.approx(often.interval)
    unknown = replace(make_faces(6), subject=np.array([3, UNKNOWN, 3, UNKNOWN, UNKNOWN, 4]))
    assert len(np.unique(unknown.resampled())) == 5
    assert estimates({"x": value[:9]}, np.arange(9))["x"].interval is None


def test_differences_are_of_the_faces_of_both() -> None:
    faces = make_faces()
    first, second = predict(faces), predict(faces, "women")
    women = np.where(np.arange(40) < 30, 0, UNKNOWN)
    second = replace(second, gender=women, age=np.full(40, np.nan))
    (found,) = compare(faces, [first, second])
    assert (found.first, found.second) == ("thirty", "women")
    # Faces 1 to 29: the first is right for 15, the second for 14.
    assert found.estimates["gender_accuracy"].faces == 29
    assert found.estimates["gender_accuracy"].value == pytest.approx(-1 / 29)
    assert "mae" not in found.estimates


def test_columns_that_divide_nothing() -> None:
    names = [str(i) for i in range(MAX_GROUPS + 1)]
    faces = make_faces(len(names), name=names, empty=[""] * len(names))
    for by, message in (
        ("nmae", "--by nmae: a table has of name, empty; gender and age are always used"),
        ("name", f"--by name: {MAX_GROUPS + 1} values in a table, 1 to {MAX_GROUPS} are possible"),
        ("empty", "--by empty: 0 values"),
    ):
        with pytest.raises(UserError, match=message):
            divide_faces(faces, [by])


# Predictions of other programs.


def read(tmp_path: Path, text: str, faces: LabelledFaces | None = None) -> Predictions:
    path = tmp_path / "other.csv"
    path.write_text(text)
    return read_predictions("other", path, faces or make_faces(4))


def test_predictions_by_path(tmp_path: Path) -> None:
    text = (
        "file,face,left,age,age_low,age_high,age_group,gender,gender_probability\n"
        "./faces/1.jpg,1,0,31.5,25,36,25-32,male,0.9\nfaces/1.jpg,2,9,3,2,4,0-2,female,0.9\n"
        "faces/3.jpg,1,0,25-32,,,,F,\nfaces/0.jpg,,,,,,,,\nfaces/99.jpg,1,0,3,,,,m,\n"
    )
    found = read(tmp_path, text)
    np.testing.assert_equal(found.age, [np.nan, 31.5, np.nan, 28.5])
    assert found.age_group.tolist() == [-1, 4, -1, 4]
    assert found.gender.tolist() == [-1, 1, -1, 0]
    np.testing.assert_equal(found.gender_probability, [np.nan, 0.9, np.nan, np.nan])
    assert (found.age_low[1], found.age_high[1]) == (25, 36)
    assert "1 of 5 rows" in found.notes[0] and "faces/99.jpg" in found.notes[0]
    assert "1 rows of the file are about a face that an earlier row" in found.notes[1]


def test_predictions_by_the_names_of_files(tmp_path: Path) -> None:
    found = read(tmp_path, "image;sex\nD:\\x\\1.jpg;woman\nD:\\y\\2.jpg;m\nz/3.jpg;f\ny/3.jpg;m\n")
    # Two files are called 3.jpg.
    assert found.gender.tolist() == [-1, 0, 1, -1]


def test_predictions_by_row(tmp_path: Path) -> None:
    faces = replace(make_faces(4), path=())
    assert read(tmp_path, "row,age\n5,7\n3,150\n", faces).age.tolist()[1::2] == [100, 7]
    with pytest.raises(UserError, match='needs a column "row": the faces of a table have no files'):
        read(tmp_path, "path,age\n5,7\n", faces)


def test_own_predictions_can_be_read_again(tmp_path: Path) -> None:
    faces = make_faces(8)
    predictions = replace(predict(faces), gender_probability=np.full(8, 0.625))
    again = read(tmp_path, to_csv(faces, [predictions]), faces)
    for name in ("age", "age_low", "age_high", "age_group", "gender"):
        np.testing.assert_equal(getattr(again, name), getattr(predictions, name))
    with pytest.raises(UserError, match="holds predictions of several predictors"):
        read(tmp_path, to_csv(faces, [predictions, replace(predictions, name="b")]), faces)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,age\nx\x1b.jpg,3\ny.jpg,4\n",
            r"none of its 2 image files is in a table: x\?.jpg, y",
        ),
        ("path,age\nfaces/1.jpg,old\n", "line 2: the age 'old' is neither a number"),
        ("path,age\nfaces/1.jpg,-3\n", "line 2: the age -3 is below 0"),
        ("path,gender\nfaces/1.jpg,1\n", "line 2: the gender '1' is not known"),
        (
            "path,gender,gender_probability\nfaces/1.jpg,f,97\n",
            "line 2: gender_probability is 97: it must be from 0 to 1",
        ),
        ("path,agee\nfaces/1.jpg,3\n", 'needs a column "age" or "gender": it has path, agee'),
        ("path,age\n", "has a header, but no rows"),
    ],
)
def test_mistakes_in_predictions(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


# The page.


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    faces = replace(
        make_faces(race=[HOSTILE] * 20 + ["b"] * 20),
        path=[f"{HOSTILE}{i}.jpg" for i in range(40)],
        name=HOSTILE,
    )
    predictors = [predict(faces, HOSTILE), replace(predict(faces, "b"), gender=1 - faces.gender)]
    divisions = divide_faces(faces, ["race"])
    measured: list[Measured] = [measure(faces, each, divisions) for each in predictors]
    changed = {HOSTILE: {"grey": measured[0].estimates}}
    notes = [HOSTILE]
    return Evaluation(faces, measured, compare(faces, predictors), changed, notes, HOSTILE)


def browse(evaluation: Evaluation, count: int = 1000) -> Browser:
    predictors = [each.predictions for each in evaluation.measured]
    faces = evaluation.faces
    images = [None, *[np.full((50, 40, 3), 99, np.uint8)] * (len(faces) - 1)]
    chosen = choose_faces(faces, predictors, count)
    divisions = divide_faces(faces, ["race"])
    return make_browser(
        faces, predictors, divisions, chosen, lambda positions: [images[i] for i in positions]
    )


def test_every_cell_has_faces(evaluation: Evaluation) -> None:
    predictors = [each.predictions for each in evaluation.measured]
    faces, chosen = evaluation.faces, choose_faces(evaluation.faces, predictors, 10)
    assert len(chosen) == 10 == len({*chosen.tolist()})
    for each in predictors:
        for task in ("age", "gender"):
            pairs = np.stack([faces.label(task), each.predicted(task)], 1)
            occur = {*map(tuple, pairs[(pairs != UNKNOWN).all(1)].tolist())}
            assert occur <= {*map(tuple, pairs[chosen].tolist())}
    # Nothing is known of the first face but from the second predictor.
    assert len(choose_faces(faces, predictors[:1], 100)) == 39


def test_the_most_confident_errors_come_first() -> None:
    faces = make_faces(40)
    sure = np.linspace(0.5, 1, 40)
    predictions = replace(predict(faces), gender_probability=sure, age_group=np.full(40, -1))
    # Errors are the women, at even places; of the men one for four of them.
    assert sorted(choose_faces(faces, [predictions], 5).tolist()) == [32, 34, 36, 38, 39]


def test_the_page_is_safe_and_complete(evaluation: Evaluation) -> None:
    browser = browse(evaluation)
    page = to_html("t", compose(evaluation, {}, browser))
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1 and "script-src 'sha256-" in page
    assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page
    assert len(browser.cards) == page.count("<figure data-face=") == 39
    for text in ("Differences", "Changed images", "true \\ predicted", "Gender by subgroup"):
        assert text in page
    assert '<a href="#browser" data-predictor="1" data-task="gender"' in page
    face = json.loads(browser.cards[0].data)
    assert face.keys() == {"true", "by", "groups"} and len(face["by"]) == 2
    # Groups are the values of the filter.
    (groups,) = (choice for choice in browser.choices if choice.key == "group")
    known = {value for _, options in groups.options for value, _ in options}
    assert {*face["groups"]} <= known


def test_pages_without_faces_have_no_script(evaluation: Evaluation) -> None:
    page = to_html("t", compose(evaluation, {}, None))
    assert "<script" not in page and "script-src" not in page


def test_report_as_data(evaluation: Evaluation) -> None:
    report = json.loads(json.dumps(summarize(evaluation)))
    assert [each["missing"] for each in report["predictors"]] == [1, 0]
    metrics = report["predictors"][0]["metrics"]["gender_accuracy"]
    assert metrics["faces"] == 39 and len(metrics["interval"]) == 2
    assert report["differences"][0]["metrics"]["gender_accuracy"]["value"] < 0
    rows = list(
        csv.DictReader(to_csv(evaluation.faces, [evaluation.measured[0].predictions]).splitlines())
    )
    assert len(rows) == 40 and rows[1]["gender"] == "male" and rows[0]["gender"] == ""
    assert rows[0]["label_age_low"] == "5" and rows[2]["label_age_low"] == ""


def test_names_cannot_be_formulas() -> None:
    faces = replace(make_faces(2), path=["=cmd|' /C calc'!A0", "a\nb"])
    rows = list(csv.DictReader(to_csv(faces, [predict(faces)]).splitlines()))
    assert [row["path"] for row in rows] == ["./=cmd|' /C calc'!A0", "a\\nb"]
