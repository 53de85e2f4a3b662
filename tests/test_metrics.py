"""Metrics against hand-worked cases and, where it is installed, scikit-learn."""

import doctest
import json
import math

import numpy as np
import pytest

from agenet import metrics
from agenet.metrics import task_metrics


def log_probs_for(predicted, classes, sure=0.9):
    """Log-probabilities [N, classes] that give each prediction the probability `sure`."""
    probs = np.full((len(predicted), classes), (1 - sure) / (classes - 1))
    probs[np.arange(len(predicted)), predicted] = sure
    return np.log(probs)


def random_case(seed, n=400, classes=8):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(classes), size=n))
    return log_probs.astype(np.float32), rng.integers(-1, classes, size=n)


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
