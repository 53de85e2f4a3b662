import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from agenet.cli.app import run_command
from agenet.data.divide_images import plan_splits
from agenet.data.face_table import STRINGS
from agenet.data.prepare_images import NO_SUBJECTS_IN_FOLDS
from agenet.data.records import Records, join_records, open_records
from agenet.data.splits import count_leaked, make_splits
from agenet.errors import UserError
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box
from tests.data_prep.test_images import noise_jpeg

COUNT = 80


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        (folder / f"{number:02}.jpg").write_bytes(noise_jpeg(40, 40, number))
    return folder


def table(path: Path, *, subjects: bool = True, split: str = "", more: str = "") -> Path:
    """Ages of 5 and 27 to 32, both genders, four images for each subject."""
    header = "file,age,gender" + (",subject" if subjects else "") + (",split" if split else "")
    rows = [
        f"{number:02}.jpg,{'27-32' if number % 3 else 5},{'fm'[number % 2]}"
        + (f",p{number // 4}" if subjects else "")
        + (f",{split.split()[number // 4 % len(split.split())]}" if split else "")
        for number in range(COUNT)
    ]
    path.write_text("\n".join([header, *rows, more]))
    return path


def run(folder: Path, images: Path, *more: str, name: str = "mine") -> Records:
    arguments = [f"--images={images}", f"--name={name}", f"--data_dir={folder / 'data'}"]
    run_command(["prepare", "images", *arguments, "--overwrite", *more])
    return open_records(f"{name}/faces", str(folder / "data"))


def test_folds_by_subject(tmp_path: Path, images: Path, capsys: Any) -> None:
    records = run(tmp_path, images, f"--table={table(tmp_path / 'a.csv')}")
    output = capsys.readouterr().out
    assert "columns of a.csv: path = file, age = age, gender = gender, subject = subject" in output
    assert "folds: 5, by subject, balanced by age group and gender, seed 0" in output
    assert "next: agenet train --config=levi_hassner_adience --workdir=runs/mine " in output
    assert f"--config.dataset.name=mine/faces --config.dataset.data_dir={tmp_path}/data" in output
    assert np.bincount(records.fold).tolist() == [16] * 5 and records.notice == ""
    for subject in np.unique(records.subject_id):
        assert len(np.unique(records.fold[records.subject_id == subject])) == 1
    assert np.unique([records.age_low, records.age_high], axis=1).T.tolist() == [
        [5, 5],
        [27, 32],
    ]
    assert set(records.labels["age"]) == {1, 4} and np.bincount(records.labels["gender"])[0] == 40
    # Small files are stored as they are.
    assert set(records.images) == {path.read_bytes() for path in images.iterdir()}
    folder = tmp_path / "data/mine/faces/1.0.0"
    builder = tfds.builder_from_directory(folder)
    example = builder.as_data_source("fold_0")[0]
    number = int(example["path"][:2])
    assert example["subject"] == f"p{number // 4}".encode() and example["image"].shape == (
        40,
        40,
        3,
    )
    page = (folder / "report.html").read_text()
    assert page.count("<img") > 8 and "Ages and genders" in page
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    run_command(
        ["prepare", "images", "--name=mine", f"--images={images}", f"--data_dir={tmp_path}/data"]
    )
    assert "already prepared" in capsys.readouterr().out


