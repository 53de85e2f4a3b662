"""Metrics against hand-worked cases and, where it is installed, scikit-learn."""

import doctest
import json
import math

import numpy as np
import pytest

from agenet.evaluation import bootstrap, metrics
from agenet.evaluation.metrics import (
    expected_age,
    in_ranges,
    range_accuracy,
    report_metrics,
    task_metrics,
)
from agenet.labels import AGE_GROUPS


def log_probs_for(predicted, classes, sure=0.9):
    """Log-probabilities [N, classes] that give each prediction the probability `sure`."""
    probs = np.full((len(predicted), classes), (1 - sure) / (classes - 1))
    probs[np.arange(len(predicted)), predicted] = sure
    return np.log(probs)


def random_case(seed, n=400, classes=8):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(classes), size=n))
    return log_probs.astype(np.float32), rng.integers(-1, classes, size=n)


def report_case(task, seed=0, n=300, subjects=40):
    """Arguments of `report_metrics`; subjects differ in how well they are recognised."""
    rng = np.random.default_rng(seed)
    classes = {"age": 8, "gender": 2}[task]
    subject_id, labels = rng.integers(100, 100 + subjects, n), rng.integers(-1, classes, n)
    logits = rng.normal(size=(n, classes)).round(1)  # Rounded, so that there are ties.
    logits[np.arange(n), labels] += subject_id % 5 / 2
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    age = labels if task == "age" else rng.integers(-1, 8, n)
    years = {
        "true_age": np.where(rng.random(n) < 0.5, rng.integers(0, 90, n), -1),
        "predicted_age": expected_age(log_probs) if task == "age" else rng.uniform(0, 90, n),
    }
    groups = {"age": age, "race": rng.integers(-1, 7, n)}
    return {"task": task, "log_probs": log_probs, "labels": labels, "subject_id": subject_id} | {
        "groups": groups,
        **years,
    }


def rows_of(case, rows):
    """The same arguments of some faces only, or in another order."""
    arrays = {k: v[rows] for k, v in case.items() if isinstance(v, np.ndarray)}
    return case | arrays | {"groups": {k: v[rows] for k, v in case["groups"].items()}}


def main_metrics(metrics):
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
    return numbers | {f"{k} interval": v for k, v in metrics["intervals"].items()}


def test_docstring_example():
    assert doctest.testmod(metrics).failed == 0


