import csv
import json
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from agenet.cli.app import run_command
from agenet.data.records import open_records
from agenet.errors import UserError
from agenet.labels import nearest_age_group
from data_prep.imdb_wiki import imdb_wiki_dataset_builder, matfile, matlab
from data_prep.imdb_wiki.imdb_wiki_dataset_builder import Builder, ImdbWikiConfig
from data_prep.imdb_wiki.matlab import parse_metadata
from data_prep.imdb_wiki.noise import NoiseFilter, ages
from data_prep.imdb_wiki.release import Row, sample, split_by_person, usable_rows
from tests.data_prep.test_images import noise_jpeg

PREPARED = "imdb_wiki/wiki/1.0.0"
# No rule drops anything.
EVERYTHING = NoiseFilter(False, -9999, 9999, False, False, -np.inf, False)
UNKNOWN_AGE = ["age", "age_low", "age_high", "age_official", "age_extended", "gender"]
Columns = dict[str, Any]


def columns(count: int, database: str = "wiki") -> Columns:
    """Rows that the filter keeps: ages 20, 21, ..., men and women, two images a person."""
    i = np.arange(count)
    stems = [f"{row % 3:02}/{database}{row}_1980-01-01_2000.jpg" for row in i]
    table: Columns = {
        "dob": np.full(count, 723181, np.int32),  # 1 January 1980
        "photo_taken": (2000 + i % 60).astype(np.uint16),
        "full_path": np.array(stems, object),
        "gender": (i % 2).astype(float),
        "name": np.array([f"Person {row // 2}" for row in i], object),
        "face_score": np.full(count, 2.5),
        "second_face_score": np.full(count, np.nan),
    }
    if database == "imdb":
        table["celeb_id"] = (1 + i // 2).astype(np.uint16)
    return table


def write_mat(path: Path, table: Columns, database: str = "wiki") -> None:
    """A file of the real structure: cells and row vectors in one structure, compressed."""
    scipy.io.savemat(path, {database: table}, do_compression=True, oned_as="row")


def write_release(folder: Path, count: int = 60, database: str = "wiki") -> Columns:
    """An extracted release whose images are noise."""
    table = columns(count, database)
    crops = folder / f"{database}_crop"
    for seed, path in enumerate(table["full_path"]):
        (crops / path).parent.mkdir(parents=True, exist_ok=True)
        (crops / path).write_bytes(noise_jpeg(16, 20, seed))
    write_mat(crops / f"{database}.mat", table, database)
    return table


def pack(folder: Path, database: str = "wiki") -> None:
    """Puts the extracted release into the archive; nothing else is left."""
    with tarfile.open(folder / f"{database}_crop.tar", "w") as archive:
        archive.add(folder / f"{database}_crop", f"{database}_crop")
    shutil.rmtree(folder / f"{database}_crop")


def run(manual_dir: Path, data_dir: Path, config: str = "wiki", *more: str) -> None:
    arguments = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", f"--config={config}"]
    run_command(["prepare", "imdb_wiki", *arguments, *more])


def parse(table: Columns, folder: Path) -> matlab.Metadata:
    write_mat(folder / "any.mat", table)
    return parse_metadata((folder / "any.mat").read_bytes(), "wiki", "any.mat")


def test_real_metadata(real_data: Path) -> None:
    data = (real_data / "imdb_wiki" / "wiki.mat").read_bytes()
    start = time.process_time()
    rows = parse_metadata(data, "wiki", "wiki.mat")
    kept, dropped = NoiseFilter().apply(rows)
    assert time.process_time() - start < 2
    assert len(kept) == 62328 == sum(dropped.values()) + kept.sum()
    assert [np.sum(rows.gender[kept] == gender) for gender in (0, 1)] == [9537, 28601]
    assert (dropped["age below 0"], dropped["age above 100"]) == (1288, 493)
    assert np.sum(np.isnan(rows.gender)) == 2643
    assert np.sum(np.isneginf(rows.face_score)) == 18016
    assert EVERYTHING.apply(rows)[0].all()
    assert rows.full_path[0] == "17/10000217_1981-05-05_2009.jpg"
    assert rows.name[0] == "Sami Jauhojärvi"


def test_age_at_mid_year() -> None:
    # 1 January 1980, 30 June 1980, 1 July 1980; then no dates at all.
    dob = np.array([723181, 723362, 723363, 366, 0, -5, 1e9, np.nan])
    age = ages(dob, np.full(8, 2000.0))
    assert age[:3].tolist() == [20, 20, 19] and np.isnan(age[3:]).all()
    assert ages(np.array([367.0]), np.array([2000.0])) == 1999
    assert np.isnan(ages(np.array([723181.0]), np.array([np.nan])))


def test_every_rule_drops_its_row_once(tmp_path: Path) -> None:
    table = columns(10)
    table["dob"][1] = 366
    table["photo_taken"][2:4] = 1979, 2081
    table["gender"][4] = np.nan
    table["face_score"][5:7] = -np.inf, 0.99
    table["second_face_score"][7] = 1.5
    table["gender"][1] = np.nan  # breaks two rules
    kept, dropped = NoiseFilter().apply(parse(table, tmp_path))
    assert np.flatnonzero(kept).tolist() == [0, 8, 9]
    assert list(dropped.values()) == [1] * 7
    metadata = parse(table, tmp_path)
    assert EVERYTHING.apply(metadata)[0].all()
    rows, _ = usable_rows(metadata, "wiki", EVERYTHING, "wiki.mat")
    assert [row.age for row in rows[:4]] == [20, None, -1, 101]
    unknown = rows[1].features()
    assert [unknown[name] for name in UNKNOWN_AGE] == [-1] * 6


def test_missing_names(tmp_path: Path) -> None:
    table = columns(4)
    table["name"][1] = ""
    table["name"][2] = np.zeros((0, 0))
    assert parse(table, tmp_path).name == ["Person 0", "", "", "Person 1"]


def edited(**changes: Any) -> Columns:
    table = columns(4) | changes
    return {name: column for name, column in table.items() if column is not None}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (edited(dob=None, gender=None), "the structure wiki lacks dob, gender"),
        (edited(dob=np.zeros(3)), "dob has 3 values, full_path 4"),
        (edited(full_path=np.array([], object)), "full_path has 0 values"),
        (edited(name=np.zeros(4)), "name holds no texts"),
        (edited(dob=np.zeros((2, 2))), "dob is 2x2, not one column"),
        (edited(photo_taken=np.array(["a"] * 4, object)), "photo_taken holds no numbers"),
    ],
)
def test_structures_with_wrong_columns(tmp_path: Path, table: Columns, message: str) -> None:
    with pytest.raises(UserError, match=f"^any.mat: {message}.*: is it the file as released"):
        parse(table, tmp_path)


