"""Finds an archive of a release, and tells its kind by its content."""

import tarfile
from pathlib import Path

from agenet.errors import UserError

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
# First bytes of files that are not read, and what to do with them.
_OTHER_KINDS = {
    b"<": "a web page, not an archive: log in where you got it, and download it again",
    b"BZh": "a .bz2 archive: unpack it into a folder",
    b"\xfd7zXZ": "an .xz archive: unpack it into a folder",
    b"\x28\xb5\x2f\xfd": "a .zst archive: unpack it into a folder",
    b"7z\xbc\xaf": "a .7z archive: unpack it into a folder",
    b"Rar!": "a .rar archive: unpack it into a folder",
    b"version https://git-lfs": "a pointer of Git LFS, not an archive: fetch it with  git lfs pull",
}


def find_archive(folder: Path, stem: str) -> Path | None:
    """The archive `stem` in a folder, packed in any way that is read; None if there is none."""
    paths = (folder / f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def archive_kind(path: Path) -> str:
    """The kind of an archive, from its content: "gzip", "zip" or "tar"."""
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    if start[257:262] == b"ustar":
        return "tar"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start.startswith(b"PK"):
        return "zip"
    for beginning, what in _OTHER_KINDS.items():
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(beginning):
            raise UserError(f"{path}: {what}")
    return "tar"
