"""Reads files from untrusted archives and folders.

Names, numbers and sizes are checked before use, and nothing is extracted to disk.
"""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Self

from agenet.errors import UserError, printable
from data_prep.kinds import archive_kind
from data_prep.layout import Layout, file_in, find_moved, member_name

MAX_FILE_BYTES = 64 << 20  # a released image has some 100 kB
# Files in an archive: the largest released one has 460,723, and each takes at least 600 bytes.
MAX_FILES = 1_000_000
_FEW_FILES, _MIN_BYTES_PER_FILE = 10_000, 100
MAX_ARCHIVE_BYTES = 64 << 30  # uncompressed; the released ones have 2 to 7 GB
# Images hardly compress, so an archive that becomes larger than this is no release.
_SMALL, _MAX_RATIO = 1 << 30, 20
_MAX_HEADER_BYTES = 1 << 20  # long names and attributes before a member of a .tar archive
_MAX_DIRECTORY_BYTES = 24 << 20  # of a .zip archive; FairFace's has some 10 MB
_CHUNK = 1 << 20


def read_files(source: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
    """Yields path and bytes of those `wanted` files that a source contains, in one pass.

    If it contains none of them, but the same files below further folders or without their top
    folder, these are read, in another pass.

    Args:
        source: a .tar, .tar.gz or .zip archive, whatever its name, or a folder extracted from one:
            the archive's "faces/a.jpg" is the file a.jpg in the folder "faces".
        wanted: paths within the archive as released.

    Raises:
        UserError: the archive is damaged, truncated or malicious, or a file is far too large.
    """
    if source.is_dir():
        return ((name, path.read_bytes()) for name, path in _files_in(source, wanted))
    return _read_archive(source, wanted, {"zip": _read_zip}.get(archive_kind(source), _read_tar))


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
        wanted: as for `read_files`.

    Raises:
        UserError: as for `read_files`, or the archive is compressed.
    """
    if source.is_dir():
        return (
            (name, FileLocation(str(path), 0, path.stat().st_size))
            for name, path in _files_in(source, wanted)
        )
    if archive_kind(source) != "tar":
        raise UserError(f"{source}: Beam reads .tar archives and folders: unpack it into a folder")
    return _read_archive(source, wanted, _locate_in_tar)


def first_names(source: Path, count: int) -> list[str]:
    """The names of the first files in an archive or a folder, for messages."""
    if source.is_dir():
        files = (path for path in source.rglob("*") if path.is_file())
        names = (str(path.relative_to(source.parent)) for path in files)
    else:
        read = {"zip": _read_zip}.get(archive_kind(source), _read_tar)
        names = (name for name, _ in read(source, _AnyName()))
    return [printable(name) for name in islice(names, count)]


class _AnyName(Layout):
    """Takes every file under its own name."""

    def __init__(self) -> None:
        super().__init__(frozenset(), "")

    def take(self, name: str) -> str | None:
        return name


def _files_in(folder: Path, wanted: Set[str]) -> Iterator[tuple[str, Path]]:
    own = sorted(name for name in wanted if name.startswith(f"{folder.name}/"))
    outer = folder.parent
    if not any(file_in(outer / name) for name in own):
        outer = find_moved(folder, own) or outer
    for name in own:
        path = outer / name
        if file_in(path):
            _check_size(str(path), path.stat().st_size)
            yield name, path


def _read_archive(source: Path, wanted: Set[str], read: Callable[..., Iterator[Any]]) -> Iterator:
    layout: Layout | None = Layout(wanted, source.name)
    while layout:
        yield from read(source, layout)
        layout = layout.moved()


class _BoundedTarInfo(tarfile.TarInfo):
    """Checks the size in every header, including those that tarfile processes internally."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        is_file = header.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
        _check_size(
            f"archive member {header.name[:200]!r}",
            header.size,
            MAX_FILE_BYTES if is_file else _MAX_HEADER_BYTES,
        )
        return header

    def _refuse_sparse(self, *_: Any) -> NoReturn:
        # tarfile would keep a map of any length in memory; no release has sparse files.
        raise tarfile.ReadError("a sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _locate_in_tar(path: Path, layout: Layout) -> Iterator[tuple[str, FileLocation]]:
    with _as_user_errors(path), tarfile.open(path, "r:", tarinfo=_BoundedTarInfo) as archive:
        for name, member in _members(path, archive, layout):
            yield name, FileLocation(str(path), member.offset_data, member.size)
        _check_end(archive)


def _read_tar(path: Path, layout: Layout) -> Iterator[tuple[str, bytes]]:
    if archive_kind(path) == "tar":
        with _as_user_errors(path), tarfile.open(path, "r:", tarinfo=_BoundedTarInfo) as archive:
            for name, member in _members(path, archive, layout):
                yield name, _content(archive, member)
            _check_end(archive)
        return
    # With gzip, because tarfile's own reader does not verify the checksum.
    with (
        _as_user_errors(path),
        gzip.open(path) as once,
        _gunzip_again(once) as stream,
        tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK, tarinfo=_BoundedTarInfo) as archive,
    ):
        for name, member in _members(path, archive, layout):
            yield name, _content(archive, member)
        while stream.read(_CHUNK):  # to the end, where the checksum is verified
            _check_total(path, stream.tell())


def _gunzip_again(stream: gzip.GzipFile) -> gzip.GzipFile:
    """Some servers and browsers compress an archive once more."""
    return gzip.GzipFile(fileobj=stream, mode="rb") if stream.peek(2)[:2] == b"\x1f\x8b" else stream


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _members(
    path: Path, archive: tarfile.TarFile, layout: Layout
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yields the regular files that the layout takes, under their released names."""
    count = 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # would keep all headers in memory
        count += 1
        _check_count(path, count)
        attributes = sum(map(len, archive.pax_headers.values()))
        _check_size(f"{path}: attributes of all files", attributes, _MAX_HEADER_BYTES)
        _check_size(f"{path}: member {member.name[:200]!r}", member.size)
        _check_total(path, member.offset_data + member.size)
        name = member_name(path, member.name)
        if member.isreg() and (released := layout.take(name)):
            yield released, member


def _check_end(archive: tarfile.TarFile) -> None:
    """Checks the end mark, because tarfile takes a truncated or invalid header for the end."""
    stream = archive.fileobj
    if stream:
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")


class _BoundedFile(io.FileIO):
    """zipfile reads the directory of an archive, of any claimed size, at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > _MAX_DIRECTORY_BYTES:
            raise ValueError("too large a directory")
        return super().read(size)


def _read_zip(path: Path, layout: Layout) -> Iterator[tuple[str, bytes]]:
    with (
        _as_user_errors(path),
        _BoundedFile(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        _check_count(path, len(archive.infolist()))
        total = 0
        for member in archive.infolist():
            name = member_name(path, member.filename)
            _check_size(f"{path}: member {name[:200]!r}", member.file_size)
            total += member.file_size
            _check_total(path, total)
            if not member.is_dir() and (released := layout.take(name)):
                yield released, _unzip(archive, member)


def _unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("a compression that no release uses")
    # In pieces: at once, zipfile decompresses up to 2 GiB, whatever size the member claims.
    with archive.open(member) as file:
        return b"".join(iter(lambda: file.read(_CHUNK), b""))  # verifies the checksum


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
        if "encrypted" in str(error):
            raise UserError(f"{path}: encrypted: unpack it into a folder") from None
        raise UserError(
            f"{path}: damaged or cut short ({printable(str(error))}): download it again, or copy "
            "it again"
        ) from None


def _check_size(what: str, size: int, limit: int | None = None) -> None:
    if size > (MAX_FILE_BYTES if limit is None else limit):
        raise UserError(
            f"{what}: refused, because no file of the release has {size / 2**20:.0f} MiB"
        )


def _check_count(path: Path, count: int) -> None:
    limit = min(MAX_FILES, _FEW_FILES + path.stat().st_size // _MIN_BYTES_PER_FILE)
    if count > limit:
        raise UserError(
            f"{path}: refused, because it holds more than {limit:,} files: "
            "this is not the archive as released"
        )


def _check_total(path: Path, size: int) -> None:
    limit = min(MAX_ARCHIVE_BYTES, _SMALL + _MAX_RATIO * path.stat().st_size)
    if size > limit:
        raise UserError(
            f"{path}: refused, because it holds more than {limit >> 20:,} MiB: "
            "this is not the archive as released"
        )
