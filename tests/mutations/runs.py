"""Folders of runs: their JSON files, and the bytes of their checkpoints."""

import functools
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.random import Generator

from agenet.data.records import Records
from agenet.models import MODELS
from agenet.runs import launch
from agenet.runs.reporting import report_again
from agenet.training.finished_run import read_run_weights
from tests import tiny
from tests.conftest import TinyNet, noise_records
from tests.mutations.command import agenet, captured
from tests.mutations.damage import damage_bytes, damage_file, damage_json
from tests.mutations.kind import Change, Kind

# The uses of a run, which are the names of the bases, and the JSON files that are read for each.
FILES = {
    "evaluate": ("checkpoints/*/*/run/metadata", "metrics.jsonl"),
    "predict": ("checkpoints/*/*/run/metadata",),
    "report": ("report.json", "report.json", "metrics.jsonl"),
    "resume": ("checkpoints/*/*/run/metadata", "config.json", "metrics.jsonl"),
}
STOPPED = 9  # step at which the run to resume was stopped
OTHER = "other"  # the run that the damaged one is compared with


class WideNet(TinyNet):
    """So large that checkpoints keep arrays in files of their own, where nothing checks them."""

    width: int = 256


@functools.cache
def records() -> Records:
    return noise_records(120)


def use_records() -> None:
    tiny.use_records(records())
    MODELS["tiny"] = WideNet


def train(workdir: Path, stop_with: int | None = None) -> str:
    """Trains a tiny run in this process, or a part of it; returns what it says."""
    use_records()
    with pytest.MonkeyPatch.context() as patch, captured() as said:
        if stop_with is not None:
            stop = functools.partial(signal.raise_signal, signal.SIGTERM)
            tiny.on_batch(stop_with, stop, patch.setattr)
        config = tiny.tiny_config()
        MODELS["tiny"] = WideNet
        launch.launch(config, workdir, "command")
        return said()


def evaluate(workdir: Path) -> dict[str, Any]:
    use_records()
    with captured():
        report_again(workdir, None)
    return json.loads((workdir / "report.json").read_text())["evaluation"]["tasks"]


def make(folder: Path, bases: tuple[str, ...] = tuple(FILES)) -> None:
    whole = folder.parent / "whole"
    train(whole)
    if "report" in bases:
        evaluate(whole)
    for name in bases:
        workdir = folder / name / name
        if name == "resume":
            train(workdir, STOPPED)
        else:
            shutil.copytree(whole, workdir)
        if name == "report":
            shutil.copytree(whole, folder / name / OTHER)
    shutil.rmtree(whole)


def workdir_of(folder: Path) -> Path:
    return next(folder / name for name in FILES if (folder / name).exists())


def mutate_json(folder: Path, rng: Generator) -> Change:
    workdir = workdir_of(folder)
    patterns = FILES[workdir.name]
    found = sorted(workdir.glob(patterns[int(rng.integers(len(patterns)))]))
    path = found[int(rng.integers(len(found)))]
    text = path.read_text()
    chosen = rng.random()
    if chosen < 0.1:
        change = damage_file(path, rng, rename=False)
        return Change(f"{path.relative_to(workdir)}: {change.what}")
    if chosen < 0.3:
        data, change = damage_bytes(text.encode(), rng)
    elif path.suffix == ".jsonl":
        lines = text.splitlines()
        row = int(rng.integers(len(lines)))
        line, change = damage_json(lines[row], rng)
        data = b"\n".join([*map(str.encode, lines[:row]), line, *map(str.encode, lines[row + 1 :])])
        data += b"\n"
    else:
        data, change = damage_json(text, rng)
    path.write_bytes(data)
    return Change(f"{path.relative_to(workdir)}: {change.what}")


def mutate_bytes(folder: Path, rng: Generator) -> Change:
    workdir = workdir_of(folder)
    # Of the other checkpoint, and of what Orbax keeps for itself, hardly anything is read.
    used = {"predict": "best", "resume": "latest"}[workdir.name]
    found = sorted(path for path in (workdir / "checkpoints" / used).rglob("*") if path.is_file())
    path = found[int(rng.integers(len(found)))]
    if rng.random() < 0.6:  # where the arrays are
        path = max(found, key=lambda each: each.stat().st_size)
    if rng.random() < 0.1:
        change = damage_file(path, rng, rename=False)
    else:
        data, change = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    return Change(f"{path.relative_to(workdir)}: {change.what}")


def use(folder: Path, output: Path) -> dict[str, Any]:
    source = workdir_of(folder)
    if source.name == "predict":
        use_records()  # registers the network
        weights = read_run_weights(source)
        tensors = {name: value.tobytes() for name, value in weights.tensors.items()}
        return tensors | {"spec": weights.spec.to_json()}
    run = output / "run"
    shutil.copytree(source, run, symlinks=True, copy_function=_copy)
    if source.name == "evaluate":
        return evaluate(run)
    if source.name == "report":
        other, pages = f"other={folder / OTHER}", f"--out={output / 'page'}"
        agenet("report", f"damaged={run}", other, pages, "--no-faces")
        return {}
    said = train(run)
    return tiny.result(run) | {"said": said}


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():  # Not a pipe.
        shutil.copy2(source, target)


def compare(result: Any, right: Any, change: Change) -> str:
    """All must be as in the undamaged run; rows that are lost must be spoken of."""
    differs = [name for name in right if name != "said" and result.get(name) != right[name]]
    if differs == ["rows"] and "metrics.jsonl" in result["said"]:
        return ""
    if differs == ["rows"]:
        lost = len(right["rows"]) - len(result["rows"])
        return f"rows of metrics.jsonl are lost ({lost}) or others, without a word"
    return f"{len(differs)} of {len(right)} values differ: {differs[:3]}" if differs else ""


def _kind(name: str, bases: tuple[str, ...], mutate: Callable[..., Change], sample: int) -> Kind:
    return Kind(name, functools.partial(make, bases=bases), mutate, use, compare, sample)


KINDS = {
    "runs": _kind("runs", tuple(FILES), mutate_json, 10),
    "runs.checkpoints": _kind("runs.checkpoints", ("predict", "resume"), mutate_bytes, 30),
}
