"""Reads files from untrusted archives and folders.

Names and sizes are checked before use, and nothing is extracted to disk.
"""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from agenet.errors import UserError

MAX_FILE_BYTES = 64 << 20  # a released image has some 100 kB
MAX_ARCHIVE_BYTES = 64 << 30  # uncompressed; the released ones have 2 to 7 GB
_CHUNK = 1 << 20


def read_files(source: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
    """Yields path and bytes of those `wanted` files that a source contains, in one pass.

    Args:
        source: a .tar, .tar.gz or .zip archive, or a folder extracted from one: the archive's
            "faces/a.jpg" is the file a.jpg in the folder "faces".
        wanted: paths within the archive.

    Raises:
        UserError: the archive is damaged, truncated or malicious, or a file is far too large.
    """
    if source.is_dir():
        return ((name, path.read_bytes()) for name, path in _files_in(source, wanted))
    return _read_zip(source, wanted) if source.suffix == ".zip" else _read_tar(source, wanted)


@dataclass(frozen=True)
class FileLocation:
    """Position of a file's bytes: a file of its own, or a part of an uncompressed archive."""

    file: str
    offset: int
    size: int

    def read(self) -> bytes:
        with Path(self.file).open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


def locate_files(source: Path, wanted: Set[str]) -> Iterator[tuple[str, FileLocation]]:
    """Yields path and location of those `wanted` files that a source contains, without reading.

    Args:
        source: a .tar archive, or a folder extracted from one.
        wanted: paths within the archive.

    Raises:
        UserError: the archive is damaged, truncated or malicious, or a file is far too large.
    """
    if source.is_dir():
        for name, path in _files_in(source, wanted):
            yield name, FileLocation(str(path), 0, path.stat().st_size)
        return
    left = set(wanted)
    with _as_user_errors(source), _open_tar(source) as archive:
        for name, member in _members(source, archive, left):
            yield name, FileLocation(str(source), member.offset_data, member.size)
        _check_end(archive)


def _files_in(folder: Path, wanted: Set[str]) -> Iterator[tuple[str, Path]]:
    for name in sorted(wanted):
        path = folder.parent / name
        if name.startswith(f"{folder.name}/") and path.is_file():
            _check_size(str(path), path.stat().st_size)
            yield name, path


class _BoundedTarInfo(tarfile.TarInfo):
    """Checks the size in every header, including those that tarfile processes internally."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        _check_size(f"archive member {header.name[:200]!r}", header.size)
        return header


def _open_tar(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "r:", tarinfo=_BoundedTarInfo)


def _read_tar(path: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
    left = set(wanted)
    with _as_user_errors(path):
        if path.suffix == ".tar":
            with _open_tar(path) as archive:
                for name, member in _members(path, archive, left):
                    yield name, _content(archive, member)
                _check_end(archive)
            return
        # With gzip, because tarfile's own reader does not verify the checksum.
        with (
            gzip.open(path) as stream,
            tarfile.open(
                fileobj=stream, mode="r|", bufsize=_CHUNK, tarinfo=_BoundedTarInfo
            ) as archive,
        ):
            for name, member in _members(path, archive, left):
                yield name, _content(archive, member)
            while stream.read(_CHUNK):  # to the end, where the checksum is verified
                _check_total(path, stream.tell())


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _members(
    path: Path, archive: tarfile.TarFile, left: set[str]
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yields the regular files named in `left`, each once, and removes them from it."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # would keep all headers in memory
        name = _checked_name(path, member.name)
        _check_size(f"{path}: member {member.name[:200]!r}", member.size)
        _check_total(path, member.offset_data + member.size)
        if member.isreg() and name in left:
            left.remove(name)
            yield name, member


def _check_end(archive: tarfile.TarFile) -> None:
    """Checks the end mark, because tarfile takes a truncated or invalid header for the end."""
    stream = archive.fileobj
    if stream:
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")


def _read_zip(path: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
    left = set(wanted)
    with _as_user_errors(path), zipfile.ZipFile(path) as archive:
        total = 0
        for member in archive.infolist():
            name = _checked_name(path, member.filename)
            _check_size(f"{path}: member {name[:200]!r}", member.file_size)
            total += member.file_size
            _check_total(path, total)
            if name in left and not member.is_dir():
                left.remove(name)
                yield name, archive.read(member)  # at most file_size bytes; verifies the checksum


@contextmanager
def _as_user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    # tarfile raises ValueError and RecursionError for invalid headers, zipfile RuntimeError for
    # encryption and NotImplementedError for unknown compression.
    except (
        *(OSError, EOFError, ValueError, RuntimeError),
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UserError(
            f"{path}: damaged or cut short ({error}): download it again, or copy it again"
        ) from None


def _checked_name(path: Path, name: str) -> str:
    """Normalises a member's name; raises `UserError` if it points outside the archive."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{path}: refused, because member {name[:200]!r} points outside the archive: "
            "this is not the archive as released"
        )
    return str(parts)


def _check_size(what: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{what}: refused, because no file of the release has {size / 2**20:.0f} MiB"
        )


def _check_total(path: Path, size: int) -> None:
    if size > MAX_ARCHIVE_BYTES:
        raise UserError(
            f"{path}: refused, because it holds more than {MAX_ARCHIVE_BYTES >> 30} GiB: "
            "this is not the archive as released"
        )
