"""Opens the teacher of a knowledge distillation: a network, or a file of its predictions.

The file is an .npz archive with

    index               rows of the data set, int [M], each once
    <task>_log_probs    log-probabilities, float [M, C], for one task or both
    years_log_probs     of 0 to 100 years, float [M, 101]; may be missing
    dataset             a number that identifies the data set, uint64 [1], see `fingerprint`
    teacher             the specification of its weights, as JSON in UTF-8, uint8 [L]; may be
                        missing, then nothing is known about the subjects that it was trained on

It is written by `agenet.runs.teacher_file`. Rows without predictions learn from labels alone.
"""

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agenet.data.augment import normalize
from agenet.data.config import InputConfig
from agenet.data.records import Records
from agenet.data.splits import Splits
from agenet.distributed.mesh import place, replicated
from agenet.errors import UserError, printable
from agenet.evaluation.comparison.files import BAD_ARCHIVE, MAX_ARRAYS, read_array
from agenet.files import expand_home, is_address
from agenet.inference.network import load_network
from agenet.labels import TASK_CLASSES
from agenet.places.fetching import fetch
from agenet.places.weights import find_weights
from agenet.runs.lineage import check_not_seen, has_same_holdout
from agenet.training.distillation import KNOWN, Teacher
from agenet.training.finished_run import open_finished
from agenet.training.losses import YEARS
from agenet.weights.spec import WeightsSpec

log = logging.getLogger(__name__)

_WHERE = "distill.teacher"
_SCRIPT = "python scripts/write_teacher_predictions.py"


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher and the subjects in its training data, see `agenet.runs.lineage`."""

    teacher: Teacher
    trained_on: Mapping[str, str]


def is_file_of_predictions(teacher: str) -> bool:
    """Whether a config's `distill.teacher` names a file of predictions, not a network."""
    return teacher.lower().endswith(".npz")


def open_teacher(
    name: str,
    *,
    records: Records,
    splits: Splits,
    identity: Mapping[str, Any],
    tasks: Sequence[str],
    images: InputConfig,
    mesh: Mesh,
) -> FoundTeacher:
    """Opens the teacher `name` and places it on the devices; logs what it teaches.

    Args:
        name: the config's `distill.teacher`.
        records: the data set.
        splits: of it.
        identity: of the run that learns, see `agenet.runs.identity`.
        tasks: that it learns.
        images: the normalisation of its images.
        mesh: its devices.

    Raises:
        UserError: there is no such teacher, it predicts none of the tasks, its predictions are of
            another data set, or it was trained on subjects that the run validates or tests on.
    """
    if is_file_of_predictions(name):
        path = fetch(name) if is_address(name) else expand_home(name)
        found = _open_file(path, records, splits, tasks, mesh)
    else:
        found = _open_network(name, records, splits, identity, tasks, images, mesh)
    return found


def fingerprint(records: Records) -> np.ndarray:
    """Identifies the labels and images of a data set: uint64 [1]."""
    return np.array([int(records.fingerprint(), 16)], np.uint64)


def _open_network(
    name: str,
    records: Records,
    splits: Splits,
    identity: Mapping[str, Any],
    tasks: Sequence[str],
    images: InputConfig,
    mesh: Mesh,
) -> FoundTeacher:
    try:
        path = find_weights(name)
        run = open_finished(path).record if path.is_dir() else None
        network = load_network(name)
    except UserError as error:
        raise UserError(f"{_WHERE}: {str(error).removeprefix('init: ')}") from error
    spec = network.spec
    taught = _check_tasks(name, spec.heads, tasks)
    if run is None or not has_same_holdout(run, identity):
        check_not_seen(spec.trained_on, records, splits, _WHERE)
    mean, std = (jnp.asarray(values, jnp.float32) for values in (images.mean, images.std))
    size = spec.input.size
    network_predict, variables = network.create()

    def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        pixels = images * std + mean
        if pixels.shape[1] != size:
            shape = (len(pixels), size, size, pixels.shape[-1])
            pixels = jax.image.resize(pixels, shape, "linear")
        predicted = network_predict(variables, normalize(pixels, spec.input.mean, spec.input.std))
        return {n: p for n, p in predicted.items() if n in taught} | {
            KNOWN: jnp.ones(len(images), bool)
        }

    log.info("teacher: %s, %s at %d pixels, for %s", name, spec.model, size, _list_tasks(taught))
    arrays = place(jax.tree.map(np.asarray, dict(variables)), replicated(mesh))
    return FoundTeacher(Teacher("image", predict, arrays), spec.trained_on)