@pytest.mark.parametrize("cell", [1.0, {"a": 1}, np.array(["a"], object), np.array([True])])
def test_cells_without_text(tmp_path: Path, cell: Any) -> None:
    cells = np.empty(4, object)
    cells[:] = [cell] * 4
    found = parse(edited(name=cells, full_path=cells), tmp_path)
    assert list(found.name) == list(found.full_path) == [""] * 4


def test_no_usable_row(tmp_path: Path) -> None:
    table = write_release(tmp_path / "release")
    for changes, message in (
        ({"photo_taken": np.full(60, 1800.0)}, r"no usable row; wiki.mat: 60 rows, 0 usable; drop"),
        ({"name": np.array(["one"] * 60, object)}, "none of their persons falls into t"),
    ):
        write_mat(tmp_path / "release" / "wiki_crop" / "wiki.mat", table | changes)
        with pytest.raises(UserError, match=message):
            run(tmp_path / "release", tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_files_that_are_not_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wiki.mat"
    write_mat(path, columns(40))
    whole = path.read_bytes()
    v73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128) + b"\x89HDF\r\n"
    cases = {
        "version 7.3": [v73, b"\x89HDF\r\n\x1a\n"],
        "not a MATLAB file, or a damaged one": [
            *(whole[:200], whole[:-40], whole[:150] + b"xx" + whole[152:]),
            *(b"", b"text", bytes(500), os.urandom(500)),
        ],
    }
    for message, contents in cases.items():
        for data in contents:
            with pytest.raises(UserError, match=message) as caught:
                parse_metadata(data, "wiki", "wiki.mat")
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="holds no structure imdb"):
        parse_metadata(whole, "imdb", "wiki.mat")
    scipy.io.savemat(path, {"wiki": np.zeros(3)})
    with pytest.raises(UserError, match="wiki is not one structure"):
        parse_metadata(path.read_bytes(), "wiki", "wiki.mat")
    monkeypatch.setattr(matfile, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="refused, because it holds more than"):
        parse_metadata(whole, "wiki", "wiki.mat")


