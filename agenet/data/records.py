"""Opens prepared data sets without TensorFlow: labels in memory, encoded images by row."""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from agenet.data.claims import check_labels
from agenet.data.config import AgeLabels
from agenet.data.stored import SelectedImages, Shard, StoredImages, measure_images
from agenet.errors import UserError, needs_extra, printable
from agenet.files import SHIPPED, expand_home, is_address
from agenet.labels import AGE_LABELS, MAX_AGE, UNKNOWN
from agenet.places.working import fetch_data_set

if TYPE_CHECKING:
    from agenet.data.description import Description

FACES_CONFIG = "faces"  # the only config of data sets of a user's own
_AGE_RANGE = {"age_low", "age_high"}
_FEATURES = {
    *("image", "subject_id", "gender"),
    *(f"age_{labels}" for labels in AGE_LABELS),
    *_AGE_RANGE,
}
# In data sets without folds, the test set is fold 0 and the training set is fold 1.
_FOLDS = {"test": 0, "train": 1}
NO_FOLD = -1  # of faces that are used for training only
_SEPARATOR = " + "  # between the names of joined data sets
_FOLD = re.compile(r"fold_[0-9]{1,4}")


@dataclass(frozen=True)
class Records:
    """A prepared data set of N images, all folds together.

    Attributes:
        name: data set, builder config and version, such as "adience/faces/1.0.0".
        notice: a caveat about the data that every report repeats; often empty.
        images: N encoded images (JPEG or PNG), read on access.
        fold: int32 [N]. A data set without folds has its test set as fold 0 and the rest as fold
            1; faces of `NO_FOLD` are for training only.
        subject_id: int64 [N], the person shown.
        labels: for each task int32 [N], -1 is unknown.
        age_low, age_high: int32 [N], the range of the age in whole years, both ends included;
            equal if the age is known exactly, -1 if it is unknown.
        race: int32 [N], index into `agenet.labels.RACES`, -1 is unknown; None if the data set
            has no such labels.
    """

    name: str
    notice: str
    images: Sequence[bytes]
    fold: np.ndarray
    subject_id: np.ndarray
    labels: dict[str, np.ndarray]
    age_low: np.ndarray
    age_high: np.ndarray
    race: np.ndarray | None = None

    def fingerprint(self) -> str:
        """A hash of all labels and of the images' sizes in bytes."""
        digest = hashlib.sha256()
        arrays = [self.fold, self.subject_id, *self.labels.values(), self.age_low, self.age_high]
        for array in arrays if self.race is None else [*arrays, self.race]:
            digest.update(array.tobytes())
        digest.update(measure_images(self.images)[0].tobytes())
        return digest.hexdigest()[:16]

    def checksum(self) -> str:
        """A hash of the images' contents."""
        checksums = measure_images(self.images)[1]
        return hashlib.sha256(checksums.tobytes()).hexdigest()[:16]


