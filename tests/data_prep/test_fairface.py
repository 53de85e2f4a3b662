import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from agenet.cli.app import run_command
from agenet.data.records import open_records
from agenet.data.splits import make_splits
from agenet.errors import UserError
from agenet.labels import RACES
from data_prep.fairface import release
from data_prep.fairface.release import read_labels
from tests.data_prep.test_images import noise_jpeg

HEADER = "file,age,gender,race,service_test"
AGES = ["0-2", "03-Sep", "Oct-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"]
COUNTS = {"train": 36, "test": 18}


def row(split: str, number: int) -> str:
    """Cycles through ages, genders and races."""
    age, race = AGES[number % 9], RACES[number % 7]
    return f"{split}/{number + 1}.jpg,{age},{('Female', 'Male')[number % 2]},{race},{number < 3}"


def write_release(folder: Path) -> None:
    """Folders of noise and both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for (split, count), name in zip(COUNTS.items(), ("train", "val"), strict=True):
        rows = [HEADER, *(row(name, number) for number in range(count))]
        release.label_file(folder, split).write_text("\n".join([*rows, ""]))
        (folder / name).mkdir()
        for number in range(count):
            (folder / name / f"{number + 1}.jpg").write_bytes(noise_jpeg(16, 16, number))


def run(manual_dir: Path, data_dir: Path, config: str = "margin025") -> None:
    arguments = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", f"--config={config}"]
    run_command(["prepare", "fairface", *arguments, "--overwrite"])


@pytest.fixture
def manual_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(release, "RELEASED", COUNTS)
    write_release(tmp_path / "manual")
    return tmp_path / "manual"


def test_real_labels(real_data: Path) -> None:
    faces = [read_labels(real_data / "fairface", split) for split in ("train", "test")]
    assert [len(split) for split in faces] == [40000, 5000]
    ages = {face.age for split in faces for face in split.values()}
    assert ages == {"3-9", "10-19", *AGES} - {"03-Sep", "Oct-19"}
    assert sum(face.age_range == (3, 9) for face in faces[0].values()) == 4867
    assert sum(face.race == RACES.index("White") for face in faces[1].values()) == 962
    assert sum(face.gender for face in faces[1].values()) == 2633


def test_case_of_a_spreadsheet_in_the_us(real_data: Path, tmp_path: Path) -> None:
    shutil.copy(
        real_data / "cases" / "fairface_label_us_dates.csv", release.label_file(tmp_path, "test")
    )
    faces = read_labels(tmp_path, "test").values()
    assert len(faces) == 40
    assert {face.age for face in faces} == {"3-9", "10-19", *AGES} - {"03-Sep", "Oct-19"}


def test_folders_archives_and_zip_are_equivalent(manual_dir: Path, tmp_path: Path) -> None:
    run(manual_dir, tmp_path / "data")
    records = open_records("fairface/margin025", str(tmp_path / "data"))
    assert records.notice == "" and np.bincount(records.fold).tolist() == [18, 36]
    assert set(records.race) == set(range(7)) and len(np.unique(records.subject_id)) == 54
    example = next(
        e
        for e in tfds.builder_from_directory(
            tmp_path / "data/fairface/margin025/1.0.0"
        ).as_data_source("test")
        if e["path"] == b"val/3.jpg"
    )
    assert example["age"] == b"10-19" and example["service_test"]
    labels = ("age_low", "age_high", "age_official", "age_extended", "gender", "race")
    assert [example[label] for label in labels] == [10, 19, 3, 3, 0, 2]

    for name in ("train", "val"):
        with tarfile.open(manual_dir / f"fairface_{name}.tar", "w") as archive:
            archive.add(manual_dir / name, name)
    with zipfile.ZipFile(manual_dir / "fairface-img-margin125-trainval.zip", "w") as zipped:
        for path in sorted(manual_dir.glob("*/*.jpg")):
            zipped.write(path, path.relative_to(manual_dir))
    (manual_dir / "fairface-img-margin025-trainval").mkdir()
    for name in ("train", "val"):
        (manual_dir / name).rename(manual_dir / "fairface-img-margin025-trainval" / name)
    for config in ("margin025", "margin125", "margin025"):
        run(manual_dir, tmp_path / "data", config)
        again = open_records(f"fairface/{config}", str(tmp_path / "data"))
        assert again.fingerprint() == records.fingerprint()
        for path in manual_dir.glob("*.tar"):
            path.unlink()


def test_splits_for_training(manual_dir: Path, tmp_path: Path) -> None:
    run(manual_dir, tmp_path / "data")
    records = open_records("fairface/margin025", str(tmp_path / "data"))
    splits = make_splits(
        records,
        tasks=("age", "gender"),
        protocol="subject",
        test_fold=0,
        validation_fraction=0.2,
        seed=0,
    )
    assert [len(rows) for rows in vars(splits).values()] == [29, 7, 18]


def test_partial_release(manual_dir: Path, tmp_path: Path, capsys: Any) -> None:
    for number in range(1, 21):
        (manual_dir / "train" / f"{number}.jpg").unlink()
    with pytest.raises(UserError, match=r"20 of 54 images are missing: train/1.jpg, "):
        run(manual_dir, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    run(manual_dir, tmp_path / "data", "partial")
    notice = "A part of FairFace: 16 of 36 train images and 18 of 18 test images."
    output = capsys.readouterr().out
    assert notice in output and "left out: 20 images that are missing: train/1.jpg" in output
    assert open_records("fairface/partial", str(tmp_path / "data")).notice == notice

    shutil.rmtree(manual_dir / "train")
    (manual_dir / "val" / "1.jpg").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"1 of 18 images do not decode: val/1.jpg"):
        run(manual_dir, tmp_path / "data", "partial")
    (manual_dir / "val" / "1.jpg").unlink()
    run(manual_dir, tmp_path / "data", "partial")
    records = open_records("fairface/partial", str(tmp_path / "data"))
    assert records.fold.tolist() == [0] * 17
    assert "0 of 36 train images and 17 of 18 test" in records.notice
    for path in (manual_dir / "val").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of the listed images was found"):
        run(manual_dir, tmp_path / "data", "partial")


def test_missing_files_are_named(manual_dir: Path, tmp_path: Path) -> None:
    label = release.label_file(manual_dir, "train")
    whole = label.read_text()
    label.write_text("\n".join(whole.splitlines()[:30]))
    with pytest.raises(UserError, match=r"train.csv: 29 rows, where the release has 36: .*partial"):
        run(manual_dir, tmp_path / "data")
    label.unlink()
    shutil.rmtree(manual_dir / "val")
    lacking = (
        r"lacks fairface_label_train.csv, fairface-img-margin025-trainval.zip \(or fairface_val"
    )
    for config in ("margin025", "partial"):
        with pytest.raises(UserError, match=lacking):
            run(manual_dir, tmp_path / "data", config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0-2", "0-3", "line 2: age '0-3' is not known"),
        ("Male", "M", "line 3: gender 'M' is neither Male nor Female"),
        ("Indian", "Martian", "line 4: race 'Martian' is not one of Black, East Asian"),
        ("True", "yes", "line 2: service_test 'yes' is neither"),
        (",True", "", "line 2: 4 columns, where the header has 5"),
        ("val/2.jpg", "val/../2.jpg", "line 3: file 'val/../2.jpg' is not like val/1.jpg"),
        ("val/2.jpg", "train/2.jpg", "line 3: file 'train/2.jpg'"),
        ("val/2.jpg", "val/1.jpg", "line 3: val/1.jpg was listed before"),
        ("file,", "path,", "line 1: not the header of a table of FairFace's labels"),
        ("Indian", "\xff", "not text in UTF-8"),
        ("Indian", '"Indian', "line "),
        ("Indian", "x" * 200_000, "line 4: field larger than field limit"),
    ],
)
def test_invalid_rows(manual_dir: Path, old: str, new: str, message: str) -> None:
    path = release.label_file(manual_dir, "test")
    path.write_text(path.read_text().replace(old, new, 1), encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read_labels(manual_dir, "test")
    assert f"{path}" in str(caught.value) and message in str(caught.value)


def test_empty_tables(manual_dir: Path) -> None:
    path = release.label_file(manual_dir, "test")
    for text, message in (("", "empty"), (HEADER + "\n\n", "no rows")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_labels(manual_dir, "test")


@pytest.mark.slow
def test_real_faces(real_data: Path, tmp_path: Path) -> None:
    run(real_data / "fairface", tmp_path, "partial")
    records = open_records("fairface/partial", str(tmp_path))
    assert len(records.images) == 5000 and "0 of 86,744 train" in records.notice
    assert np.bincount(records.labels["gender"]).tolist() == [2367, 2633]
