"""Whom a run was trained on, itself or through the runs that it started from.

Persons go by data set and `subject_id`, which all configs of one data set share. What a run was
trained on is kept, ready for JSON, with its checkpoints: per data set the persons, as base64 of
sorted little-endian int64, or `NOT_FOLD_0` for one that was added whole, but for its test set.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from agenet.data.records import NO_FOLD, Records, extra_names
from agenet.data.splits import Splits
from agenet.errors import UserError

NOT_FOLD_0 = "all outside fold 0"
TrainedOn = dict[str, str]


def trained_on(records: Records, splits: Splits, earlier: Mapping[str, str]) -> TrainedOn:
    """Of a run on these data that started from one with `earlier`."""
    own = splits.train[records.fold[splits.train] != NO_FOLD]
    found = dict(earlier)
    here = _data_set(records.name)
    if found.get(here) != NOT_FOLD_0:
        persons = np.union1d(_decode(found.get(here, "")), records.subject_id[own])
        found[here] = base64.b64encode(persons.astype("<i8").tobytes()).decode()
    return found | dict.fromkeys(map(_data_set, extra_names(records.name)), NOT_FOLD_0)


def check_not_seen(
    run: Mapping[str, Any], identity: Mapping[str, Any], records: Records, splits: Splits
) -> None:
    """Raises `UserError` if an earlier run was trained on persons who are validated or tested.

    Args:
        run: what the earlier run's checkpoint was saved with.
        identity: `Experiment.identity` of the run that is to start from it.
        records, splits: its data.
    """
    if all(run[name] == identity[name] for name in ("dataset", "splits")):
        return  # The same faces were left out there.
    seen = run.get("trained_on", {}).get(_data_set(records.name), "")
    for name in ("test", "validation"):
        rows = getattr(splits, name)
        if seen == NOT_FOLD_0:
            known = records.fold[rows] != 0
        else:
            known = np.isin(records.subject_id[rows], _decode(seen))
        if known.any():
            raise UserError(
                f"init: that run was trained on persons of {known.sum():,} of the {len(rows):,} "
                f"{name} faces of this one: use its dataset.test_fold, dataset.protocol, "
                "dataset.validation_fraction, tasks and seed"
            )


def _decode(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i8")


def _data_set(name: str) -> str:
    return name.partition("/")[0]