def default_data_dir() -> Path:
    """The folder where TFDS keeps prepared data sets by default.

    Raises:
        UserError: it is in the home folder, and there is none.
    """
    return expand_home(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def find_prepared(name: str, data_dir: str) -> Path:
    """The folder of the newest prepared version of the data set `name`, "data_set/config".

    What is prepared at an address is fetched.

    Raises:
        UserError: it is not prepared, and the message has the command that prepares it; or it
            cannot be fetched.
    """
    if not re.fullmatch(r"\w+/\w+", name):
        raise UserError(f'data set "{name}" must be DATA_SET/CONFIG, such as "adience/faces"')
    if data_dir and is_address(data_dir):
        where, folder = data_dir, fetch_data_set(data_dir, name)
    else:
        root = expand_home(data_dir) if data_dir else default_data_dir()
        where, folder = str(root), root / name
    # Versions that a killed `prepare --overwrite` has set aside, see data_prep.exclusive.
    for path in folder.glob("replaced.*.*.*/dataset_info.json"):
        version = folder / path.parent.name.removeprefix("replaced.")
        if not version.exists():
            with suppress(OSError):
                path.parent.rename(version)
    versions = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        raise UserError(
            f"{name} is not prepared in {where}: run  {_prepare_command(name, data_dir)}"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def open_records(name: str, data_dir: str = "", age_labels: AgeLabels = "official") -> Records:
    """Opens the newest prepared version of a data set.

    Args:
        name: TFDS name and config, such as "adience/faces".
        data_dir: the folder of prepared data sets; empty for TFDS's default.
        age_labels: which age labels count, see `agenet.labels`.

    Raises:
        UserError: it is not prepared, damaged or of another kind.
    """
    # Here, because predicting imports this module, but none of the packages that it takes.
    from agenet.data.description import RefusedError, read_description

    path = find_prepared(name, data_dir)
    command = _prepare_command(name, data_dir)
    try:
        description = read_description(path)
        _check_kind(description, path, command)
        return _read(description, f"{name}/{path.name}", age_labels)
    except UserError:
        raise
    except ImportError as error:
        raise needs_extra("train", "reading prepared data", error) from error
    except RefusedError as error:
        raise UserError(
            f"{path} is refused, because {error}: prepare it yourself:  {command} --overwrite"
        ) from error
    # ArrayRecord raises many kinds of errors for damaged files.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"{path} is damaged ({printable(reason, 300)}): run  {command} --overwrite"
        ) from error


def join_records(records: Records, extra: Sequence[Records]) -> Records:
    """Adds the faces of other data sets, except those of their fold 0, to the training set.

    Raises:
        UserError: a data set is used twice, so that its subjects could be in several splits.
    """
    builders = [each.name.partition("/")[0] for each in (records, *extra)]
    for name in builders:
        if builders.count(name) > 1:
            raise UserError(
                f"dataset.extra: {name} is used twice: its subjects would be in training and test"
            )
    parts = [records, *map(_for_training_only, extra)]
    ids, first = [records.subject_id], int(records.subject_id.max()) + 1
    for part in parts[1:]:
        _, subject = np.unique(part.subject_id, return_inverse=True)
        ids.append(first + subject)
        first += int(subject.max(initial=-1)) + 1
    races = [
        np.full(len(part.fold), UNKNOWN, np.int32) if part.race is None else part.race
        for part in parts
    ]
    return Records(
        name=_SEPARATOR.join(part.name for part in parts),
        notice=records.notice,  # The other data sets are not tested on.
        images=SelectedImages([(p.images, np.arange(len(p.fold))) for p in parts]),
        fold=np.concatenate([part.fold for part in parts]),
        subject_id=np.concatenate(ids),
        labels={
            task: np.concatenate([part.labels[task] for part in parts]) for task in records.labels
        },
        age_low=np.concatenate([part.age_low for part in parts]),
        age_high=np.concatenate([part.age_high for part in parts]),
        race=None if all(part.race is None for part in parts) else np.concatenate(races),
    )


def _for_training_only(records: Records) -> Records:
    """The data set without its fold 0, all in `NO_FOLD`."""
    rows = np.flatnonzero(records.fold != 0)
    return replace(
        records,
        images=SelectedImages([(records.images, rows)]),
        fold=np.full(len(rows), NO_FOLD, np.int32),
        subject_id=records.subject_id[rows],
        labels={task: labels[rows] for task, labels in records.labels.items()},
        age_low=records.age_low[rows],
        age_high=records.age_high[rows],
        race=None if records.race is None else records.race[rows],
    )


def name_tested(name: str) -> str:
    """The name of the data set that is tested on, from the name of joined data sets."""
    return name.partition(_SEPARATOR)[0]


def extra_names(name: str) -> list[str]:
    """The names of the data sets that are for training only, from the name of joined data sets."""
    return name.split(_SEPARATOR)[1:]


def _prepare_command(name: str, data_dir: str) -> str:
    builder, _, config = name.partition("/")
    where = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    if not (SHIPPED / "data_prep" / builder).is_dir():
        return f"agenet prepare images --name={builder} --images=FOLDER{where}"
    # Drawn faces are generated, not downloaded.
    release = "" if builder == "drawn_faces" else " --manual_dir=FOLDER_OF_THE_RELEASE"
    return f"agenet prepare {builder} --config={config}{where}{release}"


def _check_kind(description: "Description", path: Path, command: str) -> None:
    lacking = _FEATURES - description.features
    splits = list(description.shards)
    if lacking and lacking <= _AGE_RANGE:
        raise UserError(
            f"{path} was prepared by an older version and lacks {', '.join(sorted(lacking))}: "
            f"prepare it again with  {command}"
        )
    if lacking:
        wrong = f"lacks the features {', '.join(sorted(lacking))}"
    elif not splits or not (set(splits) <= _FOLDS.keys() or all(map(_FOLD.fullmatch, splits))):
        wrong = (
            f"has the splits {', '.join(splits[:20]) or '(none)'}, not fold_0, fold_1, ..., "
            "nor train and test"
        )
    else:
        return
    raise UserError(f"{path} {wrong}: choose a --config.dataset.name that agenet prepare makes")


def _fold(split: str) -> int:
    """The fold's number, from the name of the TFDS split."""
    return _FOLDS[split] if split in _FOLDS else int(split.removeprefix("fold_"))


def _read(description: "Description", name: str, age_labels: str) -> Records:
    splits = sorted(description.shards)
    shards = [
        Shard(str(path), 0, length)
        for split in splits
        for path, length in description.shards[split]
        if length
    ]
    images = StoredImages(name, shards)
    names = ["subject_id", f"age_{age_labels}", "gender", "age_low", "age_high", "race"]
    arrays = {n: np.empty(len(images), np.int64) for n in names if n in description.features}
    row = 0
    # Shown only after three seconds, and only on a terminal.
    with tqdm(
        total=len(images), desc=f"opening {name}", unit=" faces", delay=3, disable=None
    ) as bar:
        for features in images.scan():
            for column, array in arrays.items():
                array[row : row + len(features)] = [f[column].int64_list.value[0] for f in features]
            row += len(features)
            bar.update(len(features))
    check_labels(arrays)
    counts = [description.count(split) for split in splits]
    small = {column: array.astype(np.int32) for column, array in arrays.items()}
    # Where the age label does not count, the range of years is unknown, too.
    unknown = small[f"age_{age_labels}"] == UNKNOWN
    low, high = (
        np.where(unknown, UNKNOWN, np.minimum(small[end], MAX_AGE))
        for end in ("age_low", "age_high")
    )
    return Records(
        name=name,
        notice=description.notice,
        images=images,
        fold=np.repeat(np.array([*map(_fold, splits)], np.int32), counts),
        subject_id=arrays["subject_id"],
        labels={"age": small[f"age_{age_labels}"], "gender": small["gender"]},
        age_low=low,
        age_high=high,
        race=small.get("race"),
    )
