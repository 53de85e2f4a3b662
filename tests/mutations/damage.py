"""Damages bytes, lines of text, JSON and files: what all kinds of input have in common."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.random import Generator

from tests.mutations.kind import Change

# An escape sequence, a line that looks like ours, letters that run from right to left, and a
# formula.
TEXTS = ("\x1b[31mred\x1b[2J", "a\nerror: b", "\u202egpj.exe", "\x00", "=1+1", "é" * 300, "😀", "")
NAMES = ("\x1b[2Jname", "two\nlines", "\u202egpj", "-rf", "a" * 200, "ß😀", " ", "=1+1", "%s{0}")
NUMBERS = (0, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**64, 10**400, 1e308, 0.5, -0.0)


def place(size: int, rng: Generator) -> int:
    """A position in `size` bytes, as often in the first or last ones as anywhere."""
    if not size:
        return 0
    start = int(rng.integers(size))
    where = rng.random()
    if where < 0.4:
        return start % min(size, 512)
    return size - 1 - start % min(size, 256) if where < 0.5 else start


def damage_bytes(data: bytes, rng: Generator) -> tuple[bytes, Change]:
    """Flips, replaces, removes, adds or moves bytes."""
    at, size = place(len(data), rng), len(data)
    length = min(int(2 ** rng.uniform(0, 12)), size - at)
    noise = rng.bytes(max(length, 1))
    match rng.choice(
        ["flip", "flip", "flip", "set", "cut", "add", "zero", "insert", "drop", "max"]
    ):
        case "flip":
            changed = bytearray(data)
            places = [place(size, rng) for _ in range(int(rng.integers(1, 5)))] if size else []
            for each in places:
                changed[each] ^= 1 << int(rng.integers(8))
            return bytes(changed), Change(f"bits flipped in bytes {places}", len(places))
        case "set":
            count = min(length, 16)
            changed = data[:at] + noise[:count] + data[at + count :]
            return changed, Change(f"{count} random bytes at {at}", count)
        case "cut":
            return data[:at], Change(f"cut to {at} of {size} bytes", size - at)
        case "add":
            more = [bytes(length), noise, data][int(rng.integers(3))]
            return data + more, Change(f"{len(more)} bytes added", len(more))
        case "zero":
            changed = data[:at] + bytes(length) + data[at + length :]
            return changed, Change(f"{length} zeros at {at}", length)
        case "insert":
            return data[:at] + noise + data[at:], Change(
                f"{len(noise)} bytes inserted at {at}", size
            )
        case "drop":
            return data[:at] + data[at + length :], Change(f"{length} bytes lost at {at}", size)
        case _:
            width = int(rng.choice([2, 4, 8]))
            value = [
                b"\xff" * width,
                b"\xff" * (width - 1) + b"\x7f",
                b"\x7f" + b"\xff" * (width - 1),
            ]
            changed = data[:at] + value[int(rng.integers(3))] + data[at + width :]
            return changed, Change(f"the largest number of {width} bytes at {at}", width)


def damage_lines(data: bytes, separator: str, rng: Generator) -> tuple[bytes, Change]:
    """Damages a table in text: its encoding, line ends, lines or fields."""
    lines = data.decode().split("\n")
    row, other = (int(rng.integers(len(lines))) for _ in range(2))
    fields = lines[row].split(separator)
    column, second = (int(rng.integers(len(fields))) for _ in range(2))
    action = rng.choice(
        ["bom", "crlf", "cr", "utf16", "latin1", "blank", "twice", "lost", "swap rows"]
        + 2 * ["swap", "text", "number", "drop field", "add field", "space", "long"]
    )
    harmless = {"bom": b"\xef\xbb\xbf" + data, "crlf": data.replace(b"\n", b"\r\n")}
    if action in harmless:
        return harmless[action], Change(str(action), 0)
    match action:
        case "cr":
            return data.replace(b"\n", b"\r"), Change("cr as line end", len(lines))
        case "utf16":
            return data.decode().encode("utf-16"), Change("utf-16", len(data))
        case "latin1":
            at = place(len(data), rng)
            return data[:at] + b"\xe9" + data[at + 1 :], Change(f"not UTF-8 at {at}")
        case "blank":
            lines.insert(row, "")
            return "\n".join(lines).encode(), Change(f"blank line {row + 1}", 0)
        case "twice":
            lines.insert(other, lines[row])
        case "lost":
            del lines[row]
        case "swap rows":
            lines[row], lines[other] = lines[other], lines[row]
        case "swap":
            fields[column], fields[second] = fields[second], fields[column]
        case "text":
            fields[column] = str(rng.choice(TEXTS))
        case "number":
            fields[column] = str(NUMBERS[int(rng.integers(len(NUMBERS)))])
        case "drop field":
            del fields[column]
        case "add field":
            fields.insert(column, "x")
        case "space":
            fields[column] = f" {fields[column]} "
        case _:
            fields[column] *= 100_000
    if action not in ("twice", "lost", "swap rows"):
        lines[row] = separator.join(fields)
    return "\n".join(lines).encode(), Change(f"{action}: line {row + 1}, field {column + 1}", 2)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    return [path, *(p for key, each in items for p in _paths(each, (*path, key)))]


def damage_json(text: str, rng: Generator) -> tuple[bytes, Change]:
    """Damages one value of a JSON document, or the document as a whole."""
    document = json.loads(text)
    paths = _paths(document)
    path = paths[int(rng.integers(len(paths)))]
    others: list[Any] = [None, True, [], {}, [[]], {"": 0}, float("nan"), float("inf")]
    others += [*NUMBERS, *TEXTS, "tests.mutations.canary", "NaN", "../../outside", "/etc/passwd"]
    action = rng.choice(["lost", "other", "other", "other", "deep", "added", "bytes", "list"])
    where = "/".join(map(str, path)) or "all"
    if action == "bytes":
        data, change = damage_bytes(text.encode(), rng)
        return data, Change(f"JSON: {change.what}", change.size)
    other = others[int(rng.integers(len(others)))]
    if action == "deep":
        other = "DEEP"
    if not path:
        document = other
    else:
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if action == "lost":
            del parent[path[-1]]
        elif action == "added" and isinstance(parent, dict):
            parent[str(other)[:50]] = parent[path[-1]]
        else:
            parent[path[-1]] = [parent[path[-1]]] if action == "list" else other
    nested = "[" * 100_000 + "]" * 100_000
    changed = json.dumps(document).replace('"DEEP"', nested)
    shown = "" if action in ("lost", "list") else f" {str(other)[:40]!r}"
    return changed.encode("utf-8", "surrogatepass"), Change(f"JSON {where}: {action}{shown}")


def change_name(path: Path, rng: Generator) -> Change:
    """Gives a file a name that a terminal or a shell could stumble over, and keeps its suffix."""
    new = path.with_name(str(rng.choice(NAMES)) + path.suffix)
    path.rename(new)
    return Change(f"named {new.name!r}", 0)


def damage_file(path: Path, rng: Generator, rename: bool = True) -> Change:
    """Puts something else in the place of a file."""

    def link(target: str) -> Callable[[], None]:
        return lambda: path.symlink_to(target)

    actions: dict[str, Callable[[], Any]] = {
        "missing": lambda: None,
        "empty": path.touch,
        "a folder": path.mkdir,
        "a link to itself": link(path.name),
        "a link to nothing": link("nowhere"),
        "a link to endless zeros": link("/dev/zero"),
        "a pipe": lambda: os.mkfifo(path),
        "a web page": lambda: path.write_text("<!DOCTYPE html><title>404</title>"),
        "a Git LFS pointer": lambda: path.write_text("version https://git-lfs.github.com/spec/v1"),
    }
    names = [*actions, "renamed"] if rename else list(actions)
    name = str(rng.choice(names))
    if name == "renamed":
        new = str(rng.choice(NAMES))
        shutil.move(path, path.with_name(new + path.suffix))
        return Change(f"{path.name} renamed to {new!r}", 0)
    path.unlink()
    actions[name]()
    return Change(f"{path.name} is {name}")