def rows_of(count: int) -> list[Row]:
    return [Row(f"wiki_crop/00/{i}.jpg", f"P {i // 3}", -1, 30, 0, 2.0) for i in range(count)]


def test_sample_and_split_depend_on_the_seed_only() -> None:
    rows = rows_of(3000)
    drawn = sample(rows, 500, seed=0)
    assert len(drawn) == 500 and drawn == sample(rows, 500, seed=0) != sample(rows, 500, seed=1)
    assert [rows.index(row) for row in drawn[:3]] == [1, 4, 6]
    splits = split_by_person(rows, 0.1, seed=0)
    persons = {split: {row.person for row in splits[split].values()} for split in splits}
    assert not persons["train"] & persons["test"]
    assert sum(map(len, persons.values())) == 1000 and 70 < len(persons["test"]) < 130
    assert splits == split_by_person(rows[::-1], 0.1, seed=0)


def test_person() -> None:
    def person(name: str, celeb_id: int) -> str:
        return Row("imdb_crop/00/a.jpg", name, celeb_id, 30, 0, 2.0).person

    assert person("Fred  Astaire ", 3) == person("fred astaire", -1)
    assert person("", 3) != person("", 4) and person("", -1) == "imdb_crop/00/a.jpg"


def test_archive_and_folder_are_equivalent(tmp_path: Path, capsys: Any) -> None:
    manual_dir, data_dir = tmp_path / "manual", tmp_path / "data"
    table = write_release(manual_dir)
    run(manual_dir, data_dir)
    from_folder = open_records("imdb_wiki/wiki", str(data_dir))
    labels = (data_dir / PREPARED / "labels.csv").read_text()
    assert "wiki.mat: 60 rows, 60 usable; dropped: none" in capsys.readouterr().out
    pack(manual_dir)
    run(manual_dir, data_dir, "wiki", "--overwrite")
    records = open_records("imdb_wiki/wiki", str(data_dir))
    assert records.fingerprint() == from_folder.fingerprint()
    assert list(records.images) == list(from_folder.images)
    assert (data_dir / PREPARED / "labels.csv").read_text() == labels

    assert set(records.fold) == {0, 1} and len(np.unique(records.subject_id)) == 30
    assert not {*records.subject_id[records.fold == 0]} & {*records.subject_id[records.fold == 1]}
    assert (records.age_low == records.age_high).all() and records.race is None
    groups = [nearest_age_group(age) for age in records.age_low]
    assert records.labels["age"].tolist() == groups
    rows = {row["path"]: row for row in csv.DictReader(labels.splitlines())}
    builder = tfds.builder_from_directory(data_dir / PREPARED)
    examples = {e["path"].decode(): e for e in builder.as_data_source("train")}
    for i, path in enumerate(table["full_path"]):
        row = rows[f"wiki_crop/{path}"]
        assert row["age"] == str(20 + i) and row["gender"] == ("female", "male")[i % 2]
        if row["split"] == "train":
            example = examples[f"wiki_crop/{path}"]
            assert (example["age"], example["gender"]) == (20 + i, i % 2)
            assert example["name"].decode() == row["name"] == f"Person {i // 2}"


