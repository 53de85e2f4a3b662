"""Distillation against the formula of Hinton, Vinyals and Dean."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.special

from agenet.training.distillation import KNOWN, distillation_losses
from agenet.training.losses import log_probabilities
from agenet.training.objective import Objective

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 6, 8)).astype(np.float32)
AGE = np.array([0, -1, 3, 7, -1, 2], np.int32)
BATCH: dict[str, Any] = {
    "age": AGE,
    "age_low": np.maximum(10 * AGE, -1),
    "age_high": np.where(AGE < 0, -1, 10 * AGE + 5),
    "mask": np.array([True, True, True, True, True, False]),
}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_formula(temperature: float) -> None:
    soft, own = (scipy.special.softmax(x / temperature, -1) for x in (TEACHER, STUDENT))
    expected = temperature**2 * scipy.special.rel_entr(soft, own).sum(-1)
    for shift in (0, 5):  # Logits or log-probabilities.
        found = distillation_losses(TEACHER + shift, STUDENT, temperature)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(distillation_losses(STUDENT, STUDENT, temperature), 0, atol=1e-6)


def test_gradient_is_that_of_soft_labels() -> None:
    soft = scipy.special.softmax(TEACHER, -1)
    found = jax.grad(lambda x: distillation_losses(TEACHER, x, 1.0).sum())(STUDENT)
    np.testing.assert_allclose(found, scipy.special.softmax(STUDENT, -1) - soft, atol=1e-6)
    # "the magnitudes of the gradients produced by the soft targets scale as 1/T^2"
    sizes = [
        np.abs(jax.grad(lambda x, t=t: distillation_losses(TEACHER, x, t).sum())(STUDENT)).mean()
        for t in (10.0, 20.0)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_impossible_classes() -> None:
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(8, dtype=np.float32)[:6])
    found = jax.value_and_grad(lambda x: distillation_losses(certain, x, 1.0).sum())(STUDENT)
    assert all(np.isfinite(each).all() for each in found)


def loss(objective: Objective, logits: Any, teacher: Any, batch: Any = BATCH) -> float:
    totals = objective.total_weights(batch | {"teacher": teacher})
    return float(objective(logits, [(1.0, batch)], totals, [(1.0, teacher)])[0])


def test_rows_without_predictions_contribute_nothing() -> None:
    known = np.array([True, True, False, False, True, True])
    teacher = {"age": TEACHER, KNOWN: known}
    plain = Objective({"age": "groups"})
    labels = float(plain({"age": STUDENT}, [(1.0, BATCH)], plain.total_weights(BATCH))[0])
    taught = distillation_losses(TEACHER, STUDENT, 2.0)[np.array([0, 1, 4])].mean()
    for weight in (0.3, 1.0):
        objective = Objective({"age": "groups"}, distill_weight=weight, temperature=2.0)
        expected = (1 - weight) * labels + weight * float(taught)
        # Row 5 is padding.
        padded = teacher | {KNOWN: known & BATCH["mask"]}
        assert loss(objective, {"age": STUDENT}, padded) == pytest.approx(expected, rel=1e-5)
    # A task that the teacher does not predict, and a batch without predictions.
    other = {"gender": TEACHER, KNOWN: known}
    assert loss(objective, {"age": STUDENT}, other) == pytest.approx(labels, rel=1e-6)
    none = {"age": TEACHER, KNOWN: np.zeros(6, bool)}
    assert loss(objective, {"age": STUDENT}, none) == 0


@pytest.mark.parametrize("head", ["distribution", "ordinal"])
def test_years_are_learned_from_years(head: str) -> None:
    logits = RNG.normal(size=(6, 101)).astype(np.float32)
    if head == "ordinal":
        logits = np.array(jax.nn.log_softmax(logits))
    predicted = log_probabilities("age", head, logits)
    years = scipy.special.log_softmax(RNG.normal(size=(6, 101)), -1).astype(np.float32)
    objective = Objective({"age": head}, distill_weight=1.0, temperature=1.0)
    known = {KNOWN: BATCH["mask"]}
    for teacher, name in (({"age": TEACHER, "years": years}, "years"), ({"age": TEACHER}, "age")):
        expected = distillation_losses(teacher[name], predicted[name], 1.0)[:5].mean()
        found = loss(objective, {"age": logits}, teacher | known)
        assert found == pytest.approx(float(expected), rel=1e-5)