def _check_tasks(name: str, predicted: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    """The names of a teacher's predictions that a run can learn from."""
    taught = [task for task in tasks if task in predicted]
    if not taught:
        raise UserError(
            f'{_WHERE} "{name}" predicts {", ".join(predicted) or "nothing"}, not '
            f"{' or '.join(tasks)}: give another teacher, or other --config.tasks"
        )
    return [*taught, "years"] if "age" in taught else taught


def _list_tasks(taught: Sequence[str]) -> str:
    return " and ".join(task for task in taught if task != "years")


def _open_file(
    path: Path, records: Records, splits: Splits, tasks: Sequence[str], mesh: Mesh
) -> FoundTeacher:
    arrays, spec = _read_file(path)
    predictions = {
        name.removesuffix("_log_probs"): array
        for name, array in arrays.items()
        if name.endswith("_log_probs")
    }
    by_task = {name: array for name, array in predictions.items() if name != "years"}
    taught = _check_tasks(str(path), by_task, tasks)
    if arrays["dataset"].tolist() != fingerprint(records).tolist():
        raise UserError(
            f"{_WHERE}: {path} has predictions for another data set than {records.name}, or for "
            f"other labels of it: write them anew with  {_SCRIPT}"
        )
    trained_on = spec.trained_on if spec else {}
    check_not_seen(trained_on, records, splits, _WHERE)
    count, index = len(records.fold), arrays["index"]
    if len(index) and not (index.min() >= 0 and index.max() < count):
        raise _wrong(path, f"index has rows outside of 0 to {count - 1}")
    position = np.full(count, -1, np.int32)
    position[index] = np.arange(len(index))
    chosen = splits.train[position[splits.train] >= 0]
    if not len(chosen):
        raise UserError(
            f"{_WHERE}: {path} has no prediction for any of the {len(splits.train):,} training "
            f"faces: write them anew with  {_SCRIPT}"
        )
    # Only what training needs is on the devices.
    tables = {name: predictions[name][position[chosen]] for name in taught if name in predictions}
    position[:] = -1
    position[chosen] = np.arange(len(chosen))
    log.info(
        "teacher: %s, with predictions of %s for %s of %s training faces",
        path,
        _list_tasks(taught),
        f"{len(chosen):,}",
        f"{len(splits.train):,}",
    )

    def predict(arrays: Any, rows: jax.Array) -> dict[str, jax.Array]:
        found = arrays["position"][rows]
        known = {KNOWN: found >= 0}
        at = jnp.maximum(found, 0)
        return {name: table[at] for name, table in arrays["tables"].items()} | known

    held = {"position": position, "tables": {n: t.astype(np.float32) for n, t in tables.items()}}
    return FoundTeacher(Teacher("row", predict, place(held, replicated(mesh))), trained_on)


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], WeightsSpec | None]:
    """The arrays of a file that a stranger may have written, checked for what they are.

    Raises:
        UserError: it is absent, damaged, or no file of predictions.
    """
    if not path.is_file():
        raise UserError(f"{_WHERE}: there is no file {path}: write one with  {_SCRIPT}")
    if path.stat().st_size > MAX_ARRAYS:
        raise _wrong(path, "it is too large")
    shapes = {f"{task}_log_probs": len(names) for task, names in TASK_CLASSES.items()}
    shapes["years_log_probs"] = len(YEARS)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            known = names & {"index", "dataset", "teacher", *shapes}
            arrays = {name: read_array(archive, f"{name}.npy") for name in known}
        text = arrays.pop("teacher", np.zeros(0, np.uint8))
        spec = WeightsSpec.from_json(text.tobytes().decode()) if len(text) else None
    except (*BAD_ARCHIVE, OSError, UserError) as error:
        raise _wrong(path, str(error)) from error
    for name in ("index", "dataset"):
        if name not in arrays:
            raise _wrong(path, f"it lacks {name}")
    index = arrays["index"]
    if index.ndim != 1 or index.dtype.kind not in "iu" or len(np.unique(index)) != len(index):
        raise _wrong(path, "index is not a list of rows, each once")
    for name in arrays.keys() & shapes.keys():
        array = arrays[name]
        if array.shape != (len(index), shapes[name]) or array.dtype.kind != "f":
            have = " x ".join(map(str, array.shape))
            raise _wrong(path, f"{name} is {have}, not {len(index)} x {shapes[name]}")
        # Minus infinity is the logarithm of 0.
        if np.isnan(array).any() or (array > 1e-3).any() or (array.max(1) < -50).any():
            raise _wrong(path, f"{name} has values that are no logarithms of probabilities")
    return arrays, spec


def _wrong(path: Path, why: str) -> UserError:
    return UserError(
        f"{_WHERE}: {path} is not a file of predictions: {printable(why, 200)}; write it anew with "
        f" {_SCRIPT}"
    )
