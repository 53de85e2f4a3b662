"""The figures of scripts/measure_predictor.py, from a predictor with known answers."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from agenet.data.records import Records
from agenet.faces.face import Prediction
from scripts.measure_predictor import CONDITIONS, _line, _measure, _subgroups


class FakePredictor:
    """Predicts 30 years and male for every image."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        return [Prediction(age=30.0, gender="male", gender_probability=0.9) for _ in images]


def test_figures(make_records: Callable[..., Records]) -> None:
    records = make_records(120)
    rows = np.flatnonzero(records.fold == 0)
    figures = _measure(FakePredictor(), records, rows, CONDITIONS["unchanged"])  # type: ignore[arg-type]
    gender = records.labels["gender"][rows]
    assert np.nanmean(figures["gender"]) == pytest.approx((gender[gender >= 0] == 1).mean())
    low, high = records.age_low[rows], records.age_high[rows]
    assert (np.isnan(figures["age"]) == (low < 0)).all()
    for error, inside, first, last in zip(
        figures["age"], figures["inside"], low, high, strict=True
    ):
        if first >= 0:
            assert error == max(first - 30, 30 - last, 0) and inside == (error == 0)
    groups = _subgroups(records, rows)
    assert set(groups) == {"gender", "age"}
    assert sum(chosen.sum() for _, chosen in groups["age"]) == (low >= 0).sum()
    line = _line("all", figures, np.ones(len(rows), bool))
    assert line[:2] == ["all", str(len(rows))]
    assert _line("none", figures, np.zeros(len(rows), bool))[2:] == ["–"] * 3


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_keep_images_valid(condition: str) -> None:
    image = np.full((60, 60, 3), 90, np.uint8)
    changed = CONDITIONS[condition](image)
    assert changed.dtype == np.uint8 and changed.ndim == 3 and changed.shape[2] == 3
    assert changed[len(changed) // 2, len(changed) // 2].tolist() == [90, 90, 90]
