import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agenet.errors import UserError
from data_prep import archives
from data_prep.archives import first_names, locate_files, read_files
from data_prep.layout import Layout

WANTED = frozenset({"faces/a/b.jpg", "faces/a/c.jpg"})
KINDS = ["tar.gz", "tar", "zip"]


def write_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """A .tar.gz, .tar or, of the names alone, .zip archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for member, data in members:
                zipped.writestr(member.name, data)
        return
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def extract(path: Path, folder: Path) -> None:
    """Without extractall, whose filter the first releases of Python 3.11 do not know."""
    with tarfile.open(path) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / member.name).write_bytes(file.read())


def read(archive: Path) -> dict[str, bytes]:
    return dict(read_files(archive, WANTED))


@pytest.mark.parametrize("kind", KINDS)
def test_archives_and_folder_are_equivalent(tmp_path: Path, kind: str) -> None:
    contents = {"faces/a/b.jpg": b"bb", "faces/a/d.jpg": b"d", "faces/a/c.jpg": b"ccc"}
    members = [(tarfile.TarInfo(name), data) for name, data in contents.items()]
    write_archive(tmp_path / f"faces.{kind}", members)
    wanted = {name: contents[name] for name in sorted(WANTED)}
    assert read(tmp_path / f"faces.{kind}") == wanted
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert read(tmp_path / "faces") == wanted
    for source in [tmp_path / "faces", *tmp_path.glob("*.tar")]:
        places = dict(locate_files(source, WANTED))
        assert {name: places[name].read() for name in sorted(places)} == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../faces/a/b.jpg", "/faces/a/b.jpg", "faces/../../b.jpg"])
def test_member_that_points_outside(tmp_path: Path, name: str, kind: str) -> None:
    write_archive(tmp_path / f"faces.{kind}", [(tarfile.TarInfo(name), b"data")])
    with pytest.raises(UserError, match="points outside the archive"):
        read(tmp_path / f"faces.{kind}")


@pytest.mark.parametrize("kind", KINDS[:2])
def test_links_are_not_followed(tmp_path: Path, kind: str) -> None:
    link, hard = tarfile.TarInfo("faces/a/b.jpg"), tarfile.TarInfo("faces/a/c.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    hard.type, hard.linkname = tarfile.LNKTYPE, "faces/other.jpg"
    members = [(tarfile.TarInfo("faces/other.jpg"), b"data"), (link, b""), (hard, b"")]
    write_archive(tmp_path / f"faces.{kind}", members)
    assert read(tmp_path / f"faces.{kind}") == {}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_huge_member_is_refused_unread(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("faces/a/b.jpg")
    header.size, header.type = 5 << 30, kind
    data = header.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "faces.tar").write_bytes(data)
    (tmp_path / "faces.tar.gz").write_bytes(gzip.compress(data))
    for name in ("faces.tar", "faces.tar.gz"):
        with pytest.raises(UserError, match="refused, because no file of the release has 5120 MiB"):
            read(tmp_path / name)


def test_huge_member_in_zip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    write_archive(tmp_path / "faces.zip", [(tarfile.TarInfo("faces/x"), bytes(2 << 20))])
    with pytest.raises(UserError, match="refused, because no file of the release has 2 MiB"):
        read(tmp_path / "faces.zip")


def test_huge_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 1 << 20)
    (tmp_path / "faces.tar.gz").write_bytes(gzip.compress(bytes(3 << 20)))
    names = ("faces/x", "faces/y")
    for kind in ("tar", "zip"):
        members = [(tarfile.TarInfo(name), bytes(700_000)) for name in names]
        write_archive(tmp_path / f"faces.{kind}", members)
    for kind in KINDS:
        with pytest.raises(UserError, match="refused, because it holds more than 1 MiB"):
            read(tmp_path / f"faces.{kind}")


def test_archive_that_becomes_far_larger_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    members = [(tarfile.TarInfo(f"faces/{i}"), bytes(1 << 20)) for i in range(4)]
    for kind in ("tar.gz", "zip"):
        write_archive(tmp_path / f"faces.{kind}", members)
        with pytest.raises(UserError, match="refused, because it holds more than 1 MiB"):
            read(tmp_path / f"faces.{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archives, "_FEW_FILES", 9)
    monkeypatch.setattr(archives, "_MIN_BYTES_PER_FILE", 1 << 20)
    members = [(tarfile.TarInfo(f"faces/{i}"), b"") for i in range(10)]
    write_archive(tmp_path / f"faces.{kind}", members)
    with pytest.raises(UserError, match="refused, because it holds more than 9 files"):
        read(tmp_path / f"faces.{kind}")


def test_zip_member_that_becomes_larger_than_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    write_archive(path, [(tarfile.TarInfo("faces/a/b.jpg"), bytes(300 << 20))])
    claimed = path.read_bytes().replace(
        (300 << 20).to_bytes(4, "little"), (9).to_bytes(4, "little")
    )
    path.write_bytes(claimed)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"faces.zip: damaged or cut short"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_members_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A map of a sparse file, and attributes of all files, of any length."""
    sparse = tarfile.TarInfo("faces/a/b.jpg")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    (tmp_path / "faces.tar").write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UserError, match="damaged or cut short"):
        read(tmp_path / "faces.tar")
    headers = b""
    for i in range(3):
        attribute = f" k{i}={'x' * 600_000}\n"
        length = len(attribute) + len(str(len(attribute)))
        record = f"{length}{attribute}".encode()
        header = tarfile.TarInfo("g")
        header.type, header.size = tarfile.XGLTYPE, len(record)
        headers += header.tobuf(tarfile.PAX_FORMAT) + record + bytes(-len(record) % 512)
        headers += tarfile.TarInfo(f"f{i}").tobuf()
    (tmp_path / "faces.tar").write_bytes(headers + bytes(1024))
    with pytest.raises(UserError, match="attributes of all files: refused"):
        read(tmp_path / "faces.tar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", KINDS)
