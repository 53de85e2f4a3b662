import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agenet.data.records import (
    Records,
    default_data_dir,
    find_prepared,
    join_records,
    open_records,
)
from agenet.data.stored import measure_images, read_images
from agenet.errors import UserError
from agenet.labels import AGE_GROUPS

NAME = "drawn_faces/faces"
SHARD = "drawn_faces-fold_2.array_record-00000-of-00001"


def prepared(data_dir: Path) -> Path:
    return find_prepared(NAME, str(data_dir))


@pytest.fixture
def copy(drawn_faces: Path, tmp_path: Path) -> Path:
    """A copy of the data directory that a test may damage."""
    shutil.copytree(drawn_faces / "drawn_faces", tmp_path / "drawn_faces")
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_open_prepared_data_set(drawn_faces: Path) -> None:
    records = open_records(NAME, str(drawn_faces))
    count = len(records.images)
    assert records.name == "drawn_faces/faces/1.1.0" and "Drawn" in records.notice
    assert np.bincount(records.fold).tolist() == [count // 5] * 5
    assert len(records.subject_id) == count and records.subject_id.dtype == np.int64
    assert records.race is None
    low, high, age = records.age_low, records.age_high, records.labels["age"]
    assert low.dtype == high.dtype == np.int32
    assert np.all(low <= high) and np.all((low == -1) == (high == -1))
    for group, bounds in enumerate(AGE_GROUPS):
        bounds_here = {*zip(low[age == group].tolist(), high[age == group].tolist(), strict=True)}
        assert bounds_here == {tuple(map(int, bounds.split("-")))}
    for task, classes in (("age", 8), ("gender", 2)):
        labels = records.labels[task]
        assert labels.dtype == np.int32 and labels.shape == (count,)
        assert set(labels.tolist()) == set(range(-1, classes))
    for encoded in records.images[:3]:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (128, 128, 3)


def test_folds_share_no_subject(drawn_faces: Path) -> None:
    records = open_records(NAME, str(drawn_faces))
    folds_of_persons = {*zip(records.subject_id.tolist(), records.fold.tolist(), strict=True)}
    assert len(folds_of_persons) == len(np.unique(records.subject_id))


def test_extended_labels_add_ages(drawn_faces: Path) -> None:
    official = open_records(NAME, str(drawn_faces))
    extended = open_records(NAME, str(drawn_faces), "extended")
    known = official.labels["age"] >= 0
    np.testing.assert_array_equal(official.labels["age"][known], extended.labels["age"][known])
    assert np.sum(extended.labels["age"] >= 0) > np.sum(known)
    assert official.fingerprint() != extended.fingerprint()


def test_fingerprint_distinguishes_data_sets(make_records: Callable[..., Records]) -> None:
    records = make_records(20)
    assert records.fingerprint() == make_records(20).fingerprint()
    images = [records.images[0] + b" ", *records.images[1:]]
    changed = [
        dataclasses.replace(records, images=images),
        dataclasses.replace(records, fold=records.fold[::-1]),
        dataclasses.replace(records, subject_id=records.subject_id + 1),
        dataclasses.replace(records, labels=records.labels | {"age": records.labels["gender"]}),
        dataclasses.replace(records, age_low=records.age_low - 1),
        dataclasses.replace(records, age_high=records.age_high + 1),
        dataclasses.replace(records, race=records.fold),
    ]
    assert len({r.fingerprint() for r in [records, *changed]}) == 8


def test_fingerprint_is_stable(drawn_faces: Path) -> None:
    numbers = np.arange(4)
    records = Records(
        name="some/faces/1.0.0",
        notice="",
        images=[b"1", b"22", b"", b"4444"],
        fold=numbers.astype(np.int32),
        subject_id=numbers + 10,
        labels={"age": numbers.astype(np.int32), "gender": numbers.astype(np.int32) % 2},
        age_low=numbers.astype(np.int32),
        age_high=numbers.astype(np.int32) + 1,
    )
    assert records.fingerprint() == "fe17f9d9b12d446e"
    stored = open_records(NAME, str(drawn_faces))
    kept = dataclasses.replace(stored, images=list(stored.images))
    assert stored.fingerprint() == kept.fingerprint()
    assert stored.checksum() == kept.checksum()
    # Another image of the same size in bytes.
    kept.images[3] = bytes(len(kept.images[3]))
    assert stored.fingerprint() == kept.fingerprint()
    assert stored.checksum() != kept.checksum()


def test_images_are_read_by_row(drawn_faces: Path) -> None:
    images = open_records(NAME, str(drawn_faces)).images
    kept = list(images)
    assert len(images) == len(kept) == 300
    assert images[-1] == kept[-1] and images[250:40:-70] == kept[250:40:-70]
    rows = np.random.default_rng(0).permutation(300)
    expected = [kept[row] for row in rows]
    assert read_images(images, rows) == read_images(kept, rows) == expected
    assert read_images(pickle.loads(pickle.dumps(images)), rows) == expected
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda part: read_images(images, part), np.split(rows, 20)))
    assert [image for part in parts for image in part] == expected
    with pytest.raises(IndexError):
        images[300]


