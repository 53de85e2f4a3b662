"""Writes faces of a user's own as a TFDS data set, read as those of the other builders are.

`agenet.data.own_images` encodes them in any order; here they become files of records. TFDS's own
writer would serialize and sort them in one thread, which takes longer than to decode them.
"""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from agenet.labels import UNKNOWN, nearest_age_group_of_range
from data_prep.builder import FaceBuilder, FaceConfig
from data_prep.release import hash_number

CONFIG = "faces"
VERSION = "1.0.0"
_SHARD_BYTES = 256 << 20


class OwnImages(FaceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The description of the data set; `create_builder` gives it a name."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [FaceConfig(name=CONFIG, description="Faces of a folder and a table.")]
    LICENSE = "That of the images."
    FEATURES = {
        "path": tfds.features.Text(),
        "subject": tfds.features.Text(),
        "split": tfds.features.Text(),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = "agenet prepare images"


def create_builder(name: str, data_dir: Path) -> FaceBuilder:
    """The builder of a data set that is called `name`, in a folder of data sets."""
    named = types.new_class(
        name,
        (OwnImages,),
        {"skip_registration": True},
        lambda space: space.update(name=name, __module__=__name__),
    )
    return named(config=CONFIG, data_dir=data_dir)


def features(
    path: str, subject: str, split: str, group: str, age_low: int, age_high: int, gender: int
) -> dict[str, int | str]:
    """All features of a face except its image.

    Args:
        path: of the image in its folder.
        subject: as in the table; "" if unknown.
        split: likewise.
        group: what tells the person apart: the subject, or the first path of a cluster.
        age_low: first year of the age, -1 if unknown.
        age_high: last year.
        gender: index into `agenet.labels.GENDERS`, -1 if unknown.
    """
    age = UNKNOWN if age_low == UNKNOWN else nearest_age_group_of_range(age_low, age_high)
    return {
        "path": path,
        "subject": subject,
        "split": split,
        "subject_id": hash_number(group),
        "age_official": age,
        "age_extended": age,
        "age_low": age_low,
        "age_high": age_high,
        "gender": gender,
    }


def write(
    builder: FaceBuilder,
    spool: Path,
    splits: Mapping[str, np.ndarray],
    places: np.ndarray,
    features_of: Callable[[int], Mapping[str, int | str]],
    metadata: Mapping[str, Any],
) -> Path:
    """Writes the data set, and returns its folder.

    Args:
        builder: of `create_builder`.
        spool: a file with all encoded images.
        splits: rows int [K] of the faces of each split.
        places: int64 [N, 2], first byte in `spool` and length of the image of each row.
        features_of: returns the features of a row.
        metadata: JSON-serialisable.
    """
    folder = Path(builder.data_path)
    folder.mkdir(parents=True)
    infos = []
    total = sum(map(len, splits.values()))
    with (
        spool.open("rb") as images,
        tqdm(total=total, desc="Writing", unit=" images", leave=False, disable=None) as bar,
    ):
        for split, rows in splits.items():
            template = tfds.core.ShardedFileTemplate(
                dataset_name=builder.name,
                data_dir=folder,
                split=split,
                filetype_suffix="array_record",
            )
            shards = list(_shards(rows, places[rows, 1]))
            size = 0
            for number, part in enumerate(shards):
                path = template.sharded_filepath(shard_index=number, num_shards=len(shards))
                # Images hardly compress.
                writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
                try:
                    for row in part.tolist():
                        start, length = places[row].tolist()
                        images.seek(start)
                        record = _serialize(images.read(length), features_of(row))
                        writer.write(record)
                        size += len(record)
                        bar.update()
                finally:
                    writer.close()
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[*map(len, shards)],
                    num_bytes=size,
                    filename_template=template,
                )
            )
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.metadata.clear()
    builder.info.metadata.update(metadata)
    builder.info.write_to_directory(folder)
    return folder


def _shards(rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Divides rows into files of about `_SHARD_BYTES`."""
    number = np.cumsum(lengths) // _SHARD_BYTES
    yield from np.split(rows, np.flatnonzero(np.diff(number)) + 1)


def _serialize(image: bytes, values: Mapping[str, int | str]) -> bytes:
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(image)
    for name, value in values.items():
        if isinstance(value, str):
            feature[name].bytes_list.value.append(value.encode())
        else:
            feature[name].int64_list.value.append(value)
    return example.SerializeToString()


def left_out(reasons: Mapping[str, Sequence[str]], kept: int) -> dict[str, Any]:
    """The metadata on images that were left out: their number and first paths by reason."""
    return {
        reason: {"count": len(paths), "first": list(paths[:kept])}
        for reason, paths in reasons.items()
    }
