"""Releases of Adience, FairFace and IMDb-Wiki: lists, tables and archives, through `prepare`."""

import io
import shutil
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.random import Generator

from agenet.data.records import open_records
from data_prep.fairface import release as fairface
from tests.data_prep import test_adience, test_fairface, test_imdb_wiki
from tests.mutations.command import agenet
from tests.mutations.damage import NAMES, damage_bytes, damage_file, damage_lines
from tests.mutations.kind import Change, Kind

# The name of each base and the prepared set that comes of it.
PREPARED = {
    "adience": "adience/faces",
    "fairface": "fairface/margin025",
    "partial": "fairface/partial",
    "wiki": "imdb_wiki/wiki",
}
ARCHIVES = (".zip", ".tar", ".gz")


def make(folder: Path) -> None:
    """An archive and a folder of each release; the images are noise of 32 px."""
    for name in ("adience.archive", "fairface.archive", "partial.folder", "wiki.archive"):
        (folder / name).mkdir()
    test_adience.write_release(folder / "adience.archive", size=16)
    test_fairface.write_release(folder / "partial.folder")
    with zipfile.ZipFile(
        folder / "fairface.archive/fairface-img-margin025-trainval.zip", "w"
    ) as archive:
        for path in sorted((folder / "partial.folder").rglob("*.jpg")):
            archive.write(path, path.relative_to(folder / "partial.folder"))
    for path in (folder / "partial.folder").glob("*.csv"):
        shutil.copy(path, folder / "fairface.archive")
    test_imdb_wiki.write_release(folder / "wiki.archive", count=40)
    shutil.copytree(folder / "wiki.archive", folder / "wiki.folder")
    test_imdb_wiki.pack(folder / "wiki.archive")
    shutil.copy(folder / "wiki.folder/wiki_crop/wiki.mat", folder / "wiki.archive")


def read_archive(path: Path) -> list[tuple[str, bytes]]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [(name, archive.read(name)) for name in archive.namelist()]
    with tarfile.open(path) as tar:
        return [(m.name, f.read()) for m in tar if (f := tar.extractfile(m))]


def write_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str) -> None:
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members:
                archive.writestr(member.name, data)
        return
    with tarfile.open(path, f"w:{mode}", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def damage_archive(path: Path, rng: Generator) -> Change:
    """Writes an archive again with members that are named, nested or linked otherwise."""
    files = read_archive(path)
    chosen = int(rng.integers(len(files)))
    name, data = files[chosen]
    members = [(tarfile.TarInfo(each), content) for each, content in files]
    mode = {".zip": "zip", ".tar": "", ".gz": "gz"}[path.suffix]
    size = 0 if chosen else 1
    action = str(
        rng.choice(
            ["nested", "no top", "outside", "absolute", "name", "link", "hard link", "device"]
            + ["twice", "other twice", "extra", "order", "compressed", "in itself", "empty", "dot"]
        )
    )
    match action:
        case "nested":
            for member, _ in members:
                member.name = f"download/{member.name}"
        case "no top":
            for member, _ in members:
                member.name = member.name.partition("/")[2]
        case "dot":
            for member, _ in members:
                member.name = f"./{member.name}"
        case "outside":
            members[chosen][0].name = "../../outside/" + Path(name).name
        case "absolute":
            members[chosen][0].name = "/tmp/outside.jpg"
        case "name":
            members[chosen][0].name = f"{Path(name).parent}/{rng.choice(NAMES)}"
        case "link" | "hard link" | "device":
            kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}
            members[chosen][0].type = kinds.get(action, tarfile.CHRTYPE)
            members[chosen][0].linkname = str(rng.choice(["/etc/passwd", "../../home", name]))
        case "twice" | "other twice":
            again = data if action == "twice" else files[chosen - 1][1]
            members.append((tarfile.TarInfo(name), again))
        case "extra":
            members.insert(chosen, (tarfile.TarInfo(f"{Path(name).parent}/Thumbs.db"), b"x"))
        case "order":
            members = [members[i] for i in rng.permutation(len(members))]
        case "compressed":
            mode = str(rng.choice(["", "gz", "xz", "bz2"]))
        case "in itself":
            members = [(tarfile.TarInfo(path.name), path.read_bytes())]
        case "empty":
            members = []
    write_archive(path, members, mode)
    harmless = action in ("extra", "order", "twice", "dot", "nested", "no top")
    return Change(f"{path.name}: {action}, {name}", 0 if harmless else size)