def test_joined_images_are_read_by_row(
    drawn_faces: Path, make_records: Callable[..., Records]
) -> None:
    stored, noise = open_records(NAME, str(drawn_faces)), make_records(50)
    joined = join_records(stored, [noise])
    added = [p for p, fold in zip(noise.images, noise.fold, strict=True) if fold != 0]
    assert list(joined.images) == [*stored.images, *added]
    lengths, checksums = measure_images(joined.images)
    assert lengths.tolist() == [len(p) for p in joined.images]
    assert checksums.tolist() == [zlib.crc32(p) for p in joined.images]
    assert joined.images[305] == added[5] and joined.images[7] == stored.images[7]


def test_images_that_became_unreadable(copy: Path) -> None:
    records = open_records(NAME, str(copy))
    images = pickle.loads(pickle.dumps(records)).images  # Without open files.
    os.truncate(prepared(copy) / SHARD, 1 << 16)
    assert images[5] == records.images[5]
    with pytest.raises(UserError, match=r"image 1\d\d of drawn_faces/faces/1\.1\.0 cannot be"):
        read_images(images, [5, 179, 150])


def test_newest_version_is_taken(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "incomplete.2.0.0", "2.0.0"):
        folder = tmp_path / NAME / version
        folder.mkdir(parents=True)
        if version != "2.0.0":  # not finished: no dataset_info.json
            (folder / "dataset_info.json").touch()
    assert find_prepared(NAME, str(tmp_path)).name == "1.10.0"


def test_default_data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == Path.home() / "tensorflow_datasets"


def test_not_prepared_error_names_the_command(tmp_path: Path) -> None:
    command = f"agenet prepare adience --config=faces --data_dir={tmp_path} --manual_dir"
    with pytest.raises(UserError, match=f"not prepared in {tmp_path}: run  {command}"):
        open_records("adience/faces", str(tmp_path))


