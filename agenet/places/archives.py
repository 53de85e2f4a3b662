"""Checkpoints as archives, so that each is one object in a store and never seen in part."""

import re
import shutil
import zipfile
import zlib
from pathlib import Path

from agenet.errors import UserError, printable

_PACKED = re.compile(r"checkpoints/(latest|best)/\d{1,12}")


def is_packed(folder: str) -> bool:
    """Whether the files of a folder belong together: it is a checkpoint."""
    return bool(_PACKED.fullmatch(folder))


def unpacked_name(name: str) -> str:
    """The folder that an object holds all of; "" if it is one file."""
    folder = name.removesuffix(".zip")
    return folder if folder != name and is_packed(folder) else ""


def pack(folder: Path, archive: Path) -> None:
    """Writes the files of a folder to a new archive, which holds their checksums, too."""
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder))


def unpack(archive: Path, name: object) -> Path:
    """Unpacks an archive into a folder beside it, in whose place that comes.

    Args:
        archive: the file.
        name: of the archive, for messages.

    Raises:
        UserError: it is damaged, or not an archive that `pack` wrote.
    """
    folder = archive.with_name(f"{archive.name}.folder")
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            if sum(member.file_size for member in members) > 2 * archive.stat().st_size + 4096:
                raise zipfile.BadZipFile("it is compressed")
            if not all(is_name(member.filename) or member.is_dir() for member in members):
                raise zipfile.BadZipFile("it has names that lead out of it")
            folder.mkdir()
            file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        remove(folder)
        raise UserError(f"{name} is damaged: {printable(str(error), 200)}") from error
    archive.unlink()
    return folder


def is_name(name: str) -> bool:
    """Whether an object's name is one of a file below a folder, and not a hidden one."""
    parts = name.split("/")
    return "\0" not in name and "\\" not in name and all(p and p[0] != "." for p in parts)


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
