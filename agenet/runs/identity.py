"""Compares runs: whether a checkpoint has the settings, weights and data of a given run."""

import contextlib
import hashlib
import shlex
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agenet.data.records import Records, find_prepared
from agenet.data.splits import Splits
from agenet.errors import UserError, printable
from agenet.files import expand_home, hash_file, is_address
from agenet.labels import TASK_CLASSES
from agenet.places.weights import find_weights
from agenet.training.run_record import is_complete
from agenet.weights.bundled import DEFAULT, DEFAULT_FILE

# Fields that affect neither the results of a training nor their meaning.
_MAY_DIFFER = (
    "config.checkpoint_every",
    "config.dataset.data_dir",
    "config.dataset.prepare",
    "config.feature_cache",
    "config.feature_cache_bytes",
    "config.input.placement",
    "config.log_every",
    "config.test_views",
    "config.trackers",
)

_HASHES = {
    "dataset.fingerprint": "images, subjects or labels",
    "dataset.pictures": "some images",
}

# Fields of the config that runs of earlier versions lack, with the value that stands for what
# these versions did.
ADDED_FIELDS = {
    "accumulate": 1,
    "augment.cutmix": 0.0,
    "augment.erase": 0.0,
    "augment.erase_area": 0.33,
    "augment.mixup": 0.0,
    "augment.randaugment": 0,
    "augment.randaugment_magnitude": 9.0,
    "class_weights": "none",
    "dataset.sampling": "uniform",
    "distill.teacher": "",
    "distill.temperature": 2.0,
    "distill.weight": 0.5,
    "ema": 0.0,
    "label_smoothing": 0.0,
    "optimizer.clip_norm": 0.0,
    "optimizer.layer_decay": 1.0,
    "optimizer.weight_decay": 0.0,
    "patience": "",
    "schedule.final_scale": 0.0,
    "schedule.power": 1.0,
    "test_views": 1,
    "trackers": ["tensorboard"],
}


# Fields of earlier versions, with what to write in their place.
RENAMED_FIELDS = {"tensorboard": 'trackers, as in trackers=("tensorboard",) or trackers=()'}


def with_present_names(flat: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A flat config, as an earlier version recorded it, with the fields of this one."""
    renamed = dict(flat)
    if isinstance(on := renamed.pop(f"{prefix}tensorboard", None), bool):
        renamed.setdefault(f"{prefix}trackers", ["tensorboard"] if on else [])
    return renamed


def identify(
    config: Mapping[str, Any], records: Records, splits: Splits, tasks: Sequence[str]
) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed, JSON-serialisable."""
    return {
        "config": config,
        "dataset": identify_data(records),
        "splits": {name: zlib.crc32(rows) for name, rows in vars(splits).items()},
        "classes": {task: list(TASK_CLASSES[task]) for task in tasks},
    }


def identify_data(records: Records) -> dict[str, Any]:
    """The part of a run's identity that says what its data set contains."""
    return {
        "name": records.name,
        "fingerprint": records.fingerprint(),
        "pictures": records.checksum(),
    }


def digest_weights(init: str) -> str | None:
    """A digest of the weights that a config's `init` names, or of its teacher.

    For a run it is that of the record of its best state. None for weights that never change, such
    as published ones, and if there are none.
    """
    if is_address(init):
        try:
            path = find_weights(init)
        except UserError:  # As weights that exist no more.
            return None
    else:
        path = DEFAULT_FILE if init == DEFAULT else expand_home(init)
    if path.is_dir():
        records = path.glob("checkpoints/best/*/run/metadata")
        steps = {int(p.parts[-3]): p for p in records if p.parts[-3].isdecimal()}
        return _digest([steps[max(steps)]] if steps else [])
    return _digest([path] if path.is_file() else [])


def digest_data(name: str, data_dir: str) -> str | None:
    """A digest of a prepared data set, from TFDS's description of it; None if there is none."""
    with contextlib.suppress(UserError):
        return _digest([find_prepared(name, data_dir) / "dataset_info.json"])
    return None


def _digest(paths: Sequence[Path]) -> str | None:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(hash_file(path)))
    return digest.hexdigest()[:16] if paths else None


def check_same_weights(
    saved: Mapping[str, Any], init: str, workdir: Path, teacher: str = ""
) -> None:
    """Checks that a run's initial weights and teacher have not changed; they need not exist.

    Args:
        saved: what the run's checkpoint was saved with.
        init: names the weights.
        workdir: of the run.
        teacher: names the teacher, if there is one.

    Raises:
        UserError: they have changed.
    """
    for part, name, did in (("initial", init, "began with"), ("teacher", teacher, "learns from")):
        then = saved.get(part, {}).get("digest")
        now = digest_weights(name) if then else None
        if then and now and then != now:
            raise UserError(
                f"the run in {workdir} {did} other weights than those that are in {name} now: "
                "bring those back, or give another --workdir to start afresh"
            )


def check_same_run(saved: Mapping[str, Any], identity: Mapping[str, Any], workdir: Path) -> None:
    """Raises `UserError` naming every difference if a checkpoint is not of the run `identity`."""
    differences = []
    for difference in find_differences(comparable(saved, identity), identity):
        # Showing two hashes would not help.
        name = next((name for name in _HASHES if difference.startswith(f"{name}: ")), "")
        differences.append(f"{name}: {_HASHES[name]} have changed" if name else difference)
    if not differences:
        return
    advice = "give that run's settings and data, or another --workdir to start afresh"
    other_length = any(line.startswith("config.duration: ") for line in differences)
    if other_length and is_complete(saved):
        advice = (
            "it is finished, and its length stays as it is; to train on from its best state, give "
            f"--config.init={shlex.quote(str(workdir))} --config.new_parts= and another --workdir"
        )
    raise UserError(
        f"the checkpoint in {workdir} is of another run ({'; '.join(differences)}): {advice}"
    )


def comparable(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint's record that has the keys of `identity`.

    Earlier versions did not record a checksum of the images: these count as unchanged.
    """
    known = {name: saved[name] for name in identity}
    return known | {"dataset": {"pictures": identity["dataset"]["pictures"]} | known["dataset"]}


def find_differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], may_differ: Collection[str] = _MAY_DIFFER
) -> list[str]:
    """A line for each difference between two runs, except for fields that may differ."""
    old, new = (with_present_names(dict(_flatten(run)), "config.") for run in (saved, now))
    for name, value in ADDED_FIELDS.items():
        if f"config.{name}" in new:
            old.setdefault(f"config.{name}", value)
    return [
        printable(f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now", 500)
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in may_differ
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:  # JSON has no tuples.
            yield prefix + name, list(value) if isinstance(value, tuple) else value
