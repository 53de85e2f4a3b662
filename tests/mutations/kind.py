"""What a kind of mutated input is: how to make it, damage it, use it and judge the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Change:
    """What was done to an input.

    Attributes:
        what: in words.
        size: number of bytes that changed, so that at most as many values of the result may differ
            where a format has no checksums; 0 if the input still means the same.
    """

    what: str
    size: int = 1


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind.

    Attributes:
        name: in the table.
        make: writes the good inputs, each into a folder of its own below the given one.
        mutate: damages the copy of a good input in the given folder.
        use: does what a user would do with the input (first folder) and may write into the second
            one; returns a result that can be compared. Raises `UserError`.
        compare: says what is wrong with a result, given that of the good input and the change;
            "" if nothing is.
        sample: number of cases that a test runs.
        seconds: after which a case counts as hanging.
        megabytes: that a case may add to the memory of the process.
        warm_up: how often the good input is used first: the first time libraries load, and code is
            compiled.
        forks: `use` starts processes itself, so that it needs none of its own.
    """

    name: str
    make: Callable[[Path], None]
    mutate: Callable[[Path, Generator], Change]
    use: Callable[[Path, Path], Any]
    compare: Callable[[Any, Any, Change], str]
    sample: int = 100
    seconds: float = 30
    megabytes: int = 600
    warm_up: int = 2
    forks: bool = False


def only_file(folder: Path) -> Path:
    """The file of an input that is one file."""
    (path,) = (path for path in folder.iterdir() if path.is_file())
    return path


def same(result: Any, right: Any, change: Change) -> str:
    """A `Kind.compare` for results that must not change at all."""
    return differing(result, right, 0)


def as_the_file_says(result: Any, right: Any, change: Change) -> str:
    """A `Kind.compare` for formats without checksums: a changed byte may change one value."""
    return differing(result, right, change.size)


def differing(result: dict[str, Any], right: dict[str, Any], most: int) -> str:
    """Says what differs between two results, {name: array or value}, in more than `most` values."""
    if result.keys() != right.keys():
        return f"other names: {sorted(result.keys() ^ right.keys())[:4]}"
    count, first = 0, ""
    for name, value in result.items():
        found, expected = np.asarray(value), np.asarray(right[name])
        if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
            return f"{name} is {found.dtype}{found.shape}, not {expected.dtype}{expected.shape}"
        differs = int((found != expected).sum())
        if differs and not first:
            first = f"{name}: {str(found[found != expected][0])[:60]} in place of "
            first += str(expected[found != expected][0])[:60]
        count += differs
    return f"{count} values differ without a word, first {first}" if count > most else ""
