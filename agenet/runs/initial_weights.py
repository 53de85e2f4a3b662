"""Finds a run's initial weights: a file of pre-trained weights, or an earlier run's best state.

Their arrays are read only when they are needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.files import is_address
from agenet.places.weights import find_weights
from agenet.training.finished_run import open_finished
from agenet.weights.cache import find_file
from agenet.weights.known import KnownWeights, find_init
from agenet.weights.load import read_weights
from agenet.weights.spec import WeightsSpec


@dataclass(frozen=True)
class InitialWeights:
    """Pre-trained weights that have been found but not read yet.

    Attributes:
        init: the exact name of the weights.
        spec: the network and the input that they are for, and their training data.
        read: returns {"params/backbone/...": array, "batch_stats/...": array}.
        run: what an earlier run's checkpoint was saved with; None for a file.
    """

    init: str
    spec: WeightsSpec
    read: Callable[[], Mapping[str, np.ndarray]]
    run: dict[str, Any] | None = None


def find_initial(init: str, model: str, flavour: str) -> InitialWeights | None:
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
            "init is empty: use --config.init=random, imagenet, default, a file of weights, the "
            "--workdir of an earlier run, or the address of one"
        )
    found = find_weights(init) if is_address(init) else find_init(init, model, flavour)
    if isinstance(found, KnownWeights):
        known = found

        def read() -> Mapping[str, np.ndarray]:
            return read_weights(find_file(known), known=known).tensors

        return InitialWeights(known.name, known.spec, read)
    if found.is_dir():
        return _find_run(found, init, model, flavour)
    weights = read_weights(found, model=model, flavour=flavour)
    return InitialWeights(init, weights.spec, lambda: weights.tensors)


def _find_run(workdir: Path, init: str, model: str, flavour: str) -> InitialWeights:
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
    return InitialWeights(init, run.spec, run.read, run.record)