def test_near_duplicates_stay_together(tmp_path: Path, images: Path, capsys: Any) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    for number in range(10):
        small = cv2.imdecode(np.frombuffer(noise_jpeg(40, 40, number), np.uint8), 1)
        cv2.imwrite(str(folder / f"again{number}.png"), small)
    shutil.copy(folder / "20.jpg", folder / "copy.jpg")
    (folder / "broken.jpg").write_bytes(noise_jpeg(40, 40, 200)[:500])
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((8, 8, 3), np.uint8))
    more = [f"again{number}.png,30,f" for number in range(10)]
    more += ["copy.jpg,90,f", "broken.jpg,3,f", "tiny.png,3,m", "00a.jpg,3,f", "02a.jpg,,"]
    path = table(tmp_path / "a.csv", subjects=False, more="\n".join(more))
    with pytest.raises(UserError, match=r"2 of 95 images are not in .*: 00a.jpg, 02a.jpg"):
        run(tmp_path, folder, f"--table={path}")
    assert not (tmp_path / "data").exists()
    records = run(tmp_path, folder, f"--table={path}", "--allow-missing", "--folds=4")
    output = capsys.readouterr().out
    assert (
        "folds: 4, by cluster of near-duplicates" in output
        and records.notice == NO_SUBJECTS_IN_FOLDS
    )
    assert "left out: 1 (an exact copy of another image): copy.jpg" in output
    assert "warning: 1 exact copies have another age or gender, such as copy.jpg" in output
    assert "left out: 2 (missing): 00a.jpg, 02a.jpg" in output
    assert "left out: 1 (smaller than 20 pixels): tiny.png" in output
    assert len(records.fold) == 90 and len(np.unique(records.subject_id)) == 80
    splits = make_splits(
        records, tasks=("age",), protocol="subject", test_fold=1, validation_fraction=0.2, seed=0
    )
    assert count_leaked(records, splits) == 0
    metadata = json.loads((tmp_path / "data/mine/faces/1.0.0/metadata.json").read_text())
    assert metadata["left_out"]["missing"] == {"count": 2, "first": ["00a.jpg", "02a.jpg"]}


def test_splits_of_the_table_and_joined_sets(tmp_path: Path, images: Path, capsys: Any) -> None:
    path = table(tmp_path / "a.tsv", split="train val test train")
    records = run(tmp_path, images, f"--table={path}")
    assert "the split validation becomes train" in capsys.readouterr().out
    assert np.bincount(records.fold).tolist() == [20, 60]
    other = run(tmp_path, images, f"--table={table(tmp_path / 'b.csv')}", name="other")
    joined = join_records(records, [other])
    assert len(joined.fold) == 80 + 64 and joined.name == "mine/faces/1.0.0 + other/faces/1.0.0"


def test_labels_from_names(tmp_path: Path, images: Path, capsys: Any) -> None:
    for number, path in enumerate(sorted(images.iterdir())):
        place = (
            tmp_path
            / "folders"
            / ("female", "Men")[number % 2]
            / ("0-2", "(25, 32)")[number % 3 % 2]
        )
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
        (tmp_path / "names").mkdir(exist_ok=True)
        shutil.copy(
            path, tmp_path / "names" / f"{20 + number % 30}_{number % 2}_0_2017{number}.JPG"
        )
    records = run(tmp_path, tmp_path / "folders")
    assert "labels by the names of folders: gender of 80, age of 80" in capsys.readouterr().out
    assert np.bincount(records.labels["gender"]).tolist() == [40, 40]
    pattern = "--pattern={age}_{gender}_{race}_{date}.jpg"
    with pytest.raises(UserError, match=r"the gender '0' is not known: .* --gender 0=female"):
        run(tmp_path, tmp_path / "names", pattern)
    means = ("--gender=0=male", "--gender=1=female")
    records = run(tmp_path, tmp_path / "names", pattern, *means)
    assert records.age_low.min() == 20 and records.age_high.max() == 49
    assert set(records.labels["gender"]) == {0, 1}
    with pytest.raises(UserError, match=r"does not match 80 of 80 images in .*: 20_0_0_20170.JPG"):
        run(tmp_path, tmp_path / "names", "--pattern={subject}A{age}.jpg")
    with pytest.raises(UserError, match=r"80 of 80 images are in no folder that names an age or"):
        run(tmp_path, tmp_path / "names")
    with pytest.raises(UserError, match=r"has neither \{age\} nor \{gender\}"):
        run(tmp_path, tmp_path / "names", "--pattern={date}.jpg")


