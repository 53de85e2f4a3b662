"""Writes weights of agenet as a file of torchvision, timm, Keras or Caffe.

Networks there have one classifier, which takes the place of all heads: with eight age groups and
two genders it has ten outputs, those of age first.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks.exports import Export
from agenet.frameworks.targets import TARGETS, name_at
from agenet.weights.names import MAPS
from agenet.weights.ported import Columns

if TYPE_CHECKING:
    from agenet.weights.load import Weights

TOLERANCE = 1e-4  # relative to the largest value
TINY = 1e-6  # lets zeros be compared
EXTRA_LAYER = "params/heads/bn/scale"


def export(weights: "Weights", target: str) -> Export:
    """Translates names and layout; needs no other framework.

    Raises:
        UserError: the target has no such network, or no place for such heads.
    """
    spec = weights.spec
    name = name_at(target, spec.model, spec.flavour)
    fill_network(weights)  # Raises for what is missing.
    tensors, columns = one_head(weights)
    names = TARGETS[target].names_of(spec.model)
    translated = MAPS[names].from_agenet(tensors, spec.model)
    return Export(weights, target, name, names, translated, columns)


def fill_network(weights: "Weights") -> tuple[Any, Any]:
    """Creates the network that the weights belong to, and its variables.

    Raises:
        UserError: the weights are not exactly those of the network.
    """
    import jax

    from agenet.models import create_model
    from agenet.training.losses import describe_heads
    from agenet.training.state import create_variables
    from agenet.weights.load import load_into

    spec = weights.spec
    network = create_model(
        spec.model,
        spec.classes,
        flavour=spec.flavour,
        ordinal=describe_heads(spec.heads)[1],
        extra_layers=EXTRA_LAYER in weights.tensors,
    )
    template = jax.eval_shape(lambda: create_variables(network, spec.input.size, 0))
    return network, load_into(template, weights, new=())


def one_head(weights: "Weights") -> tuple[dict[str, np.ndarray], Columns]:
    """Joins all heads into one, and says which columns of it each head has.

    Raises:
        UserError: there is no head, or one that is not an affine map of the features.
    """
    spec = weights.spec
    odd = [task for task in spec.classes if spec.heads.get(task) == "ordinal"]
    if odd or EXTRA_LAYER in weights.tensors:
        what = f"its head of {odd[0]} is ordinal" if odd else "it was trained with extra layers"
        raise UserError(f"--to: {what}, which a plain classifier cannot express")
    if not spec.classes:
        raise UserError("--to: these weights have no heads: name other weights, or those of a run")
    tensors = {n: t for n, t in weights.tensors.items() if not n.startswith("params/heads/")}
    columns, first = {}, 0
    for task, count in spec.classes.items():
        columns[task] = (first, first + count)
        first += count
    for leaf in ("kernel", "bias"):
        parts = [weights.tensors[f"params/heads/{task}/{leaf}"] for task in spec.classes]
        tensors[f"params/heads/classes/{leaf}"] = np.concatenate(parts, axis=-1)
    return tensors, columns


def write(exported: Export, output: Path, check: bool) -> str:
    """Writes the file and returns Python code that loads it.

    With `check` the other framework runs the file first, and it is written only if the logits are
    those of agenet's network.

    Raises:
        UserError: the suffix is not one of the target's, the target is not installed, or its
            network answers differently.
    """
    target = TARGETS[exported.target]
    if not output.name.endswith(target.suffixes):
        suffixes = " or ".join(target.suffixes)
        raise UserError(f"{output}: --to {exported.target} writes {suffixes}")
    if message := target.why_not(output.suffix, check):
        raise UserError(message)
    # In a temporary folder first: a half-written file must not have the name of the output.
    with tempfile.TemporaryDirectory(dir=output.resolve().parent) as folder:
        path = Path(folder, output.name)
        code = target.write(exported, path)
        if check:
            _check(exported, path)
        places = {written: output.parent / written.name for written in Path(folder).iterdir()}
        beside = [place for written, place in places.items() if written != path]
        for place in beside:
            # Replacing the output includes the file beside it.
            if place.exists() and not output.exists():
                raise UserError(f"{place} exists: remove it, or give the output another name")
        for written, place in places.items():
            written.replace(place)
    return code.format(path=repr(str(output)), beside=repr(str(next(iter(beside), ""))))


def _check(exported: Export, path: Path) -> None:
    """Compares the logits of random images, see `check_answers`."""
    import jax

    shape = (2, exported.size, exported.size, 3)
    pixels = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    network, variables = fill_network(exported.weights)
    with jax.default_matmul_precision("float32"):
        logits: Any = jax.jit(network.apply)(variables, exported.normalise(pixels))
    ours = np.concatenate([logits[task] for task in exported.columns], axis=-1)
    theirs = TARGETS[exported.target].run(exported, path, pixels)
    check_answers({"logits": ours}, {"logits": theirs}, exported.target)


def check_answers(
    ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], framework: str
) -> None:
    """Prints how far outputs are from those of the other framework's network.

    Raises:
        UserError: the difference exceeds `TOLERANCE`.
    """
    differences = {
        name: float(np.abs(ours[name] - value).max() / np.abs(value).max(initial=TINY))
        for name, value in theirs.items()
    }
    shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    # Not `>`: NaN must be refused, too.
    if not max(differences.values()) <= TOLERANCE:
        raise UserError(f"--check: differs from {framework}'s network, relatively by: {shown}")
    print(f"largest relative difference from {framework}'s network: {shown}")
