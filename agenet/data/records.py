"""Opens a prepared data set without TensorFlow: labels at once, encoded pictures by row."""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agenet.data.stored import SelectedPictures, Shard, StoredPictures, measure_pictures
from agenet.errors import UserError
from agenet.labels import AGE_LABELS, MAX_AGE, UNKNOWN

_AGE_RANGE = {"age_low", "age_high"}
_FEATURES = {
    *("image", "subject_id", "gender"),
    *(f"age_{labels}" for labels in AGE_LABELS),
    *_AGE_RANGE,
}
# Data sets without folds have their test set for fold 0 and everything else for fold 1.
_FOLDS = {"test": 0, "train": 1}
NO_FOLD = -1  # of faces to train on only
_AND = " + "
_FOLD = re.compile(r"fold_\d+")


@dataclass(frozen=True)
class Records:
    """A prepared data set of N pictures, in one order for all its folds.

    Attributes:
        name: data set, builder config and version, such as "adience/faces/1.0.0".
        notice: what a reader of any result must know of the data; often empty.
        pictures: N encoded pictures (JPEG or PNG bytes), read when they are asked for.
        fold: int32 [N]. A data set without folds has its test set for fold 0, the rest for 1;
            what is `NO_FOLD` is for training only.
        subject_id: int64 [N], the person shown.
        labels: task to int32 [N]; -1 is unknown.
        age_low, age_high: int32 [N], whole years between which the age lies, both included; equal
            where it is known exactly, -1 where it is not known at all.
        race: int32 [N], index into `agenet.labels.RACES`, -1 is unknown; None if the data set
            says nothing of it.
    """

    name: str
    notice: str
    pictures: Sequence[bytes]
    fold: np.ndarray
    subject_id: np.ndarray
    labels: dict[str, np.ndarray]
    age_low: np.ndarray
    age_high: np.ndarray
    race: np.ndarray | None = None

    def fingerprint(self) -> str:
        """Changes when a picture is added, removed or moved, or a label changes."""
        digest = hashlib.sha256()
        arrays = [self.fold, self.subject_id, *self.labels.values(), self.age_low, self.age_high]
        for array in arrays if self.race is None else [*arrays, self.race]:
            digest.update(array.tobytes())
        digest.update(measure_pictures(self.pictures)[0].tobytes())
        return digest.hexdigest()[:16]

    def checksum(self) -> str:
        """Changes when a picture changes, even into one of as many bytes."""
        checksums = measure_pictures(self.pictures)[1]
        return hashlib.sha256(checksums.tobytes()).hexdigest()[:16]


