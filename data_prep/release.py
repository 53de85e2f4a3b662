"""A release as found in the user's folder, and the check for missing and broken images."""

import hashlib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agenet.errors import UserError, printable
from data_prep.archives import first_names
from data_prep.kinds import SUFFIXES

MAX_LEFT_OUT = 0.01  # fraction of images that may be missing or broken in a complete release
_FOLDERS_SEARCHED = 200  # beside a folder that is not that of a release
_MAX_NAME_BYTES = 200  # with a prefix it still fits into the 255 of file systems


@dataclass
class Release:
    """The content of the user's folder, before any image is read.

    Attributes:
        sources: archives and folders that contain the images.
        splits: split to path to row; paths are arguments of `data_prep.archives.read_files`, rows
            of the builder's `_features`.
        partial: whether any number of images may be missing.
        advice: what to do if too many are, besides downloading it again.
        metadata: JSON-serialisable metadata of the prepared set.
        summary: lines to print after preparing.
    """

    sources: list[Path]
    splits: dict[str, dict[str, Any]]
    partial: bool = False
    advice: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The sources, for messages."""
        return ", ".join(map(str, self.sources))


def check_left_out(release: Release, missing: Iterable[str], broken: Iterable[str]) -> None:
    """Checks that at most `MAX_LEFT_OUT` of the images are missing or broken.

    Raises:
        UserError: more than that are, or none is left.
    """
    lost = {"are missing": sorted(missing), "do not decode": sorted(broken)}
    total = sum(map(len, release.splits.values()))
    if release.partial:
        total -= len(lost.pop("are missing"))
        if not total:
            raise UserError(f"{release.where}: none of the listed images was found")
    if sum(map(len, lost.values())) <= MAX_LEFT_OUT * total:
        return
    parts = [
        f"{len(names):,} of {total:,} images {what}: {shortened(names, 3)}"
        for what, names in lost.items()
        if names
    ]
    raise UserError(
        f"{release.where}: {'; '.join(parts)}{_what_is_there(release, lost)}. More than "
        f"{MAX_LEFT_OUT:.0%} is an error: download it again, and check that labels and images "
        f"belong together{release.advice}"
    )


def _what_is_there(release: Release, lost: dict[str, list[str]]) -> str:
    """Names the first files of each source, to compare with those that are missing."""
    parts = []
    for source in release.sources if lost.get("are missing") else ():
        with suppress(UserError, OSError):
            names = first_names(source, 3)
            is_archive = any(name.endswith(SUFFIXES) for name in names)
            advice = " (an archive in it: unpack that into the folder)" if is_archive else ""
            parts.append(f"; {source.name} begins with {', '.join(names) or 'nothing'}{advice}")
    return "".join(parts)


def check_complete(folder: Path, missing: Callable[[Path], list[str]], advice: str) -> None:
    """Checks that a folder holds all files of a release.

    Args:
        folder: the user's.
        missing: returns the names of the files that a folder lacks.
        advice: where to get them.

    Raises:
        UserError: it lacks some; names them, what it holds, or the folder nearby that has all.
    """
    names = missing(folder)
    if not names:
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. {advice}")
    content = sorted(folder.iterdir())
    nearby = [folder.parent, *(path for path in content if path.is_dir())][:_FOLDERS_SEARCHED]
    for other in nearby:
        if not missing(other):
            raise UserError(f"{folder} lacks {', '.join(names)}: use --manual_dir={other}")
    held = shortened([path.name for path in content]) or "nothing"
    raise UserError(f"{folder} lacks {', '.join(names)}. {advice} The folder holds {held}.")


def hash_number(text: str) -> int:
    """Hashes a text to an integer in [0, 2^63), for subject ids and seeded sampling."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shortened(names: list[str], shown: int = 10) -> str:
    """The first names, and the number of further ones."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(printable(name, 300) for name in names[:shown]) + more


def is_file_name(text: str) -> bool:
    """Whether a text from a table may become a part of a path: it cannot leave its folder."""
    plain = re.fullmatch(r"(?!\.+$)[^/\\\x00-\x1f\x7f]+", text)
    return bool(plain) and len(text.encode(errors="replace")) <= _MAX_NAME_BYTES
