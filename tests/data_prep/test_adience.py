import tarfile
from collections import Counter
from pathlib import Path

import pytest

from agenet.errors import UserError
from agenet.labels import UNKNOWN, adience_age_group, adience_gender
from data_prep.adience import release
from data_prep.adience.release import COLUMNS, Face, read_fold_lists
from data_prep.archives import read_files
from tests.data_prep.test_archives import extract, write_archive
from tests.data_prep.test_images import noise_jpeg


def row(face: Face) -> str:
    fields = [face.user_id, face.original_image, face.face_id, face.age, face.gender]
    return "\t".join(map(str, [*fields, 1, 2, 3, 4, 0, face.yaw, 50]))


def write_lists(folder: Path, per_fold: int = 2) -> list[Face]:
    """Five fold lists; the first rows of each have an age and a gender, the last has neither."""
    faces = []
    for fold in range(5):
        here = [
            Face(f"{fold}@N0", f"{i}_o.jpg", 10 * fold + i, "(25, 32)", "fm"[i % 2], -15.0)
            for i in range(per_fold - 1)
        ]
        here.append(Face(f"{fold}@N0", "last_o.jpg", 10 * fold, "None", "", 0.0))
        rows = ["\t".join(COLUMNS), *map(row, here)]
        release.fold_list(folder, fold).write_text("\n".join([*rows, ""]))
        faces += here
    return faces


def write_release(folder: Path, kind: str = "faces", size: int = 32, per_fold: int = 2) -> None:
    """A whole release whose images are noise."""
    paths = [face.path(kind) for face in write_lists(folder, per_fold)]
    members = [
        (tarfile.TarInfo(path), noise_jpeg(size, size + 8, seed)) for seed, path in enumerate(paths)
    ]
    write_archive(folder / f"{kind}.tar.gz", members)


def test_counts_of_the_real_lists(real_data: Path) -> None:
    folder = real_data / "adience"
    folds, duplicates = read_fold_lists(folder)
    assert duplicates == 117
    assert [len(faces) for faces in folds] == [4484, 3730, 3894, 3446, 3816]
    official = [[adience_age_group(face.age) for face in faces] for faces in folds]
    gender = [[adience_gender(face.gender) for face in faces] for faces in folds]

    def known(labels: list[list[int]]) -> list[int]:
        return [sum(label != UNKNOWN for label in fold) for fold in labels]

    both = [
        [max(UNKNOWN, min(pair)) for pair in zip(*p, strict=True)]
        for p in zip(official, gender, strict=True)
    ]
    assert known(official) == [4305, 3092, 3285, 2963, 3676]
    assert known(gender) == [3995, 3609, 3137, 3306, 3445]
    assert known(both) == [3868, 2996, 3068, 2854, 3370]
    extended = Counter(adience_age_group(f.age, "extended") for faces in folds for f in faces)
    del extended[UNKNOWN]
    counts = [2509, 2140, 2293, 1791, 5589, 2490, 909, 901]
    assert [extended[group] for group in range(8)] == counts and extended.total() == 18622
    with tarfile.open(folder / "faces.tar.gz", "r|gz") as archive:
        names = {member.name for member in archive}
    assert names == {face.path("faces") for faces in folds for face in faces}


def test_archive_and_folder_are_equivalent(tmp_path: Path) -> None:
    write_release(tmp_path)
    faces = [face for fold in read_fold_lists(tmp_path)[0] for face in fold]
    wanted = {face.path("faces") for face in faces} | {"faces/nobody/none.jpg"}
    from_archive = dict(read_files(release.image_source(tmp_path, "faces"), wanted))
    assert len(from_archive) == 10
    extract(tmp_path / "faces.tar.gz", tmp_path)
    (tmp_path / "faces.tar.gz").unlink()
    source = release.image_source(tmp_path, "faces")
    assert source == tmp_path / "faces" and dict(read_files(source, wanted)) == from_archive


def test_duplicate_rows_are_dropped_and_contradictions_refused(tmp_path: Path) -> None:
    face = write_lists(tmp_path)[0]
    path = release.fold_list(tmp_path, 0)
    text = path.read_text()
    path.write_text(text + row(face) + "\r\n")
    folds, duplicates = read_fold_lists(tmp_path)
    assert duplicates == 1 and len(folds[0]) == 2 and folds[0][0] == face
    path.write_text(text + row(face).replace("(25, 32)", "(4, 6)") + "\n")
    with pytest.raises(UserError, match=r"fold_0_data.txt, line 4: this face .* other labels"):
        read_fold_lists(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t-15.0", "", "11 columns, where the header has 12"),
        ("\t-15.0", "\tleft", "fiducial_yaw_angle 'left'"),
        ("\t-15.0", "\tnan", "fiducial_yaw_angle 'nan'"),
        ("\t0\t(25", "\tx\t(25", "face_id 'x'"),
        ("0_o.jpg", "../../0_o.jpg", "original_image '../../0_o.jpg'"),
        ("0@N0", "..", "user_id '..'"),
        ("0@N0", "/etc", "user_id '/etc'"),
        ("0_o.jpg", f"{'x' * 201}.jpg", f"original_image '{'x' * 200}' is not a plain"),
        ("0_o.jpg", "0_\xff.jpg", "not text in UTF-8"),
    ],
)
def test_invalid_rows(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_lists(tmp_path)
    path = release.fold_list(tmp_path, 0)
    path.write_text(path.read_text().replace(old, new, 1), encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read_fold_lists(tmp_path)
    assert f"fold_0_data.txt, line 2: {message}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "a\tb\n", "\t".join(COLUMNS) + "\n"])
def test_files_that_are_not_fold_lists(tmp_path: Path, text: str) -> None:
    write_lists(tmp_path)
    release.fold_list(tmp_path, 3).write_text(text)
    with pytest.raises(UserError, match=r"fold_3_data\.txt"):
        read_fold_lists(tmp_path)
