"""Files of a run as they are read to be compared: checked, not trusted."""

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy

from agenet.errors import UserError
from agenet.labels import RACES, TASK_CLASSES

MAX_TEXT = 10_000  # letters of one text in a report
MAX_NUMBER = 1e15
# Bytes of a file, or of an array in it.
MAX_JSON, MAX_HISTORY, MAX_ARRAYS = 16 << 20, 64 << 20, 512 << 20
# What zipfile and NumPy raise for what is no archive of arrays; RuntimeError: it is encrypted.
BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, RuntimeError)


class _Share(float):
    """Stands for a number from 0 to 1."""


class _Optional:
    """Stands for a thing or null."""

    def __init__(self, kind: Any):
        self.kind = kind


_NAMES = {"age": TASK_CLASSES["age"], "gender": TASK_CLASSES["gender"], "race": RACES}
_INTERVAL = _Optional([float])
_SHARE, _FLOAT = _Optional(_Share), _Optional(float)
_GROUP = {"name": str, "count": int, "accuracy": _SHARE, "intervals?": {"accuracy?": _INTERVAL}}
_FIGURES = {
    "loss": _FLOAT,
    "accuracy": _SHARE,
    "balanced_accuracy": _SHARE,
    "one_off?": _SHARE,
    "range_accuracy?": _SHARE,
    "roc_auc?": _SHARE,
    "calibration_error?": _SHARE,
    "mae?": _FLOAT,
    "cs5?": _SHARE,
}
_TASK = {
    **_FIGURES,
    "count": int,
    "subjects?": int,
    "exact_ages?": int,
    "recall": [_SHARE],
    "support": [int],
    "confusion": [[int]],
    "reliability?": {"count": [int], "confidence": [_SHARE], "accuracy": [_SHARE]},
    "intervals?": {f"{name.removesuffix('?')}?": _INTERVAL for name in _FIGURES},
    "subgroups?": {f"{name}?": [_GROUP] for name in _NAMES},
}
# What a report must have, with "?" what versions of agenet lack, and the type of each thing.
REPORT = {
    "command?": str,
    "config": {"duration": str},
    "dataset": {
        "name": str,
        "notice": str,
        "labels": str,
        "protocol": str,
        "test_fold": int,
        "leakage": {"test_faces": int, "seen_subject": int},
    },
    "model": {"name": str, "flavour?": str, "initial?": str, "parameters": int, "trained?": int},
    "initial?": {"data?": [str]},
    "machine?": {"devices?": str, "processor?": str},
    "training": {
        "seconds": float,
        "epochs_found?": int,
        "steps": int,
        "total_steps?": int,
        "complete?": bool,
        "epochs": float,
        "pictures_per_second": float,
        "best_step": int,
    },
    "evaluation": {
        "step": int,
        "views?": int,
        "seconds": float,
        "tasks": {f"{task}?": _TASK for task in TASK_CLASSES},
    },
}


def check_task(task: str, metrics: dict[str, Any]) -> dict[str, Any]:
    classes = len(TASK_CLASSES[task])
    confusion = metrics["confusion"]
    sizes = {len(metrics["recall"]), len(metrics["support"]), len(confusion), *map(len, confusion)}
    if sizes != {classes}:
        raise ValueError(f"{task}: not {classes} classes")
    supports = [sum(row) for row in confusion]
    if supports != metrics["support"] or sum(supports) != metrics["count"]:
        raise ValueError(f"{task}: the confusion matrix does not fit the number of faces")
    if metrics["count"] and metrics["accuracy"] is None:
        raise ValueError(f"{task}: no accuracy")
    reliability = metrics.get("reliability")
    if reliability is not None:
        lengths = {len(reliability[name]) for name in ("count", "confidence", "accuracy")}
        if len(lengths) != 1 or not 0 < lengths.pop() <= 1000:
            raise ValueError(f"{task}: reliability has parts of several lengths")
        for name in ("confidence", "accuracy"):
            pairs = zip(reliability["count"], reliability[name], strict=True)
            if any(count and value is None for count, value in pairs):
                raise ValueError(f"{task}: reliability lacks figures")
    intervals = [metrics.get("intervals", {})]
    for division, groups in metrics.get("subgroups", {}).items():
        if division in _NAMES and not {g["name"] for g in groups} <= set(_NAMES[division]):
            raise ValueError(f"{task}: a group of {division} that there is none of")
        if any(group["accuracy"] is None for group in groups):
            raise ValueError(f"{task}: a subgroup without accuracy")
        intervals += [group.get("intervals", {}) for group in groups]
    for ends in (ends for found in intervals for ends in found.values()):
        if isinstance(ends, list) and (len(ends) != 2 or ends[0] > ends[1]):
            raise ValueError(f"{task}: an interval that is none")
    return metrics


