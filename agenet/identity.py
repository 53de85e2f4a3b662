"""Which settings and data make two runs the same."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from agenet.errors import UserError

# These change neither the numbers of a training nor what they mean.
_MAY_DIFFER = (
    "config.checkpoint_every",
    "config.dataset.data_dir",
    "config.dataset.prepare",
    "config.feature_cache",
    "config.feature_cache_bytes",
    "config.input.placement",
    "config.log_every",
    "config.tensorboard",
    "config.test_views",
)

# Fields of the config that runs of earlier versions lack, with what they did then.
ADDED_FIELDS = {
    "accumulate": 1,
    "augment.mixup": 0.0,
    "class_weights": "none",
    "ema": 0.0,
    "label_smoothing": 0.0,
    "optimizer.clip_norm": 0.0,
    "optimizer.weight_decay": 0.0,
    "patience": "",
    "test_views": 1,
}


def check_same_run(saved: Mapping[str, Any], identity: Mapping[str, Any], workdir: Path) -> None:
    """Raises `UserError` naming every difference if a checkpoint is not of the run `identity`."""
    changed = "dataset.fingerprint: "
    differences = [
        # Two hashes would tell nobody what happened.
        f"{changed}pictures, persons or labels are not those of then"
        if difference.startswith(changed)
        else difference
        for difference in find_differences({name: saved[name] for name in identity}, identity)
    ]
    if differences:
        raise UserError(
            f"the checkpoint in {workdir} is of another run ({'; '.join(differences)}): "
            "give that run's settings and data, or another --workdir to start afresh"
        )


def find_differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], may_differ: Collection[str] = _MAY_DIFFER
) -> list[str]:
    """Where two runs differ in what matters, by default to their numbers, a line for each."""
    old, new = dict(_flatten(saved)), dict(_flatten(now))
    for name, value in ADDED_FIELDS.items():
        if f"config.{name}" in new:
            old.setdefault(f"config.{name}", value)
    return [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in may_differ
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:  # JSON knows no tuples.
            yield prefix + name, list(value) if isinstance(value, tuple) else value
