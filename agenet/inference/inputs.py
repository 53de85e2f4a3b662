"""Finds the image files for the paths, folders and patterns given on a command line."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from agenet.errors import UserError
from agenet.faces.image_io import FORMATS
from agenet.inference.results import Result


def find_images(paths: Sequence[str], leave_out: str | None = None) -> Iterator[Result]:
    """Yields the files for each path, or an error for a path without any.

    Folders are searched recursively for files with the suffix of an image format, in the order of
    their names. Files that are named or match a pattern may have any suffix.

    Args:
        paths: files, folders and patterns.
        leave_out: a folder that is not searched.
    """
    for path in paths:
        if path and Path(path).is_dir():
            yield from _find_in_folder(path, leave_out)
        elif os.path.lexists(path):
            yield Result(path)
        elif glob.has_magic(path):
            # Path.glob does not support absolute patterns.
            names = sorted(glob.iglob(path, recursive=True))  # noqa: PTH207
            files = [name for name in names if not Path(name).is_dir()]
            yield from map(Result, files) if files else [Result(path, error="matches no file")]
        else:
            yield Result(path, error="no such file or folder")


def _find_in_folder(folder: str, leave_out: str | None) -> Iterator[Result]:
    closed = None if leave_out is None else Path(leave_out).resolve()
    empty = True
    unreadable: list[OSError] = []
    for name, folders, files in os.walk(folder, onerror=unreadable.append):
        parent = Path(name)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (parent / name).resolve() != closed
        )
        for file in sorted(files):
            if file[0] != "." and Path(file).suffix.lower() in FORMATS:
                empty = False
                yield Result(str(parent / file))
        while unreadable:
            yield _unreadable(unreadable.pop())
    if unreadable:  # The top folder.
        yield _unreadable(unreadable.pop())
    elif empty:
        yield Result(folder, error="no images in this folder")


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
