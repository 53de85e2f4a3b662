from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenet.cli.app import run_command
from agenet.data.records import open_records
from agenet.errors import UserError
from data_prep.all_age_faces import release
from tests.data_prep.test_images import noise_jpeg

AGES = [2, 7, 30, 80]


@pytest.fixture
def manual_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight images of noise, the first four of them female."""
    monkeypatch.setattr(release, "RELEASED", {"train": 4, "test": 4})
    monkeypatch.setattr(release, "RELEASED_GENDERS", (4, 4))
    folder = tmp_path / "manual" / "All-Age-Faces Dataset"
    for name in ("original images", "image sets"):
        (folder / name).mkdir(parents=True)
    lines: dict[str, list[str]] = {"train.txt": [], "val.txt": []}
    for number in range(8):
        name = f"{number:05}A{AGES[number % 4]:02}.jpg"
        (folder / "original images" / name).write_bytes(noise_jpeg(24, 24, number))
        lines[("train.txt", "val.txt")[number % 2]].append(f"{name} {int(number >= 4)}")
    for list_, rows in lines.items():
        (folder / "image sets" / list_).write_text("\n".join(rows))
    return tmp_path / "manual"


def run(manual_dir: Path, data_dir: Path) -> None:
    arguments = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}"]
    run_command(["prepare", "all_age_faces", *arguments])


def test_prepares_both_lists(manual_dir: Path, tmp_path: Path, capsys: Any) -> None:
    run(manual_dir, tmp_path / "data")
    assert "--config.dataset.name=all_age_faces/original" in capsys.readouterr().out
    records = open_records("all_age_faces/original", str(tmp_path / "data"))
    assert np.bincount(records.fold).tolist() == [4, 4] and "optimistic" in records.notice
    assert sorted(records.age_low.tolist()) == sorted(AGES * 2)
    assert (records.age_low == records.age_high).all()
    assert np.bincount(records.labels["gender"]).tolist() == [4, 4]
    assert set(records.labels["age"][records.age_low == 7]) == {1}


def test_mistakes(manual_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = manual_dir / "All-Age-Faces Dataset" / "image sets" / "val.txt"
    content = val.read_text()
    for text, message in (
        (content + "\nx.jpg 0", r"val.txt, line 5: 'x.jpg 0' is not like 00000A02.jpg 0"),
        (content + "\n" + content.partition("\n")[0], r"line 5: .* was listed before"),
        (content.partition("\n")[2], r"the lists have 4 and 3 faces, 3 of them female, where"),
    ):
        val.write_text(text)
        with pytest.raises(UserError, match=message):
            run(manual_dir, tmp_path / "data")
    val.unlink()
    with pytest.raises(UserError, match=r"lacks image sets/val.txt. Get All-Age-Faces from"):
        run(manual_dir, tmp_path / "data")
    assert not (tmp_path / "data").exists()