def test_age_by_hand():
    #            exact, 1-off, 2 off, exact, 1-off, unknown
    labels = np.array([0, 0, 0, 4, 5, -1])
    got = task_metrics("age", log_probs_for([0, 1, 2, 4, 4, 7], 8), labels)
    assert got["count"] == 5
    assert got["accuracy"] == pytest.approx(2 / 5)
    assert got["one_off"] == pytest.approx(4 / 5)
    assert got["recall"] == [pytest.approx(1 / 3), None, None, None, 1, 0, None, None]
    assert got["balanced_accuracy"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert got["support"] == [3, 0, 0, 0, 1, 1, 0, 0]
    right, wrong = -math.log(0.9), -math.log(0.1 / 7)
    assert got["loss"] == pytest.approx((2 * right + 3 * wrong) / 5)
    # Rows are the truth: the face of group 5 that was taken for group 4.
    assert got["confusion"][5][4] == 1 and got["confusion"][4][5] == 0


def test_gender_has_no_one_off():
    got = task_metrics("gender", log_probs_for([0, 1, 1, 1], 2), np.array([0, 0, 1, 1]))
    assert "one_off" not in got
    assert got["confusion"] == [[1, 1], [0, 2]]
    assert got["balanced_accuracy"] == 0.75


@pytest.mark.parametrize("labels", [np.array([], dtype=np.int32), np.array([-1, -1])])
def test_no_labelled_face(labels):
    got = task_metrics("age", np.zeros((len(labels), 8)), labels)
    assert got["count"] == 0
    assert got["loss"] is got["accuracy"] is got["one_off"] is got["balanced_accuracy"] is None
    assert got["recall"] == [None] * 8


def test_json_round_trip():
    got = task_metrics("age", *random_case(0))
    assert json.loads(json.dumps(got, allow_nan=False)) == got


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (np.zeros((2, 8)), [0, 1], r"shape \(2, 8\)"),
        (np.zeros((3, 2)), [0, 1], "for 2 labels"),
        (np.zeros((2, 2)), [0, 2], "outside 0 to 1"),
        (np.zeros((2, 2)), [0, -2], "outside 0 to 1"),
        (np.full((2, 2), np.nan), [0, 1], "not finite"),
    ],
)
def test_wrong_input(log_probs, labels, message):
    with pytest.raises(ValueError, match=message):
        task_metrics("gender", log_probs, np.array(labels))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed):
    oracle = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    log_probs, labels = random_case(seed)
    got = task_metrics("age", log_probs, labels)
    known = labels >= 0
    truth, predicted = labels[known], log_probs[known].argmax(1)
    assert got["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    balanced = oracle.balanced_accuracy_score(truth, predicted)
    assert got["balanced_accuracy"] == pytest.approx(balanced)
    assert got["confusion"] == oracle.confusion_matrix(truth, predicted).tolist()
    recall = oracle.recall_score(truth, predicted, average=None)
    np.testing.assert_allclose(np.array(got["recall"], dtype=float), recall)
    probs = np.exp(log_probs[known].astype(np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    assert got["loss"] == pytest.approx(oracle.log_loss(truth, probs), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_roc_auc_agrees_with_scikit_learn(seed):
    oracle = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    case = report_case("gender", seed)
    log_probs, labels = case["log_probs"], case["labels"]
    known = labels >= 0
    score = (log_probs[:, 1] - log_probs[:, 0])[known]
    assert len(np.unique(score)) < len(score)
    got = task_metrics("gender", log_probs, labels)["roc_auc"]
    assert got == pytest.approx(oracle.roc_auc_score(labels[known], score), abs=1e-12)


def test_calibration_by_hand():
    # Sure by 0.9 and 3 of 4 right, sure by 0.62 and 1 of 2 right; unknown ones do not count.
    log_probs = np.concatenate(
        [log_probs_for([0, 0, 1, 1], 2, sure=0.9), log_probs_for([0, 1, 1], 2, sure=0.62)]
    )
    got = task_metrics("gender", log_probs, np.array([0, 0, 1, 0, 0, 0, -1]))
    assert got["calibration_error"] == pytest.approx((4 * 0.15 + 2 * 0.12) / 6)
    filled = {i: n for i, n in enumerate(got["reliability"]["count"]) if n}
    assert filled == {9: 2, 13: 4}
    assert got["reliability"]["accuracy"][13] == 0.75
    assert got["reliability"]["confidence"][0] is None


def test_years_by_hand():
    log_probs = log_probs_for([0, 4, 4], 8, sure=1 - 1e-12)
    assert expected_age(log_probs) == pytest.approx([1, 28.5, 28.5])
    case = {"subject_id": np.array([1, 1, 2]), "groups": {}, "predicted_age": np.full(3, 28.5)}
    ages = {"true_age": np.array([-1, 23, 33])}
    # The second face has an exact age but no group; the first a group but no exact age.
    got = report_metrics("age", log_probs, np.array([0, -1, 4]), **case, **ages)
    assert (got["count"], got["exact_ages"]) == (2, 2)
    assert (got["mae"], got["cs5"]) == (5.0, 0.5)
    none = report_metrics("age", log_probs, np.array([0, -1, 4]), **case, true_age=np.full(3, -1))
    assert (
        not {"exact_ages", "mae", "cs5"} & none.keys() | {"mae", "cs5"} & none["intervals"].keys()
    )


def test_midpoints_lie_in_their_groups():
    for group, middle in zip(AGE_GROUPS[:-1], metrics.AGE_MIDPOINTS, strict=False):
        assert middle == sum(map(int, group.split("-"))) / 2


@pytest.mark.parametrize("task", ["age", "gender"])
def test_intervals_agree_with_a_naive_bootstrap(task, monkeypatch):
    """Against copies of the faces of subjects drawn one by one; both are random, so roughly."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 4000)
    case = report_case(task, n=200, subjects=25)
    case["true_age"] = np.where(case["labels"] >= 0, case["true_age"], -1)
    got = report_metrics(**case)
    assert got["intervals"].pop("calibration_error") is None
    case = rows_of(case, case["labels"] >= 0)
    rng = np.random.default_rng(7)
    faces_of = [np.flatnonzero(case["subject_id"] == s) for s in np.unique(case["subject_id"])]
    drawn = {name: [] for name in got["intervals"]}
    monkeypatch.setattr(bootstrap, "MIN_SUBJECTS", 10**9)  # Figures only.
    for _ in range(1000):
        rows = np.concatenate([faces_of[i] for i in rng.integers(len(faces_of), size=25)])
        resample = report_metrics(**rows_of(case, rows) | {"groups": {}})
        for name, values in drawn.items():
            values.append(resample[name])
    for name, (low, high) in got["intervals"].items():
        tolerance = 0.15 * (high - low)
        assert np.percentile(drawn[name], [2.5, 97.5]) == pytest.approx([low, high], abs=tolerance)
        assert low < high


@pytest.mark.parametrize("task", ["age", "gender"])
def test_order_of_faces_does_not_matter(task):
    case = report_case(task)
    before = report_metrics(**case)
    after = report_metrics(**rows_of(case, np.random.default_rng(1).permutation(300)))
    for name, value in main_metrics(before).items():
        assert main_metrics(after)[name] == pytest.approx(value, abs=1e-12), name


def test_subjects_are_drawn_not_images():
    case = report_case("age")
    got = main_metrics(report_metrics(**case))
    twice = main_metrics(report_metrics(**rows_of(case, np.repeat(np.arange(300), 2))))
    for name, value in got.items():
        assert twice[name] == pytest.approx(value), name
    # As subjects of their own the copies would say twice as much as there is.
    split = rows_of(case, np.repeat(np.arange(300), 2))
    split["subject_id"] = split["subject_id"] + 1000 * (np.arange(600) % 2)
    split = main_metrics(report_metrics(**split))
    assert split["accuracy"] == pytest.approx(got["accuracy"])
    width, narrow = (np.ptp(figures["accuracy interval"]) for figures in (got, split))
    assert 0.6 < narrow / width < 0.8


def test_ages_in_any_grouping():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(101), 40)
    ranges = [(0, 9), (10, 39), (40, 100)]
    expected = np.stack([probs[:, low : high + 1].sum(1) for low, high in ranges], 1)
    np.testing.assert_allclose(np.exp(in_ranges(np.log(probs), ranges)), expected)
    true, subject = rng.integers(-1, 3, 40), rng.integers(0, 20, 40)
    low, high = (np.array([r[i] for r in ranges] + [-1])[true] for i in (0, 1))
    share = (expected.argmax(1) == true)[true >= 0].mean()
    found = range_accuracy(np.log(probs), low, high, subject)
    assert found is not None
    value, interval = (part["range_accuracy"] for part in found)
    assert value == pytest.approx(share) and interval[0] < share < interval[1]
    assert range_accuracy(np.log(probs), low, low, subject) is None  # years
    assert range_accuracy(np.log(probs), low, high + 1, subject) is None  # overlap


def test_no_interval_for_few_subjects():
    case = report_case("gender")
    for subjects, has in ((1, False), (9, False), (10, True)):
        got = report_metrics(**case | {"subject_id": np.arange(300) % subjects})
        assert got["subjects"] == subjects
        assert got["intervals"].pop("calibration_error") is None
        assert all((interval is not None) == has for interval in got["intervals"].values())


def test_undefined_metrics_have_no_interval():
    case = report_case("gender")
    women = np.where(case["labels"] >= 0, 0, -1)
    got = report_metrics(**case | {"labels": women})
    assert got["roc_auc"] is got["intervals"]["roc_auc"] is None
    assert got["intervals"]["accuracy"] is not None
    # One man among 40 subjects: more than a third of the resamples lack him.
    women[np.flatnonzero(women == 0)[0]] = 1
    got = report_metrics(**case | {"labels": women})
    assert got["roc_auc"] is not None and got["intervals"]["roc_auc"] is None


@pytest.mark.parametrize("task", ["age", "gender"])
def test_subgroups_have_the_metrics_of_their_faces(task):
    case = report_case(task)
    got = report_metrics(**case)
    json.dumps(got, allow_nan=False)
    assert list(got["subgroups"]) == ["age", "race"]
    assert [group["name"] for group in got["subgroups"]["age"]] == list(AGE_GROUPS)
    for place, group in enumerate(got["subgroups"]["age"]):
        alone = report_metrics(**rows_of(case, case["groups"]["age"] == place))
        assert group == {name: alone[name] for name in group if name != "name"} | {
            "name": group["name"]
        }
    assert report_metrics(**rows_of(case, case["groups"]["race"] != 2))["subgroups"]["race"] == [
        group for group in got["subgroups"]["race"] if group["name"] != "Indian"
    ]


def test_nothing_labelled_has_no_subgroups():
    case = report_case("age")
    case |= {"labels": np.full(300, -1), "true_age": np.full(300, -1)}
    got = report_metrics(**case)
    assert (got["count"], got["subjects"]) == (0, 0)
    assert set(got["intervals"].values()) == {None}
    assert got["subgroups"] == {"age": [], "race": []}
