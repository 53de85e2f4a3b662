"""Measures differences between the results of two frameworks, and those that rounding causes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

Tensors = dict[str, np.ndarray]
Parts = Mapping[str, Mapping[str, Any]]

# Differences of leaves with values below this fraction of the largest leaf's are relative to that
# fraction: some gradients are zero up to floating-point error.
FLOOR = 1e-2


def differences(folder: Path, parts: Parts, initial: Path) -> list[dict[str, Any]]:
    """Differences between the files of one network and optimiser, as rows of a table.

    Each row has the frameworks `a` and `b`, their `dtype`, and a `kind`: "exact" (a framework and
    PyTorch in float64), "pair" (two frameworks) or "rounding" (a framework with and without its
    images changed in their last bit). See `compare` for the figures.
    """
    begun = safetensors.numpy.load_file(initial)
    opened: dict[str, Tensors] = {}
    done = {
        (part["framework"], part["dtype"], part["perturbed"]): part
        for part in parts.values()
        if "error" not in part and (folder / part["file"]).is_file()
    }

    def row(kind: str, a: Any, b: Any) -> dict[str, Any]:
        for part in (a, b):
            name = part["file"]
            if name not in opened:
                opened[name] = safetensors.numpy.load_file(folder / name)
        figures = compare(opened[a["file"]], opened[b["file"]], begun, a, b)
        about = {"kind": kind, "a": a["framework"], "b": b["framework"], "dtype": a["dtype"]}
        return about | figures

    rows = []
    exact = done.get(("torch", "float64", False))
    plain = [
        part for (_, dtype, perturbed), part in done.items() if not perturbed and dtype != "float64"
    ]
    for part in plain:
        if exact:
            rows.append(row("exact", part, exact))
        moved = done.get((part["framework"], part["dtype"], True))
        if moved:
            rows.append(row("rounding", moved, part))
    for number, a in enumerate(plain):
        rows += [row("pair", a, b) for b in plain[number + 1 :] if a["dtype"] == b["dtype"]]
    return rows


def compare(
    a: Tensors, b: Tensors, initial: Tensors, a_part: Mapping[str, Any], b_part: Mapping[str, Any]
) -> dict[str, Any]:
    """Relative differences of `a` from `b`.

    For logits max |a - b| / max |b|; for gradients and parameters its largest value over all
    leaves, and `norm`, ||a - b|| / ||b||; `way` is ||a - b|| of the parameters over the distance
    that b's have moved since the start.
    """
    result: dict[str, Any] = {
        "logits": _largest({"": a["logits"]}, {"": b["logits"]}),
        "loss": abs(a_part["loss"] - b_part["loss"]) / abs(b_part["loss"]),
        "gradients": _both(_under(a, "gradients:"), _under(b, "gradients:")),
        "steps": {},
    }
    for step in b_part["steps"]:
        ours, theirs = (_under(tensors, f"{step}:params/") for tensors in (a, b))
        start = _under(initial, "params/")
        way = {name: value - start[name] for name, value in theirs.items()}
        difference = {name: value - theirs[name] for name, value in ours.items()}
        found = _both(ours, theirs)
        found["way"] = _length(difference) / max(_length(way), 1e-30)
        statistics = [_under(tensors, f"{step}:batch_stats/") for tensors in (a, b)]
        if statistics[0]:
            found["statistics"] = _largest(*statistics)
        result["steps"][str(step)] = found
    return _plain(result)


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {
        name.removeprefix(prefix): value.astype(np.float64)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _both(a: Tensors, b: Tensors) -> dict[str, float]:
    difference = {name: value - b[name] for name, value in a.items()}
    return {"largest": _largest(a, b), "norm": _length(difference) / max(_length(b), 1e-30)}


def _largest(a: Tensors, b: Tensors) -> float:
    assert a.keys() == b.keys()
    tops = {name: float(np.abs(value).max()) for name, value in b.items()}
    floor = max(FLOOR * max(tops.values()), 1e-30)
    return max(float(np.abs(a[n] - b[n]).max()) / max(top, floor) for n, top in tops.items())


def _length(tensors: Tensors) -> float:
    return float(np.sqrt(sum(float(np.square(value).sum()) for value in tensors.values())))


def _plain(value: Any) -> Any:
    """Converts to JSON's types; a value that is not finite becomes a large number."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return float(np.nan_to_num(value, nan=1e9, posinf=1e9))
