import json
import re
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from agenet.cli.app import run_command
from agenet.data import prepare
from agenet.data.records import open_records
from agenet.errors import UserError
from agenet.main import read_config
from data_prep.adience.folds_builder import FoldsBuilder
from data_prep.drawn_faces import release as drawn_release
from tests.conftest import run_program
from tests.data_prep.test_adience import write_release
from tests.data_prep.test_archives import extract
from tests.data_prep.test_images import noise_jpeg

PREPARED = "adience/faces/1.1.0"


@pytest.fixture
def manual_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "manual"
    folder.mkdir()
    write_release(folder)
    return folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(name: str, manual_dir: Path, data_dir: Path, *more: str) -> None:
    run_command(["prepare", name, f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", *more])


def test_prepares_what_is_read(
    manual_dir: Path, data_dir: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = data_dir.with_name("scratch")
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    run("adience", manual_dir, data_dir)
    assert not list(scratch.iterdir())
    output = capsys.readouterr().out
    assert "fold_4: 2 images" in output and f"--config.dataset.data_dir={data_dir}" in output
    builder = tfds.builder_from_directory(data_dir / PREPARED)
    assert sorted(builder.info.splits) == [f"fold_{i}" for i in range(5)]
    assert builder.info.file_format.value == "array_record"
    assert "Adience" in builder.info.description and "Eidinger" in builder.info.citation
    faces = {e["original_image"]: e for e in builder.as_data_source("fold_3")}
    known, unknown = faces[b"0_o.jpg"], faces[b"last_o.jpg"]
    assert known["user_id"] == b"3@N0" and known["subject_id"] == 30
    assert known["age"] == b"(25, 32)" and known["yaw"] == -15.0
    assert [known[k] for k in ("age_official", "age_extended", "gender")] == [4, 4, 0]
    assert [unknown[k] for k in ("age_official", "age_extended", "gender")] == [-1, -1, -1]
    assert [face[k] for face in (known, unknown) for k in ("age_low", "age_high")] == [
        25,
        32,
        -1,
        -1,
    ]
    pictures = open_records("adience/faces", str(data_dir)).images
    assert sorted(pictures) == sorted(noise_jpeg(32, 40, seed) for seed in range(10))
    # Nothing but the prepared set: no temporary files, no empty download folders.
    assert sorted(p.name for p in data_dir.iterdir()) == ["adience"]
    assert [p.name for p in (data_dir / "adience/faces").iterdir()] == ["1.1.0"]
    assert not list((data_dir / PREPARED).glob("*.tmp"))

    run("adience", manual_dir, data_dir)
    assert "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(("config", "side"), [("aligned", 256), ("aligned_full", 300)])
def test_aligned_and_full_configs(tmp_path: Path, data_dir: Path, config: str, side: int) -> None:
    write_release(tmp_path, "aligned", size=300)
    run("adience", tmp_path, data_dir, f"--config={config}")
    records = open_records(f"adience/{config}", str(data_dir))
    image = cv2.imdecode(np.frombuffer(records.images[0], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (round(308 * side / 300), side, 3)


def test_missing_files_are_all_named(manual_dir: Path, data_dir: Path) -> None:
    for name in ("faces.tar.gz", "fold_1_data.txt", "fold_4_data.txt"):
        (manual_dir / name).unlink()
    with pytest.raises(UserError) as caught:
        run("adience", manual_dir, data_dir)
    assert "lacks faces.tar.gz (or the folder faces), fold_1_data.txt, fold_4" in str(caught.value)
    assert "Open University of Israel" in str(caught.value)
    assert not data_dir.exists()


def replace_pictures(manual_dir: Path, names: list[str], data: bytes | None) -> None:
    """Extracts the archive and puts `data` in the place of some pictures, or removes them."""
    if (manual_dir / "faces.tar.gz").exists():
        extract(manual_dir / "faces.tar.gz", manual_dir)
        (manual_dir / "faces.tar.gz").unlink()
    for name in names:
        path = manual_dir / "faces" / name
        path.unlink() if data is None else path.write_bytes(data)


def test_too_many_left_out_leaves_nothing_behind(manual_dir: Path, data_dir: Path) -> None:
    name = "2@N0/coarse_tilt_aligned_face.20.0_o.jpg"
    replace_pictures(manual_dir, [name], b"not a picture")
    replace_pictures(manual_dir, [name.replace("2", "4", 2).replace(".20.", ".40.")], None)
    with pytest.raises(UserError) as caught:
        run("adience", manual_dir, data_dir)
    message = str(caught.value)
    assert "1 of 10 images are missing: faces/4@N0/" in message
    assert f"1 of 10 images do not decode: faces/{name}" in message and "1%" in message
    assert not data_dir.exists()


def test_a_few_left_out_are_recorded(tmp_path: Path, data_dir: Path, capsys: Any) -> None:
    write_release(tmp_path, size=16, per_fold=40)
    names = ["1@N0/coarse_tilt_aligned_face.10.0_o.jpg", "1@N0/coarse_tilt_aligned_face.11.1_o.jpg"]
    replace_pictures(tmp_path, names[:1], None)
    replace_pictures(tmp_path, names[1:], noise_jpeg(16, 16)[:-20])
    run("adience", tmp_path, data_dir)
    metadata = json.loads((data_dir / PREPARED / "metadata.json").read_text())
    assert metadata["pictures_missing"] == {"count": 1, "first": [f"faces/{names[0]}"]}
    assert metadata["pictures_broken"] == {"count": 1, "first": [f"faces/{names[1]}"]}
    assert metadata["notice"] == "" and metadata["sources"] == ["faces"]
    output = capsys.readouterr().out
    assert "fold_1: 38 images" in output
    assert f"left out: 1 images that are missing: faces/{names[0]}" in output


def test_failed_overwrite_keeps_what_was_prepared(manual_dir: Path, data_dir: Path) -> None:
    run("adience", manual_dir, data_dir)
    files = {p: p.read_bytes() for p in (data_dir / PREPARED).iterdir()}
    archive = manual_dir / "faces.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        run("adience", manual_dir, data_dir, "--overwrite")
    assert {p: p.read_bytes() for p in (data_dir / PREPARED).iterdir()} == files
    archive.write_bytes(whole)
    (manual_dir / "fold_0_data.txt").write_text(
        "\n".join((manual_dir / "fold_0_data.txt").read_text().splitlines()[:2])
    )
    run("adience", manual_dir, data_dir, "--overwrite")
    assert len(open_records("adience/faces", str(data_dir)).images) == 9
    assert [p.name for p in (data_dir / "adience/faces").iterdir()] == ["1.1.0"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(manual_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldsBuilder, "_spool", lambda *_: Path("/dev/full"))
    with pytest.raises(UserError, match="the disk is full"):
        run("adience", manual_dir, data_dir)
    assert not data_dir.exists()


def test_unwritable_data_dir(manual_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        run("adience", manual_dir, tmp_path / "file" / "data")


def test_damaged_set_is_replaced(manual_dir: Path, data_dir: Path) -> None:
    run("adience", manual_dir, data_dir)
    info = data_dir / PREPARED / "dataset_info.json"
    info.write_text('{"name":')
    with pytest.raises(UserError, match=r"1\.1\.0 is damaged \(.*: add --overwrite to replace it"):
        run("adience", manual_dir, data_dir)
    run("adience", manual_dir, data_dir, "--overwrite")
    info.unlink()
    with pytest.raises(UserError, match="exists, but holds no prepared data set: add --overwrite"):
        run("adience", manual_dir, data_dir)
    run("adience", manual_dir, data_dir, "--overwrite")
    assert len(open_records("adience/faces", str(data_dir)).images) == 10


def test_strangers_set_runs_no_code(
    manual_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("adience", manual_dir, data_dir)
    (data_dir / "evil.py").write_text(f"open({str(data_dir / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(data_dir)
    features = {"featuresDict": {"features": {"image": {"pythonClassName": "evil.X"}}}}
    (data_dir / PREPARED / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"the class 'evil\.X'"):
        run("adience", manual_dir, data_dir)
    run("adience", manual_dir, data_dir, "--overwrite")
    assert not (data_dir / "executed").exists()


def test_release_packed_in_another_way(manual_dir: Path, data_dir: Path) -> None:
    run("adience", manual_dir, data_dir)
    expected = open_records("adience/faces", str(data_dir)).checksum()
    extract(manual_dir / "faces.tar.gz", manual_dir / "Adience" / "data")
    (manual_dir / "faces.tar.gz").unlink()
    with tarfile.open(manual_dir / "faces.tar", "w") as archive:
        archive.add(manual_dir / "Adience", "Adience")
    run("adience", manual_dir, data_dir, "--overwrite")
    assert open_records("adience/faces", str(data_dir)).checksum() == expected
    (manual_dir / "faces.tar").rename(manual_dir / "faces.tar.gz")
    run("adience", manual_dir, data_dir, "--overwrite")
    assert open_records("adience/faces", str(data_dir)).checksum() == expected


def test_messages_show_what_is_there(manual_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    for other in (tmp_path, manual_dir / "faces"):
        other.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"use --manual_dir={manual_dir}$"):
            run("adience", other, data_dir)
    with pytest.raises(UserError, match=f"{tmp_path / 'nothing'}: no such folder"):
        run("adience", tmp_path / "nothing", data_dir)
    with tarfile.open(manual_dir / "faces.tar.gz", "w:gz") as archive:
        archive.add(manual_dir / "fold_0_data.txt", "photographs/a.txt")
    message = (
        r"10 of 10 images are missing: .* and 7 more; faces.tar.gz begins with photographs/a.t"
    )
    with pytest.raises(UserError, match=message):
        run("adience", manual_dir, data_dir)
    (manual_dir / "faces.tar.gz").rename(manual_dir / "faces.rar")
    (manual_dir / "faces").rmdir()
    with pytest.raises(UserError, match=r"The folder holds faces.rar, fold_0_data.txt, .*\.$"):
        run("adience", manual_dir, data_dir)


def test_tfds_prepares_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tfds build` does, without --manual_dir."""
    monkeypatch.setattr(drawn_release, "_encode", lambda drawing: noise_jpeg(16, 16, drawing.score))
    drawn, adience = (
        prepare._load_builder(name)(data_dir=tmp_path) for name in ("drawn_faces", "adience")
    )
    drawn.download_and_prepare()
    assert len(open_records("drawn_faces/faces", str(tmp_path)).images) == 1600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn_faces"]
    with pytest.raises(UserError, match=f"{tmp_path}/downloads/manual: no such folder. Adience is"):
        adience.download_and_prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn_faces"]
    prepare._load_builder("drawn_faces")(data_dir=tmp_path).download_and_prepare()


def test_tfds_shows_errors_as_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = '/usr/bin/tfds'; "
        "from data_prep.adience.adience_dataset_builder import Builder; "
        f"Builder(data_dir={str(tmp_path)!r}).download_and_prepare()"
    )
    output = run_program("-c", code, fails=True)
    assert output.startswith("error: ") and output.count("\n") == 1


def test_unknown_names_get_the_nearest(manual_dir: Path, data_dir: Path) -> None:
    with pytest.raises(UserError, match='"adiense" is not known: did you mean adience'):
        run("adiense", manual_dir, data_dir)
    with pytest.raises(UserError, match='no config "alined": did you mean aligned'):
        run("adience", manual_dir, data_dir, "--config=alined")


# How ml_collections reads config files.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_that_trains_on_it(data_dir: Path) -> None:
    """It fits each data set and each config of its builder, and is a command that works."""
    for name in prepare.data_set_names():
        for config in prepare._load_builder(name).builder_configs:
            command = prepare._training_command(name, config, ["fold_0", "fold_1"], data_dir)
            agenet, train, *flags = shlex.split(command)
            assert (agenet, train) == ("agenet", "train")
            fields = [flag for flag in flags if not flag.startswith("--workdir=")]
            dataset = read_config(fields).dataset
            assert (dataset.name, dataset.data_dir) == (f"{name}/{config}", str(data_dir))
    assert prepare._training_command("drawn_faces", "faces", ["fold_0", "fold_1"], None) == (
        "agenet train --config=quickstart --workdir=runs/drawn_faces"
    )
    assert not prepare._training_command("fairface", "partial", ["test"], None)


def test_missing_extra(manual_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match='preparing data needs the extra "train"'):
        run("adience", manual_dir, data_dir)


def test_command_lines_that_are_none(manual_dir: Path, data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"there is no option --configs: did you mean --config"):
        run("adience", manual_dir, data_dir, "--configs=faces")
    with pytest.raises(UserError, match="adience does not run on Beam: leave out --beam_options"):
        run("adience", manual_dir, data_dir, "--beam_options=")


def test_real_faces_never_pass_for_drawn(manual_dir: Path, data_dir: Path) -> None:
    before = {p: p.read_bytes() for p in manual_dir.iterdir()}
    with pytest.raises(UserError, match="not one of drawn faces"):
        run("drawn_faces", manual_dir, data_dir)
    assert {p: p.read_bytes() for p in manual_dir.iterdir()} == before


def test_drawn_faces_say_so(drawn_faces: Path) -> None:
    records = open_records("drawn_faces/faces", str(drawn_faces))
    assert records.notice.startswith("Drawn faces, not photographs")
    assert len(records.images) == 300


def test_program_prints_one_line(manual_dir: Path, data_dir: Path) -> None:
    (manual_dir / "fold_2_data.txt").unlink()
    output = run_program(
        "scripts/prepare.py",
        "adience",
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        fails=True,
    )
    assert output.startswith("error: ") and output.count("\n") == 1


def test_help_comes_at_once() -> None:
    output = run_program("-X", "importtime", "scripts/prepare.py", "--help")
    assert "--manual_dir" in output
    assert not {"tensorflow_datasets", "cv2", "jax"} & set(re.findall(r"[\w.]+$", output, re.M))


@pytest.mark.slow
def test_real_faces(real_data: Path, data_dir: Path) -> None:
    run("adience", real_data / "adience", data_dir)
    official = open_records("adience/faces", str(data_dir))
    age, gender, fold = official.labels["age"], official.labels["gender"], official.fold
    assert np.bincount(fold).tolist() == [4484, 3730, 3894, 3446, 3816]
    assert np.bincount(fold[age >= 0]).tolist() == [4305, 3092, 3285, 2963, 3676]
    assert np.bincount(fold[gender >= 0]).tolist() == [3995, 3609, 3137, 3306, 3445]
    both = (age >= 0) & (gender >= 0)
    assert np.bincount(fold[both]).tolist() == [3868, 2996, 3068, 2854, 3370]
    extended = open_records("adience/faces", str(data_dir), "extended").labels["age"]
    counts = [2509, 2140, 2293, 1791, 5589, 2490, 909, 901]
    assert np.bincount(extended[extended >= 0]).tolist() == counts
    assert len(np.unique(official.subject_id)) == 2284
