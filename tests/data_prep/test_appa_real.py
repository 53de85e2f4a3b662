from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from agenet.cli.app import run_command
from agenet.data.records import open_records
from agenet.errors import UserError
from data_prep.appa_real import release
from tests.data_prep.test_images import noise_jpeg

PARTS = {"train": range(6), "valid": range(6, 9), "test": range(9, 12)}


@pytest.fixture
def manual_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(release, "RELEASED", {part: len(ids) for part, ids in PARTS.items()})
    folder = tmp_path / "manual"
    for part, ids in PARTS.items():
        (folder / part).mkdir(parents=True)
        rows = ["file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age"]
        for number in ids:
            rows.append(f"{number:06}.jpg,38,{number + 0.5},4.25,{number}")
            for seed, suffix in enumerate(("", "_face.jpg")):
                path = folder / part / f"{number:06}.jpg{suffix}"
                path.write_bytes(noise_jpeg(24, 24, number + 100 * seed))
        (folder / f"gt_avg_{part}.csv").write_text("\n".join(rows))
    return folder


def run(manual_dir: Path, data_dir: Path, config: str = "photos") -> None:
    arguments = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", f"--config={config}"]
    run_command(["prepare", "appa_real", *arguments, "--overwrite"])


def test_ages_and_genders(manual_dir: Path, tmp_path: Path, capsys: Any) -> None:
    run(manual_dir, tmp_path / "data")
    assert "no gender: 12 images" in capsys.readouterr().out
    records = open_records("appa_real/photos", str(tmp_path / "data"))
    assert np.bincount(records.fold).tolist() == [3, 9] and set(records.labels["gender"]) == {-1}
    for part, ids in PARTS.items():
        rows = [
            f"x.jpg,{part}/{n:06}.jpg,9.9,{n},{'fe' * (n % 2)}male,asian" for n in ids if n != 3
        ]
        path = release.gender_table(manual_dir, part)
        path.write_text(
            "\n".join(["file224,file_full,apparent_age,real_age,gender,ethnicity", *rows])
        )
    run(manual_dir, tmp_path / "data", "faces")
    assert "no gender: 1 images" in capsys.readouterr().out
    faces = open_records("appa_real/faces", str(tmp_path / "data"))
    assert sorted(np.bincount(faces.labels["gender"] + 1).tolist()) == [1, 5, 6]
    assert set(faces.images).isdisjoint(records.images)
    builder = tfds.builder_from_directory(tmp_path / "data/appa_real/faces/1.0.0")
    example = next(e for e in builder.as_data_source("train") if e["split"] == b"valid")
    number = int(example["path"][6:12])
    assert example["age_low"] == example["age_high"] == number
    assert example["apparent_age"] == number + 0.5 and example["apparent_age_std"] == 4.25


def test_tables_without_a_header(manual_dir: Path, tmp_path: Path) -> None:
    (manual_dir / "valid").rename(manual_dir / "val")
    for part, ids in PARTS.items():
        (manual_dir / f"gt_avg_{part}.csv").unlink()
        name = "val" if part == "valid" else part
        rows = [f"{number:06}.jpg,{number}" for number in ids]
        (manual_dir / f"{name}_labels.csv").write_text("\n".join(rows))
    run(manual_dir, tmp_path / "data")
    records = open_records("appa_real/photos", str(tmp_path / "data"))
    assert sorted(records.age_low.tolist()) == list(range(12))
    for text, message in (
        ("000006.jpg,6,1\n", r"val_labels.csv, line 1: 3 fields, where there are two"),
        ("a.jpg,6\n", r"line 1: file 'a.jpg' is not like 000000.jpg"),
        ("000006.jpg,old\n", r"line 1: 'old' is not a number of years"),
        ("000006.jpg,130\n", r"line 1: the age 130 is above 120"),
        ("000006.jpg,6\n000006.jpg,6\n", r"line 2: 000006.jpg was listed before"),
        ("000006.jpg,6\n", r"1 rows, where the release has 3: download it again"),
    ):
        (manual_dir / "val_labels.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            run(manual_dir, tmp_path / "data")
    (manual_dir / "val_labels.csv").unlink()
    with pytest.raises(UserError, match=r"lacks gt_avg_valid.csv \(or val_labels.csv\)"):
        run(manual_dir, tmp_path / "data")
