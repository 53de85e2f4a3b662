"""Reads weights files, loads them strictly into a network, and saves weights to a file."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.core import FrozenDict, freeze
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from agenet.errors import UserError, printable
from agenet.files import write_file
from agenet.weights.bundled import DEFAULT_FILE, DEFAULT_TRAINED_ON
from agenet.weights.formats import TensorFile, note, read_tensors
from agenet.weights.identify import identify
from agenet.weights.known import KnownWeights
from agenet.weights.names import MAPS, find_network
from agenet.weights.names.common import list_names
from agenet.weights.names.keras_input import KerasInput, find_input
from agenet.weights.ported import Note, split_head
from agenet.weights.spec import WeightsSpec

log = logging.getLogger(__name__)

METADATA_KEY = "agenet"
COLLECTIONS = ("params", "batch_stats")


@dataclass(frozen=True)
class Weights:
    """Pre-trained weights in our layout.

    Attributes:
        tensors: arrays by names such as "params/backbone/conv1/kernel",
            "batch_stats/backbone/bn1/mean" or "params/heads/imagenet/kernel".
        spec: their network, the input it expects, and their provenance.
    """

    tensors: dict[str, np.ndarray]
    spec: WeightsSpec


def read_weights(
    path: str | Path,
    model: str = "",
    flavour: str = "",
    known: KnownWeights | None = None,
    stated: Mapping[str, Any] | None = None,
) -> Weights:
    """Reads a weights file of our own format, or of any source with a name map.

    Our own files contain their specification, and so do those that `agenet port` wrote for other
    frameworks. For other files the names of the tensors show the source, and the table of known
    files gives the rest: by `known`, the entry that the file was downloaded for, or by the file's
    hash. A file that is not in the table needs `model` and sometimes `flavour`. It is assumed to
    expect the usual input of that network and source, unless a whole Keras model shows another one;
    a line in the log says where that may be wrong.

    Args:
        path: of the file.
        model: its network, if it is not known.
        flavour: the network's variant, if the source leaves it open.
        known: the entry of the table that it was downloaded for.
        stated: fields of `InputSpec` that the user knows better: "size", "mean" and "std".

    Raises:
        UserError: the file cannot be read, or is of another network than `model`, or of another
            flavour than `flavour`; or it states its own input beside `stated`.
    """
    path = Path(path)
    file = read_tensors(path)
    if METADATA_KEY in file.metadata or note.KEY in file.metadata:
        if stated:
            raise UserError(f"{path} states its own input: leave out --{next(iter(stated))}")
        read = _read_own if METADATA_KEY in file.metadata else _read_ported
        weights = read(path, file)
        if path == DEFAULT_FILE:
            weights = replace(weights, spec=replace(weights.spec, trained_on=DEFAULT_TRAINED_ON))
    else:
        weights = _read_foreign(path, file, model, flavour, known, stated or {})
    spec = weights.spec
    if model and spec.model != model:
        raise UserError(f"{path}: weights of {spec.model}, not of {model}")
    if flavour and spec.flavour != flavour:
        raise UserError(
            f"these weights of {spec.model} are for its flavour {spec.flavour!r}, not {flavour!r}, "
            f"where they would lose accuracy: use flavour {spec.flavour!r}"
        )
    return weights


def load_into(
    variables: Mapping[str, Any],
    weights: Weights | Mapping[str, np.ndarray],
    new: Sequence[str] = ("heads",),
) -> Mapping[str, Any]:
    """Returns the variables of a network with its parameters and statistics from the weights.

    Every leaf of "params" and "batch_stats" is replaced, in float32, except those below the paths
    `new`, such as "heads" or "heads/gender". Those keep their values, and weights for them are
    ignored. Leaves of `variables` may be arrays or shapes; the result has the same structure.

    Raises:
        UserError: a leaf is missing, left over, of another shape, of integers or not finite, or a
            variance is negative; or the network has no path of `new`.
    """
    if isinstance(weights, Weights):
        weights = weights.tensors
    flat = flatten_dict(variables, keep_empty_nodes=True, sep="/")
    names = {
        name
        for name, leaf in flat.items()
        if leaf is not empty_node and name.partition("/")[0] in COLLECTIONS
    }
    _check_new(names, new)
    needed = {name for name in names if not below(name, new)}
    given = {name for name in weights if not below(name, new)}
    other_shape = [
        f"{name} {np.shape(weights[name])}, not {flat[name].shape}"
        for name in needed & given
        if np.shape(weights[name]) != flat[name].shape
    ]
    _check_empty(
        "the weights do not fit the network",
        {
            "missing": needed - given,
            "left over": given - needed,
            "of another shape": other_shape,
            "of integers": [
                name
                for name in needed & given
                if not jnp.issubdtype(jnp.result_type(weights[name]), jnp.floating)
            ],
        },
    )
    loaded = {name: _float32(weights[name]) for name in needed}
    _check_values(loaded)
    result = unflatten_dict(flat | loaded, sep="/")
    return freeze(result) if isinstance(variables, FrozenDict) else result


def save_weights(path: str | Path, weights: Weights, *, half: bool = False) -> None:
    """Writes a safetensors file atomically.

    With `half`, tensors of two or more axes, which are nearly all of the weights, are stored in
    16 bits.

    Raises:
        UserError: values are not finite, or `read_weights` would reject `weights.spec`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    text = weights.spec.to_json()
    _check_classes(weights.tensors, WeightsSpec.from_json(text), path)
    tensors = {name: _float32(tensor) for name, tensor in weights.tensors.items()}
    if half:
        tensors = {
            name: tensor.astype(np.float16) if tensor.ndim > 1 else tensor
            for name, tensor in tensors.items()
        }
    _check_values(tensors)
    data = safetensors.numpy.save(tensors, {METADATA_KEY: text})
    write_file(path, data)