def default_data_dir() -> Path:
    """Where TFDS keeps prepared data sets unless told otherwise."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find_prepared(name: str, data_dir: str) -> Path:
    """The folder of the newest prepared version of a data set "name/config".

    Raises:
        UserError: if it is not prepared, with the command that does it.
    """
    if not re.fullmatch(r"\w+/\w+", name):
        raise UserError(f'data set "{name}" must be DATA_SET/CONFIG, such as "adience/faces"')
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    versions = [
        path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        raise UserError(
            f"{name} is not prepared in {root}: run  {_prepare_command(name, data_dir)}"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def open_records(name: str, data_dir: str = "", age_labels: str = "official") -> Records:
    """Opens the prepared data set "name/config".

    Args:
        name: as TFDS has it, such as "adience/faces".
        data_dir: the folder of prepared data sets; empty for TFDS's own default.
        age_labels: which age strings count, one of `agenet.labels.AGE_LABELS`.

    Raises:
        UserError: not prepared, damaged, another kind of data set, or `age_labels` unknown.
    """
    if age_labels not in AGE_LABELS:
        raise UserError(f'dataset.labels "{age_labels}" is not known: use one of {AGE_LABELS}')
    path = find_prepared(name, data_dir)
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(path)
        _check_kind(builder, path, _prepare_command(name, data_dir))
        return _read(builder, f"{name}/{path.name}", age_labels)
    except UserError:
        raise
    except ImportError:
        raise UserError(
            'reading prepared data needs the "train" extra: pip install "agenet[train]"'
        ) from None
    # TFDS and ArrayRecord raise whatever comes up when a file is damaged.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"{path} is damaged ({reason}): run  {_prepare_command(name, data_dir)} --overwrite"
        ) from error


def join_records(records: Records, extra: Sequence[Records]) -> Records:
    """A data set with the faces of others, but for those of their fold 0, to train on besides.

    Raises:
        UserError: two are of the same data set, whose persons would then be in several splits.
    """
    builders = [each.name.partition("/")[0] for each in (records, *extra)]
    for name in builders:
        if builders.count(name) > 1:
            raise UserError(
                f"dataset.extra: {name} is there twice, with the same persons in training and test"
            )
    parts = [records, *map(_to_train_on, extra)]
    ids, first = [records.subject_id], int(records.subject_id.max()) + 1
    for part in parts[1:]:
        _, person = np.unique(part.subject_id, return_inverse=True)
        ids.append(first + person)
        first += int(person.max(initial=-1)) + 1
    races = [
        np.full(len(part.fold), UNKNOWN, np.int32) if part.race is None else part.race
        for part in parts
    ]
    return Records(
        name=_AND.join(part.name for part in parts),
        notice=records.notice,  # Nobody is tested on the others.
        pictures=SelectedPictures([(p.pictures, np.arange(len(p.fold))) for p in parts]),
        fold=np.concatenate([part.fold for part in parts]),
        subject_id=np.concatenate(ids),
        labels={
            task: np.concatenate([part.labels[task] for part in parts]) for task in records.labels
        },
        age_low=np.concatenate([part.age_low for part in parts]),
        age_high=np.concatenate([part.age_high for part in parts]),
        race=None if all(part.race is None for part in parts) else np.concatenate(races),
    )


def _to_train_on(records: Records) -> Records:
    """A data set without its fold 0, of no fold."""
    rows = np.flatnonzero(records.fold != 0)
    return Records(
        name=records.name,
        notice=records.notice,
        pictures=SelectedPictures([(records.pictures, rows)]),
        fold=np.full(len(rows), NO_FOLD, np.int32),
        subject_id=records.subject_id[rows],
        labels={task: labels[rows] for task, labels in records.labels.items()},
        age_low=records.age_low[rows],
        age_high=records.age_high[rows],
        race=None if records.race is None else records.race[rows],
    )


def name_tested(name: str) -> str:
    """The name of the data set that is tested, from the name of the whole."""
    return name.partition(_AND)[0]


def extra_names(name: str) -> list[str]:
    """The names of the data sets that have been joined to another, from the name of the whole."""
    return name.split(_AND)[1:]


def _prepare_command(name: str, data_dir: str) -> str:
    builder, _, config = name.partition("/")
    where = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    # Drawn faces have no release: they are drawn.
    release = "" if builder == "drawn_faces" else " --manual_dir=FOLDER_OF_THE_RELEASE"
    return f"agenet prepare {builder} --config={config}{where}{release}"


def _check_kind(builder: Any, path: Path, command: str) -> None:
    lacking = _FEATURES - builder.info.features.keys()
    splits = list(builder.info.splits)
    if lacking and lacking <= _AGE_RANGE:
        raise UserError(
            f"{path} was prepared by an older version and lacks {', '.join(sorted(lacking))}: "
            f"prepare it again with  {command}"
        )
    if lacking:
        wrong = f"lacks the features {', '.join(sorted(lacking))}"
    elif not splits or not (set(splits) <= _FOLDS.keys() or all(map(_FOLD.fullmatch, splits))):
        wrong = (
            f"has the splits {', '.join(splits) or '(none)'}, not fold_0, fold_1, ..., "
            "nor train and test"
        )
    else:
        return
    raise UserError(f"{path} {wrong}: choose a --config.dataset.name that agenet prepare makes")


def _fold(split: str) -> int:
    """Number of the fold that a split is."""
    return _FOLDS[split] if split in _FOLDS else int(split.removeprefix("fold_"))


def _read(builder: Any, name: str, age_labels: str) -> Records:
    instructions = {
        split: builder.info.splits[split].file_instructions for split in sorted(builder.info.splits)
    }
    shards = [
        Shard(str(each.filename), each.skip, each.take)
        for files in instructions.values()
        for each in files
    ]
    pictures = StoredPictures(name, shards)
    names = ["subject_id", f"age_{age_labels}", "gender", "age_low", "age_high", "race"]
    arrays = {n: np.empty(len(pictures), np.int64) for n in names if n in builder.info.features}
    row = 0
    # Only where it takes long, and somebody is there to see it.
    with tqdm(
        total=len(pictures), desc=f"opening {name}", unit=" faces", delay=3, disable=None
    ) as bar:
        for features in pictures.scan():
            for column, array in arrays.items():
                array[row : row + len(features)] = [f[column].int64_list.value[0] for f in features]
            row += len(features)
            bar.update(len(features))
    counts = [sum(each.take for each in files) for files in instructions.values()]
    small = {column: array.astype(np.int32) for column, array in arrays.items()}
    # A label that does not count leaves an age unknown, whatever is said of its years.
    unknown = small[f"age_{age_labels}"] == UNKNOWN
    low, high = (
        np.where(unknown, UNKNOWN, np.minimum(small[end], MAX_AGE))
        for end in ("age_low", "age_high")
    )
    return Records(
        name=name,
        notice=(builder.info.metadata or {}).get("notice", ""),
        pictures=pictures,
        fold=np.repeat(np.array([*map(_fold, instructions)], np.int32), counts),
        subject_id=arrays["subject_id"],
        labels={"age": small[f"age_{age_labels}"], "gender": small["gender"]},
        age_low=low,
        age_high=high,
        race=small.get("race"),
    )
