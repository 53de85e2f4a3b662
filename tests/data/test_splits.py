import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenet.data.records import NO_FOLD, Records, join_records, name_tested, open_records
from agenet.data.splits import Splits, count_leaked, describe_splits, make_splits
from agenet.errors import UserError

MakeRecords = Callable[..., Records]


def split(records: Records, **fields: Any) -> Splits:
    options: dict[str, Any] = {
        "tasks": ("age", "gender"),
        "protocol": "subject",
        "test_fold": 0,
        "validation_fraction": 0.1,
        "seed": 0,
    }
    return make_splits(records, **options | fields)


def persons(records: Records, rows: np.ndarray) -> set[int]:
    return set(records.subject_id[rows].tolist())


@pytest.fixture
def records(make_records: MakeRecords) -> Records:
    return make_records(2000, persons=300)


def labelled(records: Records) -> np.ndarray:
    return (records.labels["age"] >= 0) | (records.labels["gender"] >= 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("test_fold", range(5))
def test_no_subject_is_in_two_sets(records: Records, test_fold: int, seed: int) -> None:
    splits = split(records, test_fold=test_fold, seed=seed)
    sets = [persons(records, rows) for rows in vars(splits).values()]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert count_leaked(records, splits) == 0
    in_fold = np.flatnonzero(labelled(records) & (records.fold == test_fold))
    np.testing.assert_array_equal(splits.test, in_fold)
    share = len(splits.validation) / (len(splits.validation) + len(splits.train))
    assert abs(share - 0.1) < 0.01


@pytest.mark.parametrize("protocol", ["subject", "random"])
def test_every_labelled_face_is_in_one_set(records: Records, protocol: str) -> None:
    rows = np.concatenate([*vars(split(records, protocol=protocol)).values()])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(labelled(records)))


def test_faces_without_the_task_are_left_out(records: Records) -> None:
    for rows in vars(split(records, tasks=("gender",))).values():
        assert (records.labels["gender"][rows] >= 0).all()


@pytest.mark.parametrize("protocol", ["subject", "random"])
def test_splits_are_a_function_of_the_seed(records: Records, protocol: str) -> None:
    first, again, other = (split(records, protocol=protocol, seed=seed) for seed in (0, 0, 1))
    for rows, same in zip(vars(first).values(), vars(again).values(), strict=True):
        np.testing.assert_array_equal(rows, same)
    assert set(first.validation) != set(other.validation)
    assert (set(first.test) != set(other.test)) == (protocol == "random")


def test_random_parts_cover_the_data_once_and_leak(records: Records) -> None:
    parts = [split(records, protocol="random", test_fold=fold) for fold in range(5)]
    together = np.sort(np.concatenate([part.test for part in parts]))
    np.testing.assert_array_equal(together, np.flatnonzero(labelled(records)))
    for part in parts:
        trained = persons(records, part.train)
        seen = sum(person in trained for person in records.subject_id[part.test].tolist())
        assert count_leaked(records, part) == seen > 0.9 * len(part.test)
        assert len(part.validation) == round(0.1 * (len(part.validation) + len(part.train)))


def test_subject_with_most_faces_is_not_used_for_validation(records: Records) -> None:
    subject_id = np.where(np.arange(2000) % 3 > 0, 1, records.subject_id)
    crowded = dataclasses.replace(
        records, subject_id=subject_id, fold=(subject_id % 5).astype(np.int32)
    )
    for seed in range(5):
        splits = split(crowded, seed=seed)
        assert 1 in persons(crowded, splits.train)
        share = len(splits.validation) / (len(splits.validation) + len(splits.train))
        assert abs(share - 0.1) < 0.02


