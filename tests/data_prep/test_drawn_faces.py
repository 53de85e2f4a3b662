"""The drawn release: what it shows, its layout, its quirks, and that it is the same each time."""

import re
import tarfile
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest

from agenet.labels import AGE_GROUPS, adience_age_group, adience_gender
from data_prep.drawn_faces import release
from data_prep.drawn_faces.draw import draw_face
from data_prep.drawn_faces.person import create_person, create_view

COUNT = 240


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn")
    release.write_release(path, count=COUNT)
    return path


@pytest.fixture(scope="module")
def folds(manual_dir):
    """Rows of the five fold lists, as dictionaries."""
    lists = []
    for number in range(5):
        header, *lines = (manual_dir / f"fold_{number}_data.txt").read_text().splitlines()
        names = header.split("\t")
        lists.append([dict(zip(names, line.split("\t"), strict=True)) for line in lines])
    return lists


@pytest.fixture(scope="module")
def rows(folds):
    return [row for fold in folds for row in fold]


def _member(row):
    name = f"coarse_tilt_aligned_face.{row['face_id']}.{row['original_image']}"
    return f"faces/{row['user_id']}/{name}"


@pytest.mark.parametrize("group", range(len(AGE_GROUPS)))
@pytest.mark.parametrize("gender", [0, 1])
def test_drawing_depends_on_arguments_only(group, gender):
    rng = np.random.default_rng(group)
    person, view = create_person(group, gender, rng), create_view(rng)
    image = draw_face(person, view, 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert image.std() > 15
    np.testing.assert_array_equal(image, draw_face(person, view, 64))
    assert (image != draw_face(person, create_view(rng), 64)).mean() > 0.5


def test_columns_are_those_of_adience(rows, manual_dir):
    header = (manual_dir / "fold_0_data.txt").read_text().split("\n")[0]
    assert header == (
        "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\t"
        "tilt_ang\tfiducial_yaw_angle\tfiducial_score"
    )
    for row in rows:
        for name in ("x", "y", "dx", "dy", "tilt_ang", "fiducial_yaw_angle", "fiducial_score"):
            int(row[name])
        assert re.fullmatch(r"drawn-\d{4}@N00", row["user_id"])
        assert re.fullmatch(r"drawn_\d{6}.jpg", row["original_image"])


def test_archive_contains_listed_files_marked_as_drawn(rows, manual_dir):
    listed = {_member(row) for row in rows}
    with tarfile.open(manual_dir / release.ARCHIVE) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}
    assert set(members) == listed
    assert len(members) == COUNT
    data = members[min(members)]
    assert release.COMMENT in data
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (128, 128, 3)


def test_persons_and_albums_stay_in_one_fold(folds, rows):
    for key, least in (("face_id", 2), ("user_id", 4)):
        seen = [{row[key] for row in fold} for fold in folds]
        assert sum(map(len, seen)) == len(set.union(*seen))
        faces = Counter(row[key] for row in rows)
        assert np.mean(list(faces.values())) > least
    persons = defaultdict(set)
    for row in rows:
        persons[row["user_id"]].add(row["face_id"])
    assert max(map(len, persons.values())) > 2


def test_every_fold_has_every_group_and_gender(folds):
    for fold in folds:
        assert set(range(8)) <= {adience_age_group(row["age"]) for row in fold}
        genders = Counter(adience_gender(row["gender"]) for row in fold)
        assert min(genders[0], genders[1]) > len(fold) / 4


def test_irregularities_of_adience_occur(folds, rows):
    assert {"u", ""} <= {row["gender"] for row in rows}
    ages = {row["age"] for row in rows}
    assert "None" in ages
    stray = {a for a in ages if adience_age_group(a) < 0 <= adience_age_group(a, "extended")}
    assert stray
    for fold in folds:
        distinct = {_member(row) for row in fold}
        assert len(fold) > len(distinct) == len({tuple(row.values()) for row in fold})


def test_same_seed_gives_same_bytes_for_any_number_of_workers(manual_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(release.os, "cpu_count", lambda: 1)
    release.write_release(tmp_path, count=COUNT)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [release.ARCHIVE, *(f"fold_{n}_data.txt" for n in range(5))]
    assert names == sorted(path.name for path in manual_dir.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (manual_dir / name).read_bytes()
    first = (tmp_path / "fold_0_data.txt").read_text()
    monkeypatch.setattr(release, "_encode", lambda picture: b"")
    release.write_release(tmp_path, count=COUNT, seed=1)
    assert (tmp_path / "fold_0_data.txt").read_text() != first


def test_failure_leaves_no_partial_files(tmp_path, monkeypatch):
    def fail(picture):
        if picture.face_id > 20:
            raise OSError("No space left on device")
        return b"drawn"

    monkeypatch.setattr(release, "_encode", fail)
    with pytest.raises(OSError, match="No space left"):
        release.write_release(tmp_path / "new", count=COUNT)
    assert list((tmp_path / "new").iterdir()) == []


def test_too_few_faces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 200"):
        release.write_release(tmp_path, count=10)
