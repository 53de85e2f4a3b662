"""What a builder finds in the user's folder, and how much of it may be missing."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agenet.errors import UserError

MAX_LEFT_OUT = 0.01  # of the pictures; more than that is no release but a part of one
_NAMES_SHOWN = 10


@dataclass
class Release:
    """What lies in the user's folder, before any picture is read.

    Attributes:
        sources: archives and folders to read the pictures from.
        splits: split to path to row; the path as `data_prep.archives.read_files` wants it, the
            row as the builder's `_features` wants it.
        partial: whether any number of pictures may be missing.
        metadata: of the prepared set: JSON-serialisable.
        summary: lines for whoever prepares the set.
    """

    sources: list[Path]
    splits: dict[str, dict[str, Any]]
    partial: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Names the sources in messages."""
        return ", ".join(map(str, self.sources))


def check_left_out(release: Release, missing: Iterable[str], broken: Iterable[str]) -> None:
    """A few pictures may be missing or broken; they are left out and recorded.

    Raises:
        UserError: they are more than a few, or nothing is left.
    """
    lost = {"are missing": sorted(missing), "do not decode": sorted(broken)}
    total = sum(map(len, release.splits.values()))
    if release.partial:
        total -= len(lost.pop("are missing"))
        if not total:
            raise UserError(f"{release.where}: none of the listed pictures is there")
    if sum(map(len, lost.values())) <= MAX_LEFT_OUT * total:
        return
    parts = [
        f"{len(names):,} of {total:,} pictures {what}: {shortened(names)}"
        for what, names in lost.items()
        if names
    ]
    raise UserError(
        f"{release.where}: {'; '.join(parts)}. More than {MAX_LEFT_OUT:.0%} is an "
        "error: download it again, and check that labels and pictures belong together"
    )


def hash_number(text: str) -> int:
    """A number in [0, 2^63) that depends on the text alone: a person's id, or a seeded draw."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shortened(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