def _read_own(path: Path, file: TensorFile) -> Weights:
    try:
        spec = WeightsSpec.from_json(file.metadata[METADATA_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _check_classes(file.tensors, spec, path)
    return Weights(file.tensors, spec)


def _read_ported(path: Path, file: TensorFile) -> Weights:
    try:
        said = Note.from_json(file.metadata[note.KEY])
        tensors = _translate(said.names, file.tensors, said.spec.model)
        weights = Weights(split_head(tensors, said.columns), said.spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _check_classes(weights.tensors, weights.spec, path)
    return weights


def _read_foreign(
    path: Path,
    file: TensorFile,
    model: str,
    flavour: str,
    known: KnownWeights | None,
    stated: Mapping[str, Any],
) -> Weights:
    source, given = find_network(file.tensors)
    if source is None:
        raise UserError(
            f"{path}: no known network has these names: {list_names(sorted(file.tensors))}"
        )
    spec, is_known = identify(path, source, model, flavour, known)
    try:
        tensors = _translate(source, given, spec.model)
        # The table knows the input of its files. Others may show it, or the user knows it.
        seen = KerasInput()
        if source == "keras" and not {"mean", "std"} <= stated.keys():
            seen = find_input(given, {} if is_known else file.metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if is_known:
        expected = (spec.input.mean, spec.input.std)
        if seen.mean and seen.std and not np.allclose((seen.mean, seen.std), expected, atol=1e-3):
            raise UserError(
                f"{path}: subtracts the mean {seen.mean} and divides by {seen.std}, unlike the "
                "known file"
            )
    else:
        if seen.assumed:
            log.warning("%s: %s", path, seen.assumed)
        fields = {"mean": seen.mean, "std": seen.std, "size": seen.size}
        found: dict[str, Any] = {n: value for n, value in fields.items() if value is not None}
        spec = replace(spec, classes=_classes(tensors, path), input=replace(spec.input, **found))
    spec = replace(spec, input=replace(spec.input, **stated))
    _check_classes(tensors, spec, path)
    return Weights(tensors, spec)


def _translate(source: str, tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """The tensors of a file under our names and in our layout."""
    try:
        translated: dict[str, np.ndarray] = MAPS[source].to_agenet(tensors, model)
    except (ValueError, IndexError, TypeError, ArithmeticError) as error:
        raise UserError(f"a tensor has a shape that does not occur in {model} ({error})") from None
    return translated


def _classes(tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, int]:
    classes = {}
    for name, tensor in tensors.items():
        parts = name.split("/")
        if parts[:2] == ["params", "heads"] and parts[3:] == ["kernel"]:
            if tensor.ndim != 2 or not tensor.size:
                shape = f"the shape {tensor.shape}"
                raise UserError(
                    f"{path}: {list_names([name])} has {shape}, not [features, classes]"
                )
            classes[parts[2]] = tensor.shape[1]
    return classes


def _check_classes(tensors: Mapping[str, np.ndarray], spec: WeightsSpec, path: Path) -> None:
    # An ordinal head has two outputs, whatever its number of classes.
    classes = {
        task: spec.classes.get(task, count) if spec.heads.get(task) == "ordinal" else count
        for task, count in _classes(tensors, path).items()
    }
    if classes != spec.classes:
        have, stated = (printable(str(heads), 300) for heads in (classes, spec.classes))
        raise UserError(f"{path}: has the heads {have}, not {stated}")


def below(name: str, paths: Sequence[str]) -> bool:
    """Whether "params/a/b" or "batch_stats/a/b" is at or below one of the paths, such as "a"."""
    path = name.partition("/")[2]
    return any(path == top or path.startswith(f"{top}/") for top in paths)


def _check_new(names: set[str], new: Sequence[str]) -> None:
    for path in new:
        if not any(below(name, (path,)) for name in names):
            tops = sorted({"/".join(name.split("/")[1:3]) for name in names})
            raise UserError(f"the network has no {path!r} to initialise; it has {', '.join(tops)}")


def _check_empty(title: str, groups: Mapping[str, Collection[str]]) -> None:
    """Raises `UserError` unless all groups are empty."""
    found = [f"{kind}: {list_names(sorted(names))}" for kind, names in groups.items() if names]
    if found:
        raise UserError(f"{title}: {'; '.join(found)}")


def _float32(tensor: Any) -> np.ndarray:
    """Copies to float32 in C order; values beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return np.array(tensor, np.float32, order="C")


def _check_values(tensors: Mapping[str, np.ndarray]) -> None:
    _check_empty(
        "the weights are damaged",
        {
            "not finite": [name for name, value in tensors.items() if not np.isfinite(value).all()],
            "negative": [
                name
                for name, value in tensors.items()
                if name.startswith("batch_stats/") and name.endswith("/var") and (value < 0).any()
            ],
        },
    )
