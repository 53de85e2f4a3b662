"""Finds the image files that a table of faces names, and what to change where they are missing."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agenet.errors import UserError, printable

_MAX_SEARCHED = 500_000  # files of a folder, to find where missing ones are
_TRIED = 200  # missing paths that a prefix is tried with


def find_missing(paths: Sequence[str] | np.ndarray, folder: Path) -> np.ndarray:
    """Rows int64 [K] of the paths that are no files in a folder.

    Args:
        paths: [N], relative to the folder or absolute.
        folder: of the images.

    Raises:
        UserError: there is no such folder, or a path leads out of it.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    missing = []
    bar = tqdm(paths, desc="looking for the images", unit=" files", delay=3, disable=None)
    for row, path in enumerate(bar):
        if ".." in path and ".." in path.split("/"):
            raise UserError(
                f"{printable(path, 200)} leads out of its folder: name the folder above with "
                "--images, and write the paths from there"
            )
        if not _is_file(folder / path):
            missing.append(row)
    return np.array(missing, np.int64)


def describe_missing(
    source: str, paths: Sequence[str] | np.ndarray, missing: np.ndarray, folder: Path
) -> str:
    """One line: how many paths are missing, the first five, and what would fix it."""
    first = [printable(str(paths[row]), 200) for row in missing[:5]]
    more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    fix = suggest_fix([str(paths[row]) for row in missing[:_TRIED]], folder)
    return (
        f"{source}: {len(missing):,} of {len(paths):,} images are not in {folder}: "
        f"{', '.join(first)}{more}{fix}"
    )


def suggest_fix(missing: Sequence[str], folder: Path) -> str:
    """What to type to find most of some missing paths, as the end of a message; "" if unknown."""
    # The folder itself may be repeated in the table.
    for parent in list(folder.absolute().parents)[:3]:
        if _most(sum(_is_file(parent / path) for path in missing), missing):
            return f"; they are in {parent}: use --images={parent}"
    for cut in range(1, 1 + max((path.count("/") for path in missing), default=0)):
        start = "/".join(missing[0].split("/")[:cut]) + "/"
        found = (folder / path.removeprefix(start) for path in missing if path.startswith(start))
        if _most(sum(map(_is_file, found)), missing):
            return f"; without {printable(start, 200)} they are found: add --strip-prefix={start}"
    places: dict[str, int] = {}
    wanted = {path.rpartition("/")[2]: path for path in missing}
    stems = {name.rpartition(".")[0]: name for name in wanted if "." in name}
    endings: dict[str, int] = {}
    for name in islice(_files(folder), _MAX_SEARCHED):
        base = name.rpartition("/")[2]
        path = wanted.get(base)
        if path and name.endswith("/" + path):
            place = name.removesuffix(path)
            places[place] = places.get(place, 0) + 1
        elif not path and base.rpartition(".")[0] in stems:
            ending = base.rpartition(".")[2]
            endings[ending] = endings.get(ending, 0) + 1
    if places:
        best = max(places, key=lambda place: places[place])
        if _most(places[best], missing):
            return f"; they are in {folder / best}: use --images={folder / best.rstrip('/')}"
        return f"; {places[best]} of the first {len(missing)} are in {folder / best}"
    if endings:
        return f"; there are files of the same names that end with .{printable(max(endings))}"
    held = [printable(name) for name in islice(_files(folder), 3)]
    return f"; the folder holds {', '.join(held) or 'no files'}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # Too long a name, or a zero byte in it.
        return False


def _most(found: int, of: Sequence[str]) -> bool:
    return found > len(of) / 2


def _files(folder: Path) -> Iterator[str]:
    """Paths of the files in a folder and in those below it, relative to it."""
    for at, folders, names in os.walk(folder):
        folders.sort()
        below = os.path.relpath(at, folder)
        for name in sorted(names):
            yield name if below == "." else f"{below}/{name}"
