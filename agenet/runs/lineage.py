"""Subjects in a run's training data, including those of the weights that it started from.

A subject is identified by data set and `subject_id`, which all builder configs of a data set share.
The record is saved with checkpoints and with weights made from them, as JSON: for each data set the
subjects, as base64 of sorted little-endian int64, or `NOT_FOLD_0` for a data set that was added
whole except for its test set.
"""

import base64
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from agenet.data.records import NO_FOLD, Records, extra_names
from agenet.data.splits import Splits
from agenet.errors import UserError
from agenet.runs.identity import comparable
from agenet.weights.spec import NOT_FOLD_0

TrainedOn = dict[str, str]

log = logging.getLogger(__name__)


def trained_on(records: Records, splits: Splits, earlier: Mapping[str, str]) -> TrainedOn:
    """The subjects of a training on this split and those of its initial weights, `earlier`."""
    own = splits.train[records.fold[splits.train] != NO_FOLD]
    found = dict(earlier)
    here = _data_set(records.name)
    if found.get(here) != NOT_FOLD_0:
        found[here] = _encode(np.union1d(_decode(found.get(here, "")), records.subject_id[own]))
    return found | dict.fromkeys(map(_data_set, extra_names(records.name)), NOT_FOLD_0)


def is_seen(seen: Mapping[str, str], records: Records, rows: np.ndarray) -> np.ndarray:
    """Which images, given by their rows int [N], show subjects of `seen`: bool [N]."""
    subjects = seen.get(_data_set(records.name), "")
    if subjects == NOT_FOLD_0:
        return records.fold[rows] != 0
    return np.isin(records.subject_id[rows], _decode(subjects))


def join_trained_on(first: Mapping[str, str], second: Mapping[str, str]) -> TrainedOn:
    """The subjects of both."""
    found = dict(first)
    for data_set, subjects in second.items():
        if NOT_FOLD_0 in (subjects, found.get(data_set)):
            found[data_set] = NOT_FOLD_0
        else:
            found[data_set] = _encode(
                np.union1d(_decode(found.get(data_set, "")), _decode(subjects))
            )
    return found


def check_not_seen(
    seen: Mapping[str, str], records: Records, splits: Splits, field: str = "init"
) -> None:
    """Checks that a run validates and tests on none of the subjects `seen` by other weights.

    These are its initial weights or its teacher, as the `field` of the config says. If they were
    trained on everything outside fold 0, no subjects are left for validation: then a warning is
    logged.

    Raises:
        UserError: a subject of the test set is in `seen`, or one of the validation set.
    """
    whole = seen.get(_data_set(records.name)) == NOT_FOLD_0
    remedy = (
        "give --config.dataset.test_fold=0, the only one outside their training data, or other "
        "weights"
        if whole
        else "use the dataset.test_fold, dataset.protocol, dataset.validation_fraction, tasks and "
        "seed of their training"
    )
    for name in ("test", "validation"):
        rows = getattr(splits, name)
        known = is_seen(seen, records, rows)
        what = (
            f"these weights were trained on subjects of {known.sum():,} of the {len(rows):,} "
            f"{name} images"
        )
        if not known.any():
            continue
        if whole and name == "validation":
            log.warning(
                "%s: %s: validation metrics are too good, test metrics are not", field, what
            )
        else:
            raise UserError(f"{field}: {what}: {remedy}")


def has_same_holdout(run: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether two runs validate and test on the same images.

    Args:
        run: what the earlier run's checkpoint was saved with.
        identity: `agenet.runs.identity.identify` of the run that starts from it.
    """
    known = comparable(run, identity)
    return all(known[name] == identity[name] for name in ("dataset", "splits"))


def _encode(subjects: np.ndarray) -> str:
    return base64.b64encode(subjects.astype("<i8").tobytes()).decode()


def _decode(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i8")


def _data_set(name: str) -> str:
    return name.partition("/")[0]