@pytest.mark.parametrize("name", ["adience", "adience/", "", "../adience/faces", "/etc/x"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(UserError, match=f'data set "{name}" must be DATA_SET/CONFIG'):
        open_records(name)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda folder: os.truncate(folder / SHARD, 100_000),
    "truncated at a block": lambda folder: os.truncate(folder / SHARD, 1 << 16),
    "empty": lambda folder: os.truncate(folder / SHARD, 0),
    "missing": lambda folder: (folder / SHARD).unlink(),
    "a pipe": lambda folder: [(folder / SHARD).unlink(), os.mkfifo(folder / SHARD)],
    "a description that is a pipe": lambda folder: [
        (folder / "metadata.json").unlink(),
        os.mkfifo(folder / "metadata.json"),
    ],
    "empty features": lambda folder: (folder / "features.json").write_text("[]"),
    "deep features": lambda folder: (folder / "features.json").write_text("[" * 100_000),
    "features not in UTF-8": lambda folder: (folder / "features.json").write_bytes(b'{"\xff": 1}'),
    "huge features": lambda folder: os.truncate(folder / "features.json", 1 << 30),
    "metadata of another type": lambda folder: (folder / "metadata.json").write_text("3"),
    "no features": lambda folder: (folder / "features.json").unlink(),
    "info cut short": lambda folder: (folder / "dataset_info.json").write_text('{"name":'),
    "info without version": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info.pop("version")
    ),
    "another format": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord")
    ),
    "files elsewhere": lambda folder: edit(
        folder / "dataset_info.json",
        lambda info: info["splits"][0].update(filepathTemplate="../x-{SHARD_X_OF_Y}"),
    ),
    "a split that leaves the folder": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info["splits"][0].update(name="../fold_0")
    ),
    "a name that leaves the folder": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info.update(name="../../x")
    ),
    "no number of records": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["x"])
    ),
    "huge lengths": lambda folder: edit(
        folder / "dataset_info.json",
        lambda info: info["splits"][0].update(shardLengths=[str((1 << 40) - 1)]),
    ),
    "a negative length": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["-60"])
    ),
    "a split twice": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info["splits"].append(info["splits"][0])
    ),
    "splits of another type": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info.update(splits={"train": 3})
    ),
    "other lengths": lambda folder: edit(
        folder / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["99"])
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged(copy: Path, damage: Callable[[Path], Any]) -> None:
    damage(prepared(copy))
    with pytest.raises(UserError, match=r"1\.1\.0 is damaged \(.+ --overwrite$") as caught:
        open_records(NAME, str(copy))
    assert "\n" not in str(caught.value)


CLASSES = {
    "a feature": {"features": {"gender": {"pythonClassName": "evil.X"}}},
    "the dictionary": {"features": {"gender": {}}, "pythonClassName": "evil.X"},
    "in another spelling": {"features": {"gender": {"python_class_name": "evil.X"}}},
    "nested": {"features": {"a": {"sequence": {"feature": {"pythonClassName": "evil.X"}}}}},
    "beside TFDS": {"features": {"a": {"pythonClassName": "tensorflow_datasets.core.evil.X"}}},
    "like TFDS": {"features": {"a": {"pythonClassName": "tensorflow_datasets.core.features.x y"}}},
    "of another type": {"features": {"a": {"pythonClassName": ["evil.X"]}}},
}


@pytest.mark.parametrize("features", CLASSES.values(), ids=CLASSES)
def test_code_in_the_description_is_not_run(
    copy: Path, features: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(copy)
    (prepared(copy) / "features.json").write_text(json.dumps({"featuresDict": features}))
    message = r"1\.1\.0 is refused, because features.json names the class .*: prepare it yourself:"
    with pytest.raises(UserError, match=message) as caught:
        open_records(NAME, str(copy))
    assert "\n" not in str(caught.value)
    assert not (copy / "executed").exists() and "evil" not in sys.modules


def test_case_of_code_in_the_description(copy: Path, real_data: Path) -> None:
    shutil.copy(real_data / "cases" / "evil_features.json", prepared(copy) / "features.json")
    with pytest.raises(UserError, match=r"names the class 'evilmod\.X', which is not one of TFDS"):
        open_records(NAME, str(copy))


def test_control_characters_in_the_notice(copy: Path) -> None:
    edit(prepared(copy) / "metadata.json", lambda content: content.update(notice="a\x1b[2J\u202eb"))
    assert open_records(NAME, str(copy)).notice == "a?[2J?b"


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    """Changes the features of the first record of a shard."""
    from array_record.python import array_record_module as array_record
    from tensorflow_datasets.proto import tf_example_pb2

    path = folder / SHARD
    reader = array_record.ArrayRecordReader(str(path))
    examples = [tf_example_pb2.Example.FromString(r) for r in reader.read(0, reader.num_records())]
    change(examples[0].features.feature)
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        writer.write(example.SerializeToString())
    writer.close()


def setting(column: str, value: int) -> Callable[[Any], Any]:
    return lambda feature: feature[column].int64_list.value.__setitem__(0, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("gender", 2), "row 120 has the gender 2"),
        (setting("gender", -2), "row 120 has the gender -2"),
        (setting("age_official", 8), "row 120 has the age_official 8"),
        (setting("age_official", 1 << 32), "row 120 has the age_official 4294967296"),
        (setting("subject_id", 2**63 - 1), "row 120 has the subject_id"),
        (setting("age_low", 200), "row 120 has an age_low above its age_high"),
        (lambda f: f["gender"].int64_list.ClearField("value"), "index out of range"),
        (lambda f: f["image"].bytes_list.ClearField("value"), "image 120 is neither JPEG nor PNG"),
        (lambda f: f["image"].bytes_list.value.__setitem__(0, b"GIF89a"), "image 120 is neither"),
        (
            lambda f: f["image"].bytes_list.value.__setitem__(0, bytes(20 << 20)),
            "claims far more bytes than it has",
        ),
    ],
)
def test_values_that_no_builder_writes(
    copy: Path, change: Callable[[Any], Any], message: str
) -> None:
    rewrite(prepared(copy), change)
    with pytest.raises(UserError, match=rf"1\.1\.0 is damaged \(.*{message}.* --overwrite$"):
        open_records(NAME, str(copy))


