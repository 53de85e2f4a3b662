"""Prepared data sets: the records and what TFDS wrote about them, as training opens them."""

from pathlib import Path
from typing import Any

from numpy.random import Generator

from tests.data_prep import test_adience
from tests.mutations.command import agenet
from tests.mutations.damage import damage_bytes, damage_file, damage_json
from tests.mutations.kind import Change, Kind
from tests.mutations.releases import rows_of

NAME = "adience/faces"


def make(folder: Path) -> None:
    release = folder.parent / "release"
    release.mkdir()
    test_adience.write_release(release, size=16, per_fold=4)
    options = [f"--manual_dir={release}", f"--data_dir={folder / 'adience'}"]
    agenet("prepare", "adience", *options)


def mutate(folder: Path, rng: Generator) -> Change:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    infos = [path for path in files if path.suffix == ".json"]
    chosen = infos if rng.random() < 0.6 else files
    path = chosen[int(rng.integers(len(chosen)))]
    text = path.read_bytes()
    action = rng.choice(["json", "json", "class", "bytes", "file"])
    if action == "class" and b"python_class_name" in text and b"." in text:
        old = rng.choice(
            ["tensorflow_datasets.core.features.scalar.Scalar"]
            + ["tensorflow_datasets.core.features.features_dict.FeaturesDict"]
            + ["tensorflow_datasets.core.features.text_feature.Text"]
            + ["tensorflow_datasets.core.features.image_feature.Image"]
        )
        new = rng.choice(["tests.mutations.canary.Feature", "os.system", "builtins.eval"])
        path.write_bytes(text.replace(str(old).encode(), str(new).encode(), 1))
        return Change(f"{path.name}: {new} in place of {old}")
    if action == "json" and path.suffix == ".json":
        data, change = damage_json(text.decode(), rng)
    elif action == "file":
        return damage_file(path, rng)
    else:
        data, change = damage_bytes(text, rng)
    path.write_bytes(data)
    return Change(f"{path.name}: {change.what}", change.size)


def use(folder: Path, output: Path) -> Any:
    return rows_of(NAME, folder)


def compare(result: Any, right: Any, change: Change) -> str:
    lost, new = (right - result).total(), (result - right).total()
    return f"{lost} rows are gone, {new} others are there instead" if lost or new else ""


KINDS = {"prepared": Kind("prepared", make, mutate, use, compare)}
