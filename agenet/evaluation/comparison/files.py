"""Reads the files of a run and checks them: they may be damaged, or come from a stranger."""

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy

from agenet.errors import UserError, printable
from agenet.evaluation.metrics import SUBGROUPS
from agenet.labels import TASK_CLASSES

MAX_TEXT = 10_000  # letters of one text in a report
MAX_NUMBER = 1e15
# Bytes of a file, or of an array in it.
MAX_JSON, MAX_ARRAYS = 16 << 20, 512 << 20
# Errors of zipfile and NumPy for a damaged archive; RuntimeError: it is encrypted.
BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, RuntimeError)


class _Share(float):
    """The kind of a number from 0 to 1."""


@dataclass(frozen=True)
class _Optional:
    """The kind of something that may be null."""

    kind: Any


_INTERVAL = _Optional([float])
_SHARE, _FLOAT = _Optional(_Share), _Optional(float)
_GROUP = {"name": str, "count": int, "accuracy": _SHARE, "intervals?": {"accuracy?": _INTERVAL}}
_METRICS = {
    **dict.fromkeys(("loss", "mae?"), _FLOAT),
    **dict.fromkeys(("accuracy", "balanced_accuracy", "one_off?", "range_accuracy?"), _SHARE),
    **dict.fromkeys(("roc_auc?", "calibration_error?", "cs5?"), _SHARE),
}
_TASK = {
    **_METRICS,
    **dict.fromkeys(("count", "subjects?", "exact_ages?"), int),
    "recall": [_SHARE],
    "support": [int],
    "confusion": [[int]],
    "reliability?": {"count": [int], "confidence": [_SHARE], "accuracy": [_SHARE]},
    "intervals?": {f"{name.removesuffix('?')}?": _INTERVAL for name in _METRICS},
    "subgroups?": {f"{name}?": [_GROUP] for name in SUBGROUPS},
}
# The fields of a report and their kinds; reports of earlier versions lack those with "?".
REPORT = {
    "command?": str,
    "config": {"duration": str},
    "dataset": {
        **dict.fromkeys(("name", "notice", "labels", "protocol"), str),
        "test_fold": int,
        "leakage": {"test_faces": int, "seen_subject": int},
    },
    "model": {"name": str, "flavour?": str, "initial?": str, "parameters": int, "trained?": int},
    "initial?": {"data?": [str]},
    "machine?": {"devices?": str, "processor?": str},
    "training": {
        **dict.fromkeys(("seconds", "epochs", "pictures_per_second"), float),
        **dict.fromkeys(("steps", "best_step", "epochs_found?", "total_steps?"), int),
        "complete?": bool,
    },
    "evaluation": {
        "step": int,
        "views?": int,
        "seconds": float,
        "tasks": {f"{task}?": _TASK for task in TASK_CLASSES},
    },
}


def check_task(task: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns metrics whose parts fit each other, and raises `ValueError` for others."""

    def require(fits: bool, problem: str) -> None:
        if not fits:
            raise ValueError(f"{task}: {problem}")

    classes, confusion = len(TASK_CLASSES[task]), metrics["confusion"]
    sizes = {len(metrics["recall"]), len(metrics["support"]), len(confusion), *map(len, confusion)}
    require(sizes == {classes}, f"not {classes} classes")
    supports = [sum(row) for row in confusion]
    require(
        supports == metrics["support"] and sum(supports) == metrics["count"],
        "the confusion matrix does not fit the number of faces",
    )
    require(not metrics["count"] or metrics["accuracy"] is not None, "no accuracy")
    require("mae" not in metrics or "exact_ages" in metrics, "no number of exact ages")
    if reliability := metrics.get("reliability"):
        bins = [reliability[name] for name in ("count", "confidence", "accuracy")]
        lengths = {*map(len, bins)}
        require(len(lengths) == 1 and len(bins[0]) > 0, "reliability has parts of several lengths")
        lacking = any(count and None in values for count, *values in zip(*bins, strict=True))
        require(not lacking, "reliability lacks values")
    intervals = [metrics.get("intervals", {})]
    for division, groups in metrics.get("subgroups", {}).items():
        names = {group["name"] for group in groups}
        known = names <= {*SUBGROUPS.get(division, names)}
        require(known, f"an unknown group of {division}")
        require(all(g["accuracy"] is not None for g in groups), "a subgroup without accuracy")
        intervals += [group.get("intervals", {}) for group in groups]
    for ends in (ends for found in intervals for ends in found.values() if isinstance(ends, list)):
        require(len(ends) == 2 and ends[0] <= ends[1], "not an interval")
    return metrics


def check(value: Any, kind: Any, where: str) -> None:
    """Raises `ValueError` unless a value of JSON has a kind, which is written as in `REPORT`."""
    if isinstance(kind, _Optional):
        if value is not None:
            check(value, kind.kind, where)
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        for key, inner in kind.items():
            name = key.removesuffix("?")
            if name in value:
                check(value[name], inner, f"{where}.{name}")
            elif name == key:
                raise ValueError(f"{where}.{name} is missing")
    elif isinstance(kind, list):
        if not isinstance(value, list) or len(value) > 1000:
            raise ValueError(f"{where} is not a list")
        for item in value:
            check(item, kind[0], where)
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{where} is neither true nor false")
    elif kind is str:
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise ValueError(f"{where} is not text")
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (isinstance(value, float) and math.isfinite(value) and kind is not int)):
            raise ValueError(f"{where} is not a {'whole ' if kind is int else ''}number")
        low, high = (0, 1) if kind is _Share else (0, MAX_NUMBER)
        if not low <= value <= high:
            raise ValueError(f"{where} is out of range")


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads an array of numbers; nothing is unpickled, and sizes are checked before reading."""
    if archive.getinfo(name).file_size > MAX_ARRAYS:
        raise ValueError(f"{name} is too large")
    with archive.open(name) as file:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} is of another version of its format")
        shape, fortran, dtype = npy.read_array_header_1_0(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "iuf" or fortran or not 0 <= size <= MAX_ARRAYS:
            raise ValueError(f"{name} is not a plain array")
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{name} is cut off")
    return np.frombuffer(content, dtype).reshape(shape)


def read_report(path: Path) -> dict[str, Any]:
    """The content of a report.json, which has at least the fields of `REPORT`.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    report: dict[str, Any] = read_json(path)
    try:
        check(report, REPORT, "report")
        tasks = report["evaluation"]["tasks"]
        report["evaluation"]["tasks"] = {
            task: check_task(task, tasks[task]) for task in TASK_CLASSES if task in tasks
        }
    except (ValueError, KeyError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    return report


def read_json(path: Path) -> Any:
    try:
        return _parse(_read_text(path, MAX_JSON))
    except ValueError as error:
        raise damaged(path, "it is not JSON") from error


def _parse(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _read_text(path: Path, limit: int) -> str:
    if not path.is_file() or path.stat().st_size > limit:
        raise damaged(path, "it is not a file, or too large")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not text") from error


def damaged(path: Path, why: str) -> UserError:
    """The error for a file; `why` may contain parts of it."""
    again = f"agenet evaluate --workdir={path.parent}"
    return UserError(f"{path} is damaged: {printable(why, 200)}; {again} writes it again")
