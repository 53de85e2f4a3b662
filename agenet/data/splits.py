"""Training, validation and test sets, subject-exclusive or split by image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agenet.data.config import Protocol
from agenet.data.records import NO_FOLD, Records
from agenet.errors import UserError
from agenet.labels import TASK_CLASSES


@dataclass(frozen=True)
class Splits:
    """Sorted rows int32 of a data set; rows without a label for any of the tasks are left out."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def make_splits(
    records: Records,
    *,
    tasks: Sequence[str],
    protocol: Protocol,
    test_fold: int,
    validation_fraction: float,
    seed: int,
) -> Splits:
    """Splits a data set for one test fold.

    Protocol "subject": the test set is the official fold, and validation is a random choice of
    subjects from the other folds, so that no subject is in two sets. Protocol "random": images are
    divided at random into as many parts as there are folds, regardless of the subject, and part
    number `test_fold` is the test set; the reference report appears to use such a split. Faces of
    `NO_FOLD` are all in the training set.

    Args:
        records: the data set.
        tasks: the tasks, of which a face needs at least one label.
        protocol: see above.
        test_fold: number of the test fold.
        validation_fraction: share, in (0, 1), of the faces outside the test set.
        seed: of the random choices, not negative.

    Raises:
        UserError: unknown fold, an empty set, or a class without training faces.
    """
    folds = np.unique(records.fold[records.fold != NO_FOLD])
    if test_fold not in folds:
        raise UserError(
            f"dataset.test_fold {test_fold} does not exist: {records.name} has the folds "
            f"{', '.join(map(str, folds))}"
        )
    if protocol == "subject" and len(folds) == 2 and test_fold == 1:
        raise UserError(
            f"dataset.test_fold 1: {records.name} has one test set, fold 0, and no other folds"
        )

    labelled = np.any([records.labels[task] >= 0 for task in tasks], axis=0)
    rows = np.flatnonzero(labelled & (records.fold != NO_FOLD)).astype(np.int32)
    added = np.flatnonzero(labelled & (records.fold == NO_FOLD)).astype(np.int32)
    rng = np.random.default_rng(seed)
    if protocol == "subject":
        is_test = records.fold[rows] == test_fold
        rest = rows[~is_test]
        subjects = _draw_subjects(records.subject_id[rest], validation_fraction * len(rest), rng)
        is_validation = np.isin(records.subject_id[rest], subjects)
    else:
        is_test = np.zeros(len(rows), bool)
        part = int(np.searchsorted(folds, test_fold))
        is_test[np.array_split(rng.permutation(len(rows)), len(folds))[part]] = True
        rest = rows[~is_test]
        is_validation = np.zeros(len(rest), bool)
        is_validation[: round(validation_fraction * len(rest))] = True
        rng.shuffle(is_validation)
    train = np.concatenate([rest[~is_validation], added])
    splits = Splits(train, rest[is_validation], rows[is_test])
    _check(records, splits, tasks)
    return splits


def _draw_subjects(subject_id: np.ndarray, target: float, rng: np.random.Generator) -> np.ndarray:
    """Draws subjects who together have about `target` of the faces, given by `subject_id` [N]."""
    subjects, faces = np.unique(subject_id, return_counts=True)
    # A subject with more faces than the target would be the only one.
    subjects, faces = subjects[faces <= target], faces[faces <= target]
    order = rng.permutation(len(subjects))
    # Draw until another subject would not bring the number of faces closer to the target.
    drawn = np.cumsum(faces[order]) - faces[order] / 2 <= target
    return subjects[order[drawn]]


# In this order: an empty test set cannot be fixed by another validation fraction.
_ADVICE = {
    "test": "choose another --config.dataset.test_fold",
    "validation": "raise --config.dataset.validation_fraction",
    "train": "lower --config.dataset.validation_fraction",
}


def _check(records: Records, splits: Splits, tasks: Sequence[str]) -> None:
    for task in tasks:
        counts = {name: count_labels(records, getattr(splits, name), task) for name in _ADVICE}
        for name, advice in _ADVICE.items():
            if not counts[name].any():
                raise UserError(
                    f"no face of {records.name} with a known {task} is left for {name}: {advice}, "
                    "or leave the task out with --config.tasks"
                )
        # Classes that the whole data set lacks, such as an age group between its age ranges, may be
        # missing in training, too, as long as two classes are left to learn.
        shown = count_labels(records, np.arange(len(records.fold)), task) > 0
        if shown.sum() < 2:
            shown[:] = True
        empty = [TASK_CLASSES[task][i] for i in np.flatnonzero((counts["train"] == 0) & shown)]
        if empty:
            raise UserError(
                f"no training face of {records.name} has the {task} {', '.join(empty)}: add such "
                "faces, or leave the task out with --config.tasks"
            )


def count_labels(records: Records, rows: np.ndarray, task: str) -> np.ndarray:
    """The number of faces per class of a task among the rows: int [classes]."""
    labels = records.labels[task][rows]
    return np.bincount(labels[labels >= 0], minlength=len(TASK_CLASSES[task]))


def count_leaked(records: Records, splits: Splits) -> int:
    """The number of test faces whose subject is also in the training set."""
    subjects = records.subject_id
    return int(np.isin(subjects[splits.test], subjects[splits.train]).sum())


def describe_splits(records: Records, splits: Splits, tasks: Sequence[str]) -> dict[str, dict]:
    """For each split `faces`, `subjects` and faces per class of each task; JSON-serialisable."""
    return {
        name: {
            "faces": len(rows),
            "subjects": len(np.unique(records.subject_id[rows])),
            **{task: count_labels(records, rows, task).tolist() for task in tasks},
        }
        for name, rows in vars(splits).items()
    }