def test_missing_and_broken_images(tmp_path: Path, capsys: Any) -> None:
    table = write_release(tmp_path, 300)
    crops = tmp_path / "wiki_crop"
    (crops / table["full_path"][0]).unlink()
    (crops / table["full_path"][1]).write_bytes(b"not a picture")
    run(tmp_path, tmp_path / "data")
    output = capsys.readouterr().out
    assert "left out: 1 images that are missing: wiki_crop/00/wiki0_" in output
    metadata = json.loads((tmp_path / "data" / PREPARED / "metadata.json").read_text())
    assert metadata["pictures_broken"]["first"] == [f"wiki_crop/{table['full_path'][1]}"]
    assert metadata["rows_dropped"]["wiki"]["a second face"] == 0
    assert len((tmp_path / "data" / PREPARED / "labels.csv").read_text().splitlines()) == 299
    for path in table["full_path"][:4]:
        (crops / path).write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"4 of 300 images do not decode: wiki_crop/00/wiki0_"):
        run(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_both_databases_and_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for database in ("wiki", "imdb"):
        write_release(tmp_path, 40, database)
        pack(tmp_path, database)
    run(tmp_path, tmp_path / "data", "full")
    records = open_records("imdb_wiki/full", str(tmp_path / "data"))
    # Person 3 of one database is Person 3 of the other.
    assert len(records.images) == 80 and len(np.unique(records.subject_id)) == 20
    with pytest.raises(UserError, match="80 usable rows, fewer than the 60,000 that the config"):
        run(tmp_path, tmp_path / "data", "subset_60k")
    config = ImdbWikiConfig(name="sample", sample=30)
    monkeypatch.setattr(Builder, "BUILDER_CONFIGS", [config])
    monkeypatch.setattr(Builder, "builder_configs", {"sample": config})
    run(tmp_path, tmp_path / "data", "sample")
    assert len(open_records("imdb_wiki/sample", str(tmp_path / "data")).images) == 30


def test_partial_release(tmp_path: Path, capsys: Any) -> None:
    table = write_release(tmp_path, 100)
    paths = [tmp_path / "wiki_crop" / path for path in table["full_path"]]
    for path in paths[:30]:
        path.unlink()
    with pytest.raises(UserError, match=r"30 of 100 images are missing: .*, or use --config=part"):
        run(tmp_path, tmp_path / "data")
    run(tmp_path, tmp_path / "data", "partial")
    notice = "A part of IMDb-Wiki: 0 of 460,723 imdb images and 70 of 100 wiki images."
    assert notice in capsys.readouterr().out
    records = open_records("imdb_wiki/partial", str(tmp_path / "data"))
    assert records.notice == notice and len(records.images) == 70
    paths[40].write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"1 of 70 images do not decode"):
        run(tmp_path, tmp_path / "data", "partial", "--overwrite")
    for path in paths[30:]:
        path.unlink()
    with pytest.raises(UserError, match="none of the listed images was found"):
        run(tmp_path, tmp_path / "data", "partial", "--overwrite")
    assert open_records("imdb_wiki/partial", str(tmp_path / "data")).notice == notice
    with pytest.raises(UserError, match=rf"lacks imdb_crop.tar .*: use --manual_dir={tmp_path}$"):
        run(tmp_path / "data", tmp_path / "other", "partial")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks imdb_crop.tar \(or .*, wiki_crop.tar \(or the"):
        run(tmp_path, tmp_path / "data", "full")
    write_release(tmp_path)
    (tmp_path / "wiki_crop" / "wiki.mat").unlink()
    with pytest.raises(UserError, match=r"lacks wiki.mat\. Download"):
        run(tmp_path, tmp_path / "data")
    pack(tmp_path)
    with pytest.raises(UserError, match=r"holds no wiki_crop/wiki.mat: put wiki.mat beside it"):
        run(tmp_path, tmp_path / "data")
    table = columns(3)
    table["full_path"][1] = "../../etc/passwd"
    write_mat(tmp_path / "wiki.mat", table)
    with pytest.raises(UserError, match=r"wiki.mat, row 2: full_path '../../etc/passwd'"):
        run(tmp_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_real_paths_with_generated_images(
    real_data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The real metadata, cut to 300 usable rows, with images at the real paths."""
    data = (real_data / "imdb_wiki" / "wiki.mat").read_bytes()
    rows = parse_metadata(data, "wiki", "wiki.mat")
    wanted = [rows.full_path[i] for i in np.flatnonzero(NoiseFilter().apply(rows)[0])]
    (tmp_path / "wiki.mat").write_bytes(data)
    for seed, path in enumerate(wanted[:300]):
        (tmp_path / "wiki_crop" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wiki_crop" / path).write_bytes(noise_jpeg(16, 16, seed))
    pack(tmp_path)
    with pytest.raises(UserError, match=r"37,838 of 38,138 images are missing: wiki_crop/"):
        run(tmp_path, tmp_path / "data")
    apply = NoiseFilter.apply

    def first_300(self: NoiseFilter, rows: matlab.Metadata) -> Any:
        kept, dropped = apply(self, rows)
        return kept & (np.cumsum(kept) <= 300), dropped

    monkeypatch.setattr(imdb_wiki_dataset_builder.NoiseFilter, "apply", first_300)
    run(tmp_path, tmp_path / "data")
    assert len(open_records("imdb_wiki/wiki", str(tmp_path / "data")).images) == 300