def test_faces_are_cut_as_at_prediction(tmp_path: Path, real_data: Path, images: Path) -> None:
    photo = cv2.imread(str(real_data / "media" / "astronaut.png"))
    assert photo is not None
    (face,) = create_detector().detect(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB))
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    cv2.imwrite(str(folder / "a.png"), photo)
    cv2.imwrite(str(folder / "b.png"), photo[:-20])
    left, top, right, bottom = Box(*face.box)
    rows = [f"{number:02}.jpg,{number},f,5,5,35,35" for number in range(60)]
    rows += [
        f"a.png,70,f,{left},{top},{right},{bottom}",
        f"b.png,71,m,{left},{top},{right},{bottom}",
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["file,age,gender,x1,y1,x2,y2", *rows]))
    with_boxes = run(tmp_path, folder, f"--table={path}")
    aligned = run(tmp_path, folder, f"--table={path}", "--detect", "--size=64")
    for records, side in (
        (with_boxes, round(1.098 * ((right - left) * (bottom - top)) ** 0.5)),
        (aligned, 64),
    ):
        assert (records.age_low == 70).sum() == 1
        row = int(np.flatnonzero(records.age_low == 70)[0])
        image = cv2.imdecode(np.frombuffer(records.images[row], np.uint8), cv2.IMREAD_COLOR)
        assert image is not None and image.shape[:2] == (side, side)
    found = create_detector().detect(cv2.cvtColor(cv2.resize(image, (256, 256)), cv2.COLOR_BGR2RGB))
    assert found and abs(found[0].landmarks[0, 1] - found[0].landmarks[1, 1]) < 12  # type: ignore[index]
    (tmp_path / "b.csv").write_text("file,age\n" + "\n".join(f"{n:02}.jpg,{n}" for n in range(60)))
    with pytest.raises(UserError, match=r"only 0 of 60 images can be used: 60 no face was found"):
        run(tmp_path, images, f"--table={tmp_path / 'b.csv'}", "--detect")


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([f"{n:02}.jpg,{n},f" for n in range(30)], (), "30 images with labels, fewer than the 50"),
        ([f"{n:02}.jpg,4,f" for n in range(60)], (), "the age 4-6 and the gender female: nothing"),
        ([f"{n:02}.jpg,," for n in range(60)], (), "no face has an age or a gender"),
        ([f"{n:02}.jpg,{n},f" for n in range(60)], ("--name=Mine",), "--name Mine: use small"),
        (
            [f"{n:02}.jpg,{n},f" for n in range(60)],
            ("--name=adience",),
            "a public data set: choose",
        ),
        ([f"{n:02}.jpg,{n},f" for n in range(60)], ("--pattern={age}.jpg",), "without a table"),
        ([f"{n:02}.jpg,{n},f" for n in range(60)], ("--column=age",), "write it as --column NAME="),
        ([f"{n:02}.jpg,{n},f" for n in range(60)], ("--gender=0=woman",), "'woman' is neither fem"),
        ([f"{n:02}.jpg,{n},f" for n in range(60)], ("--folds=40",), "cannot be divided into 40"),
        ([f"../{n:02}.jpg,{n},f" for n in range(60)], (), "leads out of its folder"),
    ],
)
def test_mistakes_in_one_line(
    tmp_path: Path, images: Path, rows: list[str], more: tuple[str, ...], message: str
) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["file,age,gender", *rows]))
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, images, f"--table={tmp_path / 'a.csv'}", *more)
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_a_single_class_of_one_task(tmp_path: Path, images: Path, capsys: Any) -> None:
    rows = [f"{number:02}.jpg,{number},f" for number in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["file,age,gender", *rows]))
    run(tmp_path, images, f"--table={tmp_path / 'a.csv'}")
    output = capsys.readouterr().out
    assert "all faces have the gender female: it cannot be learnt" in output
    assert "--config.tasks=age" in output


def test_which_splits_are_made() -> None:
    def plan(*names: str) -> list[str] | None:
        split, _ = plan_splits(np.array(names, STRINGS))
        return None if split is None else split.tolist()

    assert plan("train", "validation", "test", "") == ["train", "train", "test", ""]
    assert plan("train", "validation") == ["train", "test"]
    assert plan("validation", "test") == ["train", "test"]
    assert plan("test", "test") == ["test", "test"]
    assert plan("train", "train") is None and plan("", "") is None and plan("fold_0") is None
    assert plan("fold_1", "fold_2") == ["fold_1", "fold_2"]
    with pytest.raises(UserError, match="the splits are fold_1, train: name either folds or"):
        plan("fold_1", "train")