def test_content_counts_not_the_name(tmp_path: Path, kind: str, suffix: str) -> None:
    packed = tmp_path / f"packed.{kind}"
    write_archive(packed, [(tarfile.TarInfo("faces/a/b.jpg"), b"bb")])
    assert read(packed.rename(tmp_path / f"faces.{suffix}")) == {"faces/a/b.jpg": b"bb"}


def test_archive_that_is_compressed_twice(tmp_path: Path) -> None:
    path = tmp_path / "faces.tar.gz"
    write_archive(path, [(tarfile.TarInfo("faces/a/b.jpg"), b"bb")])
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == {"faces/a/b.jpg": b"bb"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html>", "a web page, not an archive: log in"),
        (bz2.compress(b"x"), "a .bz2 archive: unpack it"),
        (lzma.compress(b"x"), "an .xz archive: unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "a .7z archive: unpack it"),
        (b"Rar!\x1a\x07", "a .rar archive: unpack it"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_files_that_are_no_archive(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "faces.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "faces.tar.gz")


MOVED = ["faces/faces/a/", "Adience/data/faces/a/", "./faces/faces/a/", "a/"]


@pytest.mark.parametrize("folder", MOVED)
def test_other_folders_around_the_files(tmp_path: Path, folder: str) -> None:
    contents = {"b.jpg": b"bb", "x.jpg": b"x", "c.jpg": b"ccc"}
    members = [(tarfile.TarInfo(folder + name), data) for name, data in contents.items()]
    expected = {"faces/a/b.jpg": b"bb", "faces/a/c.jpg": b"ccc"}
    for kind in KINDS:
        write_archive(tmp_path / f"faces.{kind}", members)
        assert read(tmp_path / f"faces.{kind}") == expected
    located = dict(locate_files(tmp_path / "faces.tar", WANTED))
    assert {name: place.read() for name, place in located.items()} == expected


@pytest.mark.parametrize("folder", ["faces/faces/a", "faces/Adience/faces/a"])
def test_other_folders_around_extracted_files(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "b.jpg").write_bytes(b"bb")
    (tmp_path / folder / "x.jpg").write_bytes(b"x")
    assert read(tmp_path / "faces") == {"faces/a/b.jpg": b"bb"}


def test_another_folder_is_not_taken_for_the_wanted_one(tmp_path: Path) -> None:
    (tmp_path / "val" / "train").mkdir(parents=True)
    (tmp_path / "val" / "train" / "1.jpg").write_bytes(b"of another person")
    assert dict(read_files(tmp_path / "val", {"val/1.jpg"})) == {}


def test_released_names_go_before_moved_ones(tmp_path: Path) -> None:
    names = ("old/faces/a/b.jpg", "old/faces/a/c.jpg", "faces/a/b.jpg")
    members = [(tarfile.TarInfo(name), name.encode()) for name in names]
    for kind in KINDS:
        write_archive(tmp_path / f"faces.{kind}", members)
        assert read(tmp_path / f"faces.{kind}") == {"faces/a/b.jpg": b"faces/a/b.jpg"}


def test_missing_top_folder_is_not_guessed_wrongly() -> None:
    wanted = {"train/1.jpg", "val/1.jpg"}
    for archive, found in (
        ("fairface_val.tar", "val/1.jpg"),
        ("fairface_train.tar", "train/1.jpg"),
        ("fairface-img-margin025-trainval.zip", None),
    ):
        layout = Layout(wanted, archive)
        assert layout.take("1.jpg") is None
        moved = layout.moved()
        assert (moved.take("1.jpg") if moved else None) == found


@pytest.mark.parametrize("kind", KINDS)
def test_first_names(tmp_path: Path, kind: str) -> None:
    members = [(tarfile.TarInfo(f"x\x1b/{i}"), b"") for i in range(5)]
    write_archive(tmp_path / f"faces.{kind}", members)
    assert first_names(tmp_path / f"faces.{kind}", 2) == ["x?/0", "x?/1"]
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").touch()
    assert first_names(tmp_path / "faces", 2) == ["faces/a.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archive(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"faces.{kind}"
    noise = np.random.default_rng(0).bytes(20_000)
    write_archive(archive, [(tarfile.TarInfo("faces/a/b.jpg"), noise)])
    whole = archive.read_bytes()
    assert read(archive) == {"faces/a/b.jpg": noise}
    damaged = [whole[: len(whole) // 2], b"not an archive", b""]
    if kind == "tar":
        end = 512 + -(-len(noise) // 512) * 512  # of the only member
        damaged += [whole[:end], whole[:end] + b"x" * 512]
    else:
        damaged += [whole[:-9], whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]]
    if kind == "zip":
        damaged.append(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    for data in damaged:
        archive.write_bytes(data)
        with pytest.raises(UserError, match=rf"faces.{kind}: damaged or cut short"):
            read(archive)
