"""Image files of every format that `agenet predict` reads."""

import functools
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from agenet.cli import options
from tests.conftest import ROOT
from tests.mutations.command import WrongError, agenet
from tests.mutations.damage import change_name, damage_bytes, damage_file
from tests.mutations.kind import Change, Kind, only_file

# Names of the bases, which are those of the files, and the options of Pillow to write them.
FORMATS: dict[str, dict[str, Any]] = {
    "baseline.jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "rgb.png": {},
    "alpha.png": {"mode": "RGBA"},
    "palette.png": {"mode": "P"},
    "deep.png": {"mode": "I;16"},
    "lossy.webp": {"quality": 80},
    "lossless.webp": {"lossless": True},
    "plain.bmp": {},
    "plain.tif": {},
    "lzw.tiff": {"compression": "tiff_lzw"},
    "moves.gif": {"save_all": True, "duration": 40},
}


def photo(size: int) -> Image.Image:
    """The face of the portrait in the README, with some room around it."""
    with Image.open(ROOT / ".github/images/astronaut.jpg") as image:
        side = min(image.size)
        return image.convert("RGB").crop((0, 0, side, side)).resize((size, size))


def make(folder: Path) -> None:
    image = photo(240)
    for name, chosen in FORMATS.items():
        (folder / name).mkdir()
        saved = image
        if chosen.get("mode") == "I;16":
            saved = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        elif "mode" in chosen:
            saved = image.convert(chosen["mode"])
        frames = {"append_images": [saved.rotate(5)]} if "save_all" in chosen else {}
        kept = {key: value for key, value in chosen.items() if key != "mode"}
        saved.save(folder / name / name, **kept, **frames)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claim_size(data: bytes, width: int, height: int) -> bytes | None:
    """The file with another size in its header, whose checksum is right; None: not known how."""
    if data.startswith(b"\x89PNG"):
        header = struct.pack(">II", width % 2**31, height % 2**31) + data[24:29]
        return data[:8] + _png_chunk(b"IHDR", header) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<II", width % 2**32, height % 2**32) + data[26:]
    small = struct.pack("<HH", width % 2**16, height % 2**16)
    if data.startswith(b"GIF8"):
        at = data.find(b"\x2c\0\0\0\0")  # the first frame's descriptor
        return data[:6] + small + data[10 : at + 5] + small + data[at + 9 :]
    if data.startswith(b"\xff\xd8"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return data[: at + 5] + struct.pack(">HH", height % 2**16, width % 2**16) + data[at + 9 :]
    if data[12:16] == b"VP8 ":
        return data[:26] + struct.pack("<HH", width % 2**14, height % 2**14) + data[30:]
    if data[:4] == b"II*\0":  # TIFF: the values of the tags ImageWidth and ImageLength
        at = struct.unpack_from("<I", data, 4)[0] + 2
        changed = bytearray(data)
        for entry in range(at, at + 12 * struct.unpack_from("<H", data, at - 2)[0], 12):
            tag = struct.unpack_from("<H", data, entry)[0]
            if tag in (256, 257, 278):
                side = (width if tag == 256 else height) % 2**32
                struct.pack_into("<HII", changed, entry + 2, 4, 1, side)
        return bytes(changed)
    return None


def many_scans(count: int, side: int = 3000) -> bytes:
    """A small progressive JPEG whose last scan, empty and as large as the image, is repeated."""
    content = io.BytesIO()
    Image.new("L", (side, side), 128).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def flat_png(width: int, height: int) -> bytes:
    """A PNG of one bit per pixel that is all there, and small."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * 64) for _ in range(height // 64))
    rows += packer.compress(row * (height % 64)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*part) for part in parts)


def mutate(folder: Path, rng: Generator) -> Change:
    path = only_file(folder)
    data = path.read_bytes()
    sides = [0, 1, 3, 10_000, 65_000, 100_000_000, 2**31 - 1]
    width, height = (int(rng.choice(sides)) for _ in range(2))
    match rng.choice(["bytes"] * 6 + ["size"] * 2 + ["name", "file", "exif", "scans", "flat"]):
        case "size" if changed := claim_size(data, width, height):
            path.write_bytes(changed)
            return Change(f"claims to be {width}x{height}", 8)
        case "name":
            return change_name(path, rng)
        case "file":
            return damage_file(path, rng)
        case "exif":
            exif = Image.Exif()
            exif[0x0112] = (orientation := int(rng.choice([0, 1, 1, 9, 255, 65535])))
            with Image.open(path) as image:
                image.load()
                image.save(path, exif=exif.tobytes() + rng.bytes(int(rng.integers(2)) * 99))
            return Change(f"EXIF orientation {orientation}", 1)
        case "scans":
            count = int(rng.choice([2, 100, 2000, 20_000]))
            path.write_bytes(many_scans(count))
            return Change(f"progressive JPEG of {count} scans", len(data))
        case "flat":
            sides = [1, 300, 9_900, 40_000]
            width, height = (int(rng.choice(sides)) for _ in range(2))
            path.write_bytes(flat_png(width, height))
            return Change(f"flat PNG of {width}x{height}", len(data))
    data, change = damage_bytes(data, rng)
    path.write_bytes(data)
    return change


@functools.cache
def load_once() -> None:
    """Loads a predictor once for all commands of this process: loading is not what is tried."""
    load = functools.cache(options.load_predictor)
    options.load_predictor = load


def predict(source: Path, output: Path, *more: str) -> list[dict[str, Any]]:
    """The rows of `agenet predict --jsonl`; raises like `agenet`."""
    load_once()
    rows = output / "rows.jsonl"
    printed = agenet("predict", str(source), "--jsonl", str(rows), *more, code=1)
    if not printed.isascii() and not printed.replace("\n", "").isprintable():
        raise WrongError(f"prints control characters: {printed[:200]!r}")
    return [json.loads(line) for line in rows.read_text().splitlines()]


def use(folder: Path, output: Path) -> dict[str, Any]:
    from agenet.errors import UserError

    (row,) = predict(folder, output)
    if "error" in row:
        raise UserError(row["error"])
    return row


def is_plausible(face: dict[str, Any], width: float, height: float) -> bool:
    left, top, right, bottom = face["box"]
    inside = -width < left < right < 2 * width and -height < top < bottom < 2 * height
    return inside and 0 <= face["age"] <= 100 and 0.5 <= face["gender_probability"] <= 1


def compare(result: Any, right: Any, change: Change) -> str:
    if not all(is_plausible(face, result["width"], result["height"]) for face in result["faces"]):
        return f"impossible faces: {result['faces'][:2]}"
    if change.size == 0 and result["faces"] != right["faces"]:
        return f"{len(result['faces'])} other faces than in the same image"
    return ""


KINDS = {"images": Kind("images", make, mutate, use, compare, sample=120, seconds=20)}