def test_faces_of_other_data_sets_are_for_training_only(
    records: Records, make_records: MakeRecords
) -> None:
    race = np.arange(300, dtype=np.int32) % 7
    other = dataclasses.replace(
        make_records(300, persons=40), name="other/faces/1.0.0", race=race, notice="a notice"
    )
    with pytest.raises(UserError, match="other is used twice"):
        join_records(records, [other, other])
    third = dataclasses.replace(other, name="third/faces/1.0.0")
    joined = join_records(dataclasses.replace(records, notice="of the test"), [other, third])
    first = np.flatnonzero(other.fold != 0)
    assert len(joined.fold) == len(records.fold) + 2 * len(first)
    assert joined.name == "noise/faces/1.0.0 + other/faces/1.0.0 + third/faces/1.0.0"
    assert name_tested(joined.name) == name_tested(records.name) == "noise/faces/1.0.0"
    assert joined.notice == "of the test"
    added = np.arange(len(records.fold), len(joined.fold))
    assert (joined.fold[added] == NO_FOLD).all() and joined.race is not None
    np.testing.assert_array_equal(joined.race, [*[-1] * 2000, *race[first], *race[first]])
    assert [joined.images[i] for i in added[: len(first)]] == [other.images[i] for i in first]
    for column in ("age_low", "age_high"):
        np.testing.assert_array_equal(
            getattr(joined, column)[added[: len(first)]], getattr(other, column)[first]
        )
    # Subjects of different data sets are different.
    ids = [joined.subject_id[part] for part in np.split(added, 2)] + [records.subject_id]
    assert len(np.unique(joined.subject_id)) == sum(len(np.unique(part)) for part in ids)
    alone, together = split(records), split(joined)
    np.testing.assert_array_equal(together.test, alone.test)
    np.testing.assert_array_equal(together.validation, alone.validation)
    more = added[labelled(joined)[added]]
    np.testing.assert_array_equal(together.train, np.concatenate([alone.train, more]))
    with pytest.raises(UserError, match="test_fold -1 does not exist"):
        split(joined, test_fold=-1)


def test_describe(records: Records) -> None:
    splits = split(records)
    counts = describe_splits(records, splits, ("age", "gender"))["train"]
    assert counts["faces"] == len(splits.train)
    assert counts["subjects"] == len(persons(records, splits.train))
    ages = records.labels["age"][splits.train]
    assert counts["age"] == [int(np.sum(ages == group)) for group in range(8)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_fold": 5}, "test_fold 5 does not exist: .* has the folds 0, 1, 2, 3, 4"),
        ({"test_fold": -1}, "test_fold -1 does not exist"),
        ({"validation_fraction": 1e-6}, "left for validation: raise"),
        ({"validation_fraction": 1e-6, "protocol": "random"}, "left for validation: raise"),
        ({"validation_fraction": 0.9999}, "left for train: lower"),
        ({"validation_fraction": 0.9999, "protocol": "random"}, "left for train: lower"),
    ],
)
def test_bad_options(records: Records, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split(records, **fields)


def test_missing_class_or_task(records: Records) -> None:
    age, gender = records.labels["age"], records.labels["gender"]
    labels = {"age": np.where((age == 6) & (records.fold != 0), -1, age), "gender": gender}
    with pytest.raises(UserError, match=r"no training face of .* has the age 48-53"):
        split(dataclasses.replace(records, labels=labels))
    nowhere = dataclasses.replace(
        records, labels={"age": np.where(age == 6, -1, age), "gender": gender}
    )
    assert describe_splits(nowhere, split(nowhere), ("age",))["train"]["age"][6] == 0
    labels = {"age": age, "gender": np.where(gender == 1, -1, gender)}
    with pytest.raises(UserError, match=r"no training face of .* has the gender male"):
        split(dataclasses.replace(records, labels=labels))
    labels = {"age": age, "gender": np.full_like(gender, -1)}
    with pytest.raises(UserError, match=r"a known gender is left .* leave the task out"):
        split(dataclasses.replace(records, labels=labels))


def test_one_image(make_records: MakeRecords) -> None:
    with pytest.raises(UserError, match="is left for"):
        split(make_records(1, folds=1))


@pytest.mark.slow
def test_real_adience(adience: Path) -> None:
    records = open_records("adience/faces", str(adience))
    splits = split(records)
    assert len(splits.test) == 4432 and count_leaked(records, splits) == 0
    labels = {task: describe_splits(records, splits, (task,)) for task in ("age", "gender")}
    known = {
        task: [sum(counts[task]) for counts in by_split.values()]
        for task, by_split in labels.items()
    }
    assert (sum(known["age"]), known["age"][2]) == (17321, 4305)
    assert (sum(known["gender"]), known["gender"][2]) == (17492, 3995)
    for fold in range(5):
        random = split(records, protocol="random", test_fold=fold)
        assert 0.93 < count_leaked(records, random) / len(random.test) < 0.96
