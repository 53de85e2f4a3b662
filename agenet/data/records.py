"""Opens a prepared data set without TensorFlow: labels at once, encoded pictures by row."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.labels import AGE_LABELS


@dataclass(frozen=True)
class Records:
    """A prepared data set of N pictures, in one order for all its folds.

    Attributes:
        name: data set, builder config and version, such as "adience/faces/1.0.0".
        notice: what a reader of any result must know of the data; often empty.
        pictures: N encoded pictures (JPEG or PNG bytes).
        fold: int32 [N].
        subject_id: int64 [N], the person shown.
        labels: task to int32 [N]; -1 is unknown.
    """

    name: str
    notice: str
    pictures: Sequence[bytes]
    fold: np.ndarray
    subject_id: np.ndarray
    labels: dict[str, np.ndarray]

    def fingerprint(self) -> str:
        """Changes when a picture is added, removed or moved, or a label changes."""
        digest = hashlib.sha256()
        for array in (self.fold, self.subject_id, *self.labels.values()):
            digest.update(np.ascontiguousarray(array))
        digest.update(np.array([len(picture) for picture in self.pictures]))
        return digest.hexdigest()[:16]


def default_data_dir() -> Path:
    """Where TFDS keeps prepared data sets unless told otherwise."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find_prepared(name: str, data_dir: str) -> Path:
    """The folder of the newest prepared version of a data set "name/config".

    Raises:
        UserError: if it is not prepared, with the command that does it.
    """
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    versions = [
        path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        builder, _, config = name.partition("/")
        where = f" --data_dir={data_dir}" if data_dir else ""
        raise UserError(
            f"{name} is not prepared in {root}: run  python scripts/prepare.py {builder} "
            f"--config={config}{where} --manual_dir=FOLDER_OF_THE_RELEASE"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def open_records(name: str, data_dir: str = "", age_labels: str = "official") -> Records:
    """Opens the prepared data set "name/config".

    Args:
        name: as TFDS has it, such as "adience/faces".
        data_dir: the folder of prepared data sets; empty for TFDS's own default.
        age_labels: which age strings count, one of `agenet.labels.AGE_LABELS`.

    Raises:
        UserError: not prepared, unreadable, or `age_labels` unknown.
    """
    if age_labels not in AGE_LABELS:
        raise UserError(f'dataset.labels "{age_labels}" is not known: use one of {AGE_LABELS}')
    path = find_prepared(name, data_dir)
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            'reading prepared data needs the "train" extra: pip install "agenet[train]"'
        ) from None
    builder = tfds.builder_from_directory(path)
    # The stored bytes, not pictures: they are decoded in parallel, to one size, elsewhere.
    decoders: Any = {"image": tfds.decode.SkipDecoding()}
    pictures: list[bytes] = []
    columns: dict[str, list[Any]] = {"fold": [], "subject_id": [], "age": [], "gender": []}
    for split in sorted(builder.info.splits):
        for example in builder.as_data_source(split=split, decoders=decoders):
            pictures.append(example["image"])
            columns["fold"].append(int(split.removeprefix("fold_")))
            columns["subject_id"].append(example["subject_id"])
            columns["age"].append(example[f"age_{age_labels}"])
            columns["gender"].append(example["gender"])
    metadata = builder.info.metadata or {}
    return Records(
        name=f"{name}/{path.name}",
        notice=metadata.get("notice", ""),
        pictures=pictures,
        fold=np.array(columns["fold"], np.int32),
        subject_id=np.array(columns["subject_id"], np.int64),
        labels={task: np.array(columns[task], np.int32) for task in ("age", "gender")},
    )
