from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agenet.data.records import Records, join_records
from agenet.data.splits import Splits, make_splits
from agenet.errors import UserError
from agenet.runs.lineage import check_not_seen, is_seen, trained_on
from agenet.weights.bundled import DEFAULT_FILE
from agenet.weights.load import read_weights

OPTIONS: dict[str, Any] = {"tasks": ("age",), "validation_fraction": 0.2, "seed": 0}


def split(records: Records, test_fold: int, protocol: str = "subject") -> Splits:
    return make_splits(records, test_fold=test_fold, protocol=protocol, **OPTIONS)


@pytest.fixture
def records(make_records: Callable[..., Records]) -> Records:
    return make_records(400, persons=60)


def test_persons_of_all_runs_before_are_known(records: Records) -> None:
    other = Records(**{**vars(records), "name": "other/faces/1.0.0"})
    # A run on other people leaves everybody here unseen.
    first = trained_on(other, split(other, 0), {})
    check_not_seen(first, records, split(records, 1))
    second = trained_on(records, split(records, 0), first)
    assert second.keys() == {"noise", "other"} and second["other"] == first["other"]
    splits = split(records, 0)
    check_not_seen(second, records, splits)
    with pytest.raises(UserError, match=r"of the .* test images: use the dataset.test_fold"):
        check_not_seen(second, records, split(records, 1))


def test_what_was_added_is_known_but_for_its_test_set(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    main = Records(**{**vars(records), "name": "main/faces/1.0.0"})
    joined = join_records(main, [records])
    seen = trained_on(joined, split(joined, 0), {})
    assert seen["noise"] == "all outside fold 0"
    rows = np.flatnonzero(records.fold == 0)
    check_not_seen(seen, records, Splits(rows[:0], rows[:9], rows))
    check_not_seen(seen, records, split(records, 0))
    assert "validation images: validation metrics are too good" in caplog.text
    with pytest.raises(UserError, match=r"test images: give --config.dataset.test_fold=0"):
        check_not_seen(seen, records, split(records, 1))
    assert trained_on(records, split(records, 1), seen)["noise"] == "all outside fold 0"


def test_weights_that_come_along_have_seen_fairface(records: Records) -> None:
    seen = read_weights(DEFAULT_FILE).spec.trained_on
    rows = np.arange(len(records.fold))
    assert not is_seen(seen, records, rows).any()
    fairface = Records(**{**vars(records), "name": "fairface/partial/1.0.0"})
    np.testing.assert_array_equal(is_seen(seen, fairface, rows), records.fold != 0)
