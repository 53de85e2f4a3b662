"""From a file of weights to the variables of a network, strictly; and back into a file."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.core import FrozenDict, freeze
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from agenet.errors import UserError, printable
from agenet.weights.bundled import DEFAULT_FILE, DEFAULT_TRAINED_ON
from agenet.weights.formats import TensorFile, read_tensors
from agenet.weights.identify import identify
from agenet.weights.known import KnownWeights
from agenet.weights.names import MAPS, detect, keras
from agenet.weights.names.common import list_names
from agenet.weights.spec import WeightsSpec

METADATA_KEY = "agenet"
COLLECTIONS = ("params", "batch_stats")


@dataclass(frozen=True)
class Weights:
    """Pre-trained weights in our layout.

    Attributes:
        tensors: by names such as "params/backbone/conv1/kernel", "batch_stats/backbone/bn1/mean"
            or "params/heads/imagenet/kernel".
        spec: what network they are for, what it is to be given, where they come from.
    """

    tensors: dict[str, np.ndarray]
    spec: WeightsSpec


def read_weights(
    path: str | Path, model: str = "", flavour: str = "", known: KnownWeights | None = None
) -> Weights:
    """Reads weights of any source that there is a name map for, or our own.

    Our own files say what they are. Of others the source shows in their names, and the network in
    the table of known files, either by `known`, the entry the file was fetched for, or by its
    hash. A file that is not in the table needs `model` and sometimes `flavour`, and is taken to
    want the input that its source usually gives that network.

    Raises:
        UserError: the file cannot be read, or is not of the network `model`, or not of `flavour`.
    """
    path = Path(path)
    file = read_tensors(path)
    if METADATA_KEY in file.metadata:
        weights = _read_own(path, file)
        if path == DEFAULT_FILE:
            weights = replace(weights, spec=replace(weights.spec, trained_on=DEFAULT_TRAINED_ON))
    else:
        weights = _read_foreign(path, file, model, flavour, known)
    spec = weights.spec
    if model and spec.model != model:
        raise UserError(f"{path}: weights of {spec.model}, not of {model}")
    if flavour:
        _check_flavour(spec, flavour)
    return weights


def load_into(
    variables: Mapping[str, Any],
    weights: Weights | Mapping[str, np.ndarray],
    new: Sequence[str] = ("heads",),
) -> Mapping[str, Any]:
    """Variables of a network with parameters and batch-norm statistics replaced by the weights.

    Every leaf of "params" and "batch_stats" is replaced, in float32, except those below the paths
    `new`, such as "heads" or "heads/gender", which keep their values; what the weights have there
    is ignored. Leaves of `variables` may be arrays or their shapes; the result has the same
    structure.

    Raises:
        UserError: a leaf is missing, left over, of another shape, not finite, or a variance is
            negative; or a path of `new` is nowhere in the network.
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
    wanted = {name for name in names if not below(name, new)}
    offered = {name for name in weights if not below(name, new)}
    other_shape = [
        f"{name} {np.shape(weights[name])}, not {flat[name].shape}"
        for name in wanted & offered
        if np.shape(weights[name]) != flat[name].shape
    ]
    _refuse(
        "the weights do not fit the network",
        {
            "missing": wanted - offered,
            "left over": offered - wanted,
            "of another shape": other_shape,
        },
    )
    loaded = {name: _float32(weights[name]) for name in wanted}
    _refuse_values(loaded)
    result = unflatten_dict(flat | loaded, sep="/")
    return freeze(result) if isinstance(variables, FrozenDict) else result


def save_weights(path: str | Path, weights: Weights, *, half: bool = False) -> None:
    """Writes a safetensors file that appears under its name only when it is complete.

    `half` stores what has two axes or more, nearly all there is, in 16 bits.

    Raises:
        UserError: values are not finite, or `weights.spec` is not what `read_weights` would take.
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
    _refuse_values(tensors)
    data = safetensors.numpy.save(tensors, {METADATA_KEY: text})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except OSError as error:
        error.filename = str(path)  # the one that the user knows
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def _read_own(path: Path, file: TensorFile) -> Weights:
    try:
        spec = WeightsSpec.from_json(file.metadata[METADATA_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _check_classes(file.tensors, spec, path)
    return Weights(file.tensors, spec)


def _read_foreign(
    path: Path, file: TensorFile, model: str, flavour: str, known: KnownWeights | None
) -> Weights:
    source = detect(file.tensors)
    if source is None:
        raise UserError(
            f"{path}: no network of ours has these names: {list_names(sorted(file.tensors))}"
        )
    spec, is_known = identify(path, source, model, flavour, known)
    try:
        tensors = MAPS[source].to_agenet(file.tensors, spec.model)
        normalisation = keras.input_normalisation(file.tensors) if source == "keras" else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, IndexError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: a shape that no tensor of {spec.model} has ({error})") from None
    if not is_known:
        spec = replace(spec, classes=_classes(tensors, path))
    if normalisation is not None:
        mean, std = normalisation
        if not is_known:
            spec = replace(spec, input=replace(spec.input, mean=mean, std=std))
        elif not np.allclose((mean, std), (spec.input.mean, spec.input.std), atol=1e-3):
            raise UserError(f"{path}: takes the mean {mean} and deviation {std} from its input")
    _check_classes(tensors, spec, path)
    return Weights(tensors, spec)


def _check_flavour(spec: WeightsSpec, flavour: str) -> None:
    if spec.flavour != flavour:
        raise UserError(
            f"these weights of {spec.model} are for its flavour {spec.flavour!r}, not {flavour!r}: "
            f"with the other they would lose accuracy; use flavour {spec.flavour!r}"
        )


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
    # An ordinal head has two outputs however many classes it orders.
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
            raise UserError(f"the network has no {path!r} to begin anew; it has {', '.join(tops)}")


def _refuse(title: str, groups: Mapping[str, Collection[str]]) -> None:
    """Raises UserError unless all the groups are empty."""
    found = [f"{kind}: {list_names(sorted(names))}" for kind, names in groups.items() if names]
    if found:
        raise UserError(f"{title}: {'; '.join(found)}")


def _float32(tensor: Any) -> np.ndarray:
    """A copy, in rows; what is beyond float32's range becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(tensor, np.float32, order="C")


def _refuse_values(tensors: Mapping[str, np.ndarray]) -> None:
    _refuse(
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
