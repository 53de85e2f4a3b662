"""Video files, as `agenet webcam` reads them without a window."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from agenet.faces.encoding import VideoWriter
from tests.mutations.command import WrongError, agenet
from tests.mutations.damage import change_name, damage_bytes, damage_file
from tests.mutations.images import is_plausible, load_once, photo
from tests.mutations.kind import Change, Kind, only_file

FRAMES, SIDE = 6, 160


def make(folder: Path) -> None:
    for name in ("film.mp4", "film.avi", "film.mkv", "film.mov"):
        (folder / name).mkdir()
        writer = VideoWriter(folder / name / name, 12.0)
        for frame in range(FRAMES):
            writer.write(np.roll(np.asarray(photo(SIDE)), 2 * frame, axis=1), frame / 12)
        writer.close()
    (folder / "film.gif").mkdir()
    frames = [photo(SIDE).rotate(frame) for frame in range(FRAMES)]
    frames[0].save(
        folder / "film.gif/film.gif", save_all=True, append_images=frames[1:], duration=80
    )


def _huge_numbers(data: bytes, rng: Generator) -> tuple[bytes, Change]:
    """Puts large or odd numbers into the headers: sizes, durations, rates, numbers of frames."""
    known = [b"mvhd", b"tkhd", b"mdhd", b"stts", b"stsz", b"stsc", b"stco", b"stsd", b"elst"]
    known += [b"avih", b"strh", b"strf", b"idx1", b"\x2a\xd7\xb1", b"\xb0\x82", b"\xe0"]
    places = [(name, data.find(name)) for name in known if data.find(name) >= 0]
    if not places:
        return damage_bytes(data, rng)
    name, at = places[int(rng.integers(len(places)))]
    at += len(name) + 4 * int(rng.integers(12))
    numbers = [0, 1, 90_000, 2**16, 2**31 - 1, 2**32 - 1]
    number = int(rng.choice(numbers))
    order = ">I" if data[4:8] == b"ftyp" else "<I"
    changed = data[:at] + struct.pack(order, number) + data[at + 4 :]
    return changed, Change(f"{number} at {at}, in {name!r}", 4)


def mutate(folder: Path, rng: Generator) -> Change:
    path = only_file(folder)
    match rng.choice(["bytes"] * 5 + ["number"] * 3 + ["name", "file"]):
        case "name":
            return change_name(path, rng)
        case "file":
            return damage_file(path, rng)
        case "number":
            data, change = _huge_numbers(path.read_bytes(), rng)
        case _:
            data, change = damage_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return change


def use(folder: Path, output: Path) -> dict[str, Any]:
    load_once()
    rows = output / "rows.jsonl"
    (path,) = folder.iterdir()
    printed = agenet("webcam", str(path), "--json", str(rows), "--no-window")
    if not printed.replace("\n", "").isprintable():
        raise WrongError(f"prints control characters: {printed[:200]!r}")
    return {"rows": [json.loads(line) for line in rows.read_text().splitlines()], "said": printed}


def compare(result: Any, right: Any, change: Change) -> str:
    rows = result["rows"]
    times = [row["seconds"] for row in rows]
    if not all(math.isfinite(t) for t in times) or times != sorted(set(times)):
        return f"times do not increase: {times[:8]}"
    faces = [face for row in rows for face in row["faces"]]
    if not all(is_plausible(face, 1e5, 1e5) for face in faces):
        return f"impossible faces: {faces[:2]}"
    if change.size == 0 and rows != right["rows"]:
        return "other results for the same film"
    if change.what.startswith("cut") and len(rows) < 0.8 * FRAMES and "early" not in result["said"]:
        return f"{len(rows)} of {FRAMES} frames, without a word: {result['said'][-100:]!r}"
    return ""


KINDS = {"clips": Kind("clips", make, mutate, use, compare, sample=30)}