def check(value: Any, kind: Any, where: str) -> None:
    """Raises `ValueError` unless a value of JSON is of a kind, which is written as in `REPORT`."""
    if isinstance(kind, _Optional):
        if value is not None:
            check(value, kind.kind, where)
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        for key, inner in kind.items():
            name = key.removesuffix("?")
            if name in value:
                check(value[name], inner, f"{where}.{name}")
            elif name == key:
                raise ValueError(f"{where}.{name} is missing")
    elif isinstance(kind, list):
        if not isinstance(value, list) or len(value) > 1000:
            raise ValueError(f"{where} is no list")
        for item in value:
            check(item, kind[0], where)
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{where} is neither true nor false")
    elif kind is str:
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise ValueError(f"{where} is no text")
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (isinstance(value, float) and math.isfinite(value) and kind is not int)):
            raise ValueError(f"{where} is no {'whole ' if kind is int else ''}number")
        low, high = (0, 1) if kind is _Share else (0, MAX_NUMBER)
        if not low <= value <= high:
            raise ValueError(f"{where} is out of range")


def read_history(path: Path) -> list[dict[str, float]]:
    """Numbers of the rows that have step and epoch; none if there is no file."""
    if not path.exists():
        return []
    lines = _read_text(path, MAX_HISTORY).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = _parse(line)
        except ValueError as error:
            if number == len(lines):  # Killed while writing.
                break
            raise damaged(path, f"line {number} is no JSON") from error
        if not isinstance(row, dict):
            raise damaged(path, f"line {number} is no object")
        kept = {k: v for k, v in row.items() if type(v) in (int, float) and abs(v) < MAX_NUMBER}
        if "step" in kept and "epoch" in kept:
            rows.append(kept)
    return rows


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of numbers; nothing is unpickled and no size is believed before it is checked."""
    if archive.getinfo(name).file_size > MAX_ARRAYS:
        raise ValueError(f"{name} is too large")
    with archive.open(name) as file:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} is of another version of its format")
        shape, fortran, dtype = npy.read_array_header_1_0(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "iuf" or fortran or not 0 <= size <= MAX_ARRAYS:
            raise ValueError(f"{name} is no plain array")
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{name} is cut off")
    return np.frombuffer(content, dtype).reshape(shape)


def read_json(path: Path) -> Any:
    try:
        return _parse(_read_text(path, MAX_JSON))
    except ValueError as error:
        raise damaged(path, "it is no JSON") from error


def _parse(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _read_text(path: Path, limit: int) -> str:
    if not path.is_file() or path.stat().st_size > limit:
        raise damaged(path, "it is no file, or too large")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, "it is no text") from error


def damaged(path: Path, why: str) -> UserError:
    # What was read may hold anything, and the message is to be one line.
    why = "".join(c if c.isprintable() else " " for c in why)[:200]
    again = f"agenet evaluate --workdir={path.parent}"
    return UserError(f"{path} is damaged: {why}; {again} writes it anew")
