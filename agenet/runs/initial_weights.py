"""Initial weights of a run: random, a file of pre-trained weights, or an earlier run's best state.

Weights are described first and read only when they are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from agenet.errors import UserError
from agenet.runs.lineage import TrainedOn
from agenet.training.finished_run import open_finished
from agenet.weights.cache import find_file
from agenet.weights.known import KnownWeights, find_init
from agenet.weights.load import below, load_into, read_weights
from agenet.weights.spec import WeightsSpec

RGB = tuple[float, ...]


@dataclass(frozen=True)
class Initial:
    """Pre-trained weights that have been found but not read yet.

    Attributes:
        init: the exact name of the weights.
        flavour: the variant of the network that they are for.
        mean, std: normalisation of the images that they expect, RGB, 0 to 255.
        trained_on: subjects in their training data, see `agenet.runs.lineage`.
        run: what an earlier run's checkpoint was saved with; None for a file.
        read: returns {"params/backbone/...": array, "batch_stats/...": array}.
    """

    init: str
    flavour: str
    mean: RGB
    std: RGB
    read: Callable[[], dict[str, np.ndarray]]
    trained_on: TrainedOn
    run: dict[str, Any] | None = None


def find_initial(init: str, model: str, flavour: str) -> Initial | None:
    """Finds the weights that a config's `init` names for the network `model`.

    Returns:
        None for "random".

    Raises:
        UserError: there are no such weights, or they are for another network.
    """
    if init == "random":
        return None
    if not init:
        raise UserError(
            "init is empty: use --config.init=random, imagenet, default, a file of weights, or the "
            "--workdir of an earlier run"
        )
    found = find_init(init, model, flavour)
    if isinstance(found, KnownWeights):
        known = found
        return _describe(
            known.name,
            known.spec,
            lambda: read_weights(find_file(known), known=known).tensors,
        )
    if found.is_dir():
        return _find_run(found, init, model, flavour)
    weights = read_weights(found, model=model, flavour=flavour)
    return _describe(init, weights.spec, lambda: weights.tensors)


def _describe(
    init: str,
    spec: WeightsSpec,
    read: Callable[[], dict[str, np.ndarray]],
    run: dict[str, Any] | None = None,
) -> Initial:
    return Initial(
        init=init,
        flavour=spec.flavour,
        mean=spec.input.mean,
        std=spec.input.std,
        read=read,
        trained_on=spec.trained_on,
        run=run,
    )


def _find_run(workdir: Path, init: str, model: str, flavour: str) -> Initial:
    run = open_finished(workdir)
    trained = run.record["config"]["model"]
    if trained["name"] != model:
        raise UserError(
            f"init: the run in {workdir} trained {trained['name']}, not {model}: use "
            f"--config.model.name={trained['name']}, or another run"
        )
    if flavour and trained["flavour"] != flavour:
        raise UserError(
            f"init: the run in {workdir} trained flavour {trained['flavour']!r}, "
            f"not {flavour!r}: leave --config.model.flavour empty"
        )
    return _describe(init, run.spec, run.read, run.record)


def load_initial(
    initial: Initial,
    create: Callable[[], dict[str, Any]],
    *,
    heads: Mapping[str, str],
    new_parts: Sequence[str],
) -> Mapping[str, Any]:
    """Reads initial weights into the variables of a network.

    Args:
        initial: the weights.
        create: returns fresh variables; traceable.
        heads: the kind of head of each task.
        new_parts: prefixes of names that keep their fresh values.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    if initial.run is not None:
        _check_heads(initial.run["config"]["heads"], heads, new_parts)

    def create_new() -> dict[str, Any]:
        fresh = flatten_dict(create(), sep="/")
        return {name: leaf for name, leaf in fresh.items() if below(name, new_parts)}

    # Only the new parts: compiling the initialisation of a backbone takes longer than the rest.
    fresh = jax.device_get(jax.jit(create_new)())
    shapes = flatten_dict(jax.eval_shape(create), keep_empty_nodes=True, sep="/")
    template = unflatten_dict(shapes | fresh, sep="/")
    return load_into(template, initial.read(), new_parts)


def _check_heads(
    earlier: Mapping[str, str], heads: Mapping[str, str], new_parts: Sequence[str]
) -> None:
    for task, head in heads.items():
        if not below(f"params/heads/{task}/kernel", new_parts) and earlier[task] != head:
            raise UserError(
                f"init: that run has the head {earlier[task]} for {task}, this one {head}: "
                f"give --config.heads.{task}={earlier[task]}, or --config.new_parts=heads"
            )