def damage_mat(path: Path, rng: Generator) -> Change:
    """Writes wiki.mat again with another value, type or shape in a column."""
    rows = 40
    table = test_imdb_wiki.columns(rows)
    column = str(rng.choice(list(table)))
    values = [np.nan, np.inf, -1, 1e300, "text", "../../etc/passwd", "\x1b[2J", [], None]
    value = values[int(rng.integers(len(values)))]
    action = rng.choice(["value", "type", "lost", "short", "shape", "cells", "uncompressed"])
    row = int(rng.integers(rows))
    match action:
        case "value":
            table[column] = np.array(table[column], object)
            table[column][row] = value if value is not None else np.array([])
        case "type":
            table[column] = np.arange(rows) if column in ("name", "full_path") else ["x"] * rows
        case "lost":
            del table[column]
        case "short":
            table[column] = table[column][:-1]
        case "shape":
            table[column] = np.array(table[column]).reshape(2, -1)
        case "cells":
            table[column] = np.array([[each] for each in table[column]], object)
    scipy.io.savemat(path, {"wiki": table}, do_compression=action != "uncompressed", oned_as="row")
    return Change(
        f"wiki.mat: {action} of {column}, {value!r}", 0 if action == "uncompressed" else 4
    )


def mutate(folder: Path, rng: Generator) -> Change:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    special = [path for path in files if path.suffix != ".jpg"]
    path = special[int(rng.integers(len(special)))]
    match rng.choice(["bytes"] * 3 + ["structure"] * 5 + ["file", "image"]):
        case "file":
            change = damage_file(path, rng)
            # A part of FairFace may be any part, such as one table and its images.
            return replace(change, size=1000) if (folder / "val").is_dir() else change
        case "image" if images := [path for path in files if path.suffix == ".jpg"]:
            return damage_file(images[int(rng.integers(len(images)))], rng, rename=False)
        case "structure":
            if path.suffix in ARCHIVES:
                return damage_archive(path, rng)
            if path.suffix == ".mat":
                return damage_mat(path, rng)
            data, change = damage_lines(path.read_bytes(), "\t,"[path.suffix == ".csv"], rng)
        case _:
            data, change = damage_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return Change(f"{path.name}: {change.what}", change.size)


def use(folder: Path, output: Path) -> Any:
    """What was prepared: how often each row, with its labels and its image, is there."""
    fairface.RELEASED = test_fairface.COUNTS
    kind = next(base for base in PREPARED if _is_release(folder, base))
    name, config = PREPARED[kind].split("/")
    data = output / "data"
    try:
        options = [f"--manual_dir={folder}", f"--data_dir={data}", f"--config={config}"]
        agenet("prepare", name, *options)
    except Exception:
        left = [str(path.relative_to(output)) for path in output.rglob("*")]
        assert not left, f"leaves {left[:3]} behind"
        raise
    return rows_of(PREPARED[kind], data)


def _is_release(folder: Path, base: str) -> bool:
    """Which data set a folder is meant to be, whatever is missing in it."""
    names = " ".join(path.name for path in folder.iterdir())
    if base == "fairface":
        return "fairface-img" in names
    signs = {"adience": "fold_", "partial": "fairface", "wiki": "wiki"}
    return signs[base] in names


def rows_of(name: str, data_dir: Path) -> Counter[tuple[Any, ...]]:
    records = open_records(name, str(data_dir))
    columns = [records.fold, records.subject_id, records.age_low, records.age_high]
    columns += [records.labels["age"], records.labels["gender"]]
    columns += [] if records.race is None else [records.race]
    labels = np.stack([np.asarray(column, np.int64) for column in columns], 1).tolist()
    return Counter(zip(map(tuple, labels), records.images, strict=True))


def compare(result: Any, right: Any, change: Change) -> str:
    """Rows may differ that were changed; an image of FairFace in part may be missing."""
    lost, new = (right - result).total(), (result - right).total()
    if max(lost, new) <= change.size:
        return ""
    return f"{lost} rows of {right.total()} are gone, {new} others are there instead"


KINDS = {"releases": Kind("releases", make, mutate, use, compare, sample=100)}