def test_a_version_set_aside_by_a_killed_overwrite_is_found(copy: Path) -> None:
    folder = prepared(copy)
    folder.rename(folder.with_name("replaced.1.1.0"))
    assert len(open_records(NAME, str(copy)).images) == 300
    shutil.copytree(folder, folder.with_name("replaced.1.1.0"))
    assert prepared(copy) == folder and folder.with_name("replaced.1.1.0").exists()


def test_another_kind_of_data_set(copy: Path) -> None:
    def other_features(content: dict[str, Any]) -> None:
        features = content["featuresDict"]["features"]
        del features["subject_id"], features["gender"]

    edit(prepared(copy) / "features.json", other_features)
    with pytest.raises(UserError, match="lacks the features gender, subject_id: choose"):
        open_records(NAME, str(copy))


def test_prepared_by_an_older_version(copy: Path) -> None:
    def older_features(content: dict[str, Any]) -> None:
        features = content["featuresDict"]["features"]
        del features["age_low"], features["age_high"]

    edit(prepared(copy) / "features.json", older_features)
    command = r"agenet prepare drawn_faces --config=faces --data_dir="
    with pytest.raises(UserError, match=rf"older version and lacks .*age_low: .* {command}"):
        open_records(NAME, str(copy))


def rename_splits(folder: Path, *names: str) -> None:
    """Renames the first splits and drops the others."""

    def change(content: dict[str, Any]) -> None:
        content["splits"] = content["splits"][: len(names)]
        for split, name in zip(content["splits"], names, strict=True):
            path = folder / SHARD.replace("fold_2", split["name"])
            path.rename(folder / SHARD.replace("fold_2", name))
            split["name"] = name

    edit(folder / "dataset_info.json", change)


@pytest.mark.parametrize("names", [("test", "train"), ("test",)])
def test_train_and_test_are_folds(copy: Path, names: tuple[str, ...]) -> None:
    rename_splits(prepared(copy), *names)
    records = open_records(NAME, str(copy))
    assert np.bincount(records.fold).tolist() == [60] * len(names)


def test_other_splits(copy: Path) -> None:
    info = prepared(copy) / "dataset_info.json"
    edit(info, lambda content: content["splits"][0].update(name="train"))
    with pytest.raises(UserError, match=r"has the splits .*train.*, not fold_0, fold_1"):
        open_records(NAME, str(copy))


def test_reading_does_not_import_tensorflow(drawn_faces: Path) -> None:
    code = (
        "import sys; from agenet.data.records import open_records; "
        f"open_records({NAME!r}, {str(drawn_faces)!r}); print('tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
