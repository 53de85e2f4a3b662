import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.labels import UNKNOWN, adience_age_group, adience_gender
from data_prep.adience import release
from data_prep.adience.pictures import MAX_PIXELS, jpeg_size, stored_picture
from data_prep.adience.release import COLUMNS, Face, read_fold_lists, read_pictures


def noise_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


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


def write_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_release(folder: Path, kind: str = "faces", size: int = 32, per_fold: int = 2) -> None:
    """A whole release whose pictures are noise."""
    paths = [face.path(kind) for face in write_lists(folder, per_fold)]
    members = [
        (tarfile.TarInfo(path), noise_jpeg(size, size + 8, seed)) for seed, path in enumerate(paths)
    ]
    write_archive(folder / f"{kind}.tar.gz", members)


def test_real_lists_have_the_known_counts(real_data: Path) -> None:
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


def test_archive_and_folder_give_the_same(tmp_path: Path) -> None:
    write_release(tmp_path)
    faces = [face for fold in read_fold_lists(tmp_path)[0] for face in fold]
    wanted = {face.path("faces") for face in faces} | {"faces/nobody/none.jpg"}
    from_archive = dict(read_pictures(tmp_path, "faces", wanted))
    assert len(from_archive) == 10
    with tarfile.open(tmp_path / "faces.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "faces.tar.gz").unlink()
    assert dict(read_pictures(tmp_path, "faces", wanted)) == from_archive


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
        ("\t-15.0", "", "11 columns, where a fold list has 12"),
        ("\t-15.0", "\tleft", "fiducial_yaw_angle 'left'"),
        ("\t-15.0", "\tnan", "fiducial_yaw_angle 'nan'"),
        ("\t0\t(25", "\tx\t(25", "face_id 'x'"),
        ("0_o.jpg", "../../0_o.jpg", "original_image '../../0_o.jpg'"),
        ("0@N0", "..", "user_id '..'"),
        ("0@N0", "/etc", "user_id '/etc'"),
        ("0_o.jpg", "0_\xff.jpg", "not text in UTF-8"),
    ],
)
def test_row_that_does_not_parse(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_lists(tmp_path)
    path = release.fold_list(tmp_path, 0)
    path.write_text(path.read_text().replace(old, new, 1), encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read_fold_lists(tmp_path)
    assert f"fold_0_data.txt, line 2: {message}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "a\tb\n", "\t".join(COLUMNS) + "\n"])
def test_file_that_is_no_fold_list(tmp_path: Path, text: str) -> None:
    write_lists(tmp_path)
    release.fold_list(tmp_path, 3).write_text(text)
    with pytest.raises(UserError, match=r"fold_3_data\.txt"):
        read_fold_lists(tmp_path)


def read(folder: Path) -> dict[str, bytes]:
    return dict(read_pictures(folder, "faces", {"faces/a/b.jpg", "faces/a/c.jpg"}))


@pytest.mark.parametrize("name", ["../faces/a/b.jpg", "/faces/a/b.jpg", "faces/../../b.jpg"])
def test_member_that_points_outside(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / "faces.tar.gz", [(tarfile.TarInfo(name), b"data")])
    with pytest.raises(UserError, match="points outside the archive"):
        read(tmp_path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    link, hard = tarfile.TarInfo("faces/a/b.jpg"), tarfile.TarInfo("faces/a/c.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    hard.type, hard.linkname = tarfile.LNKTYPE, "faces/other.jpg"
    members = [(tarfile.TarInfo("faces/other.jpg"), b"data"), (link, b""), (hard, b"")]
    write_archive(tmp_path / "faces.tar.gz", members)
    assert read(tmp_path) == {}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_absurd_size_is_refused_unread(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("faces/a/b.jpg")
    header.size, header.type = 5 << 30, kind
    (tmp_path / "faces.tar.gz").write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(UserError, match="refused, because no picture of the release has 5120 MiB"):
        read(tmp_path)


def test_absurd_total_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "MAX_ARCHIVE_BYTES", 1 << 20)
    (tmp_path / "faces.tar.gz").write_bytes(gzip.compress(bytes(3 << 20)))
    with pytest.raises(UserError, match="refused, because it holds more than"):
        read(tmp_path)


def test_damaged_archive(tmp_path: Path) -> None:
    archive = tmp_path / "faces.tar.gz"
    write_archive(archive, [(tarfile.TarInfo("faces/a/b.jpg"), noise_jpeg(64, 64))])
    whole = archive.read_bytes()
    assert read(tmp_path)
    wrong_checksum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for data in (whole[: len(whole) // 2], whole[:-9], wrong_checksum, b"not an archive", b""):
        archive.write_bytes(data)
        with pytest.raises(UserError, match=r"faces.tar.gz: damaged or cut short"):
            read(tmp_path)


def test_small_picture_keeps_its_bytes_and_large_one_is_shrunk() -> None:
    small, large = noise_jpeg(256, 300), noise_jpeg(512, 640)
    assert jpeg_size(small) == (256, 300)
    assert stored_picture(small, 256) is small
    assert stored_picture(large, None) is large
    shrunk = stored_picture(large, 256)
    assert shrunk is not None and jpeg_size(shrunk) == (256, 320)
    grey = cv2.imencode(".jpg", np.full((40, 40), 99, np.uint8))[1].tobytes()
    assert stored_picture(grey, 256) is grey


def test_orientation_in_exif_is_ignored() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    plain = noise_jpeg(300, 400)
    turned = plain[:2] + segment + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (300, 400)
    assert stored_picture(turned, 256) == stored_picture(plain, 256)


def test_picture_that_does_not_decode() -> None:
    jpeg = noise_jpeg(64, 64)
    start_of_frame = jpeg.index(b"\xff\xc0")
    side = (int(MAX_PIXELS**0.5) + 1).to_bytes(2, "big")
    huge = jpeg[: start_of_frame + 5] + side + side + jpeg[start_of_frame + 9 :]
    assert jpeg_size(huge) == (5001, 5001)
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    no_tables = (
        jpeg[:2] + jpeg[start_of_frame : start_of_frame + 19] + jpeg[jpeg.index(b"\xff\xda") :]
    )
    for data in (huge, png, no_tables, jpeg[: len(jpeg) // 2], jpeg[:-2], jpeg[:3], b"", b"text"):
        assert stored_picture(data, 256) is None
