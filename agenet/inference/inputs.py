"""Finds the image files for the paths, folders and patterns given on a command line."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from agenet.errors import UserError
from agenet.faces.image_formats import LINKED_FOLDER, describe_unread, is_read
from agenet.inference.results import Result


class ImageSearch:
    """Finds the image files for each path; yields a file, or an error for a path without any.

    Folders are searched recursively for files with the suffix of an image format, in the order of
    their names. Files that are named or match a pattern may have any suffix. Hidden files and
    linked folders in folders are left out: a link may lead anywhere, or back.

    Args:
        paths: files, folders and patterns.
        leave_out: a folder that is not searched.

    Attributes:
        unread: number of files in folders that are left out, by suffix or `LINKED_FOLDER`, without
            the hidden ones.
    """

    def __init__(self, paths: Sequence[str], leave_out: str | None = None) -> None:
        self._paths = paths
        self._closed = None if leave_out is None else Path(leave_out).resolve()
        self.unread: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Result]:
        for path in self._paths:
            if path and Path(path).is_dir():
                yield from self._find_in_folder(path)
            elif os.path.lexists(path):
                yield Result(path)
            elif glob.has_magic(path):
                # Path.glob does not support absolute patterns.
                names = sorted(glob.iglob(path, recursive=True))  # noqa: PTH207
                files = [name for name in names if not Path(name).is_dir()]
                yield from map(Result, files) if files else [Result(path, error="matches no file")]
            else:
                yield Result(path, error="no such file or folder")

    def _find_in_folder(self, folder: str) -> Iterator[Result]:
        empty = True
        unread: Counter[str] = Counter()
        unreadable: list[OSError] = []
        for name, folders, files in os.walk(folder, onerror=unreadable.append):
            parent = Path(name)
            folders[:] = sorted(
                name
                for name in folders
                if name[0] != "." and (parent / name).resolve() != self._closed
            )
            unread[LINKED_FOLDER] += sum((parent / name).is_symlink() for name in folders)
            for file in sorted(name for name in files if name[0] != "."):
                suffix = Path(file).suffix.lower()
                if is_read(suffix):
                    empty = False
                    yield Result(str(parent / file))
                else:
                    unread[suffix] += 1
            while unreadable:
                yield _unreadable(unreadable.pop())
        self.unread += unread
        if unreadable:  # The top folder.
            yield _unreadable(unreadable.pop())
        elif empty:
            there = describe_unread(+unread)
            there = f"; not read: {there}" if there else ""
            yield Result(folder, error=f"no images in this folder{there}")


def _unreadable(error: OSError) -> Result:
    return Result(str(error.filename), error=str(error.strerror).lower())


def common_folder(paths: Sequence[str]) -> str:
    """Returns the deepest folder that contains all files found for the paths.

    Raises:
        UserError: there is none.
    """
    roots = []
    for path in paths:
        root = Path(path)
        # The matches of a pattern are below its parents, even if a folder has the same name.
        while not root.is_dir() or (root != Path(path) and glob.has_magic(str(root))):
            root = root.parent
        roots.append(os.path.normpath(root.absolute()))
    try:
        return os.path.commonpath(roots)
    except ValueError as error:  # Several drives on Windows.
        raise UserError("--annotated: give images of one drive at a time") from error
