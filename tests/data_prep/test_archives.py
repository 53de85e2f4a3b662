import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agenet.errors import UserError
from data_prep import archives
from data_prep.archives import locate_files, read_files

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
        with pytest.raises(UserError, match="refused, because it holds more than"):
            read(tmp_path / f"faces.{kind}")


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
