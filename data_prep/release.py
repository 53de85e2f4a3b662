"""A release as found in the user's folder, and the check for missing and broken images."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agenet.errors import UserError

MAX_LEFT_OUT = 0.01  # fraction of images that may be missing or broken in a complete release
_NAMES_SHOWN = 10


@dataclass
class Release:
    """The content of the user's folder, before any image is read.

    Attributes:
        sources: archives and folders that contain the images.
        splits: split to path to row; paths are arguments of `data_prep.archives.read_files`, rows
            of the builder's `_features`.
        partial: whether any number of images may be missing.
        metadata: JSON-serialisable metadata of the prepared set.
        summary: lines to print after preparing.
    """

    sources: list[Path]
    splits: dict[str, dict[str, Any]]
    partial: bool = False
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
        f"{len(names):,} of {total:,} images {what}: {shortened(names)}"
        for what, names in lost.items()
        if names
    ]
    raise UserError(
        f"{release.where}: {'; '.join(parts)}. More than {MAX_LEFT_OUT:.0%} is an "
        "error: download it again, and check that labels and images belong together"
    )


def hash_number(text: str) -> int:
    """Hashes a text to an integer in [0, 2^63), for subject ids and seeded sampling."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shortened(names: list[str]) -> str:
    """The first ten names, and the number of further ones."""
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
