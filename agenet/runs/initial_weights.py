"""Where a run's parameters come from: chance, a file of weights, or an earlier run."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from agenet.errors import UserError
from agenet.models import create_model, option_names
from agenet.runs.lineage import TrainedOn
from agenet.training.checkpoints import Checkpoints, is_complete
from agenet.training.losses import describe_heads
from agenet.training.state import create_variables
from agenet.weights.cache import find_file
from agenet.weights.known import KnownWeights, find_init
from agenet.weights.load import read_weights
from agenet.weights.spec import WeightsSpec

RGB = tuple[float, ...]


@dataclass(frozen=True)
class Initial:
    """Pre-trained weights, known but not read yet.

    Attributes:
        init: what names them exactly.
        flavour: of the network that they are for.
        mean, std: of the pixels that they expect, RGB, 0 to 255.
        trained_on: whom they have seen, see `agenet.runs.lineage`.
        run: what an earlier run's checkpoint was saved with; None for a file.
        read: gives {"params/backbone/...": array, "batch_stats/...": array}.
    """

    init: str
    flavour: str
    mean: RGB
    std: RGB
    read: Callable[[], dict[str, np.ndarray]]
    trained_on: TrainedOn
    run: dict[str, Any] | None = None


def find_initial(init: str, model: str, flavour: str) -> Initial | None:
    """What a config's `init` means for the network `model`; None for "random".

    Raises:
        UserError: there is no such thing, or it is not for this network.
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
        return _from_file(
            found.name,
            found.spec,
            lambda: read_weights(find_file(found), known=found).tensors,
        )
    if found.is_dir():
        return _from_run(found, init, model, flavour)
    weights = read_weights(found, model=model, flavour=flavour)
    return _from_file(init, weights.spec, lambda: weights.tensors)


def _from_file(init: str, spec: WeightsSpec, read: Callable[[], dict[str, np.ndarray]]) -> Initial:
    return Initial(
        init=init,
        flavour=spec.flavour,
        mean=spec.input.mean,
        std=spec.input.std,
        read=read,
        trained_on=spec.trained_on,
    )


def _from_run(workdir: Path, init: str, model: str, flavour: str) -> Initial:
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        run, latest = checkpoints.read_run("best"), checkpoints.read_run("latest")
    if run is None:
        raise UserError(
            f"init: {workdir} holds no evaluated state to start from: train it past its first "
            "validation"
        )
    if latest is not None and not is_complete(latest):
        raise UserError(
            f"init: the run in {workdir} stopped at step {latest['step']} of "
            f"{latest['total_steps']}: finish it first, with the command that began it"
            + (f", {latest['command']}" if "command" in latest else "")
        )
    config = run["config"]
    if "flavour" not in config["model"] or "heads" not in config:
        raise UserError(
            f"init: the run in {workdir} was trained by an older version of agenet: train it again"
        )
    if config["model"]["name"] != model:
        raise UserError(
            f"init: the run in {workdir} trained {config['model']['name']}, not {model}: use "
            f"--config.model.name={config['model']['name']}, or another run"
        )
    if flavour and config["model"]["flavour"] != flavour:
        raise UserError(
            f"init: the run in {workdir} trained flavour {config['model']['flavour']!r}, "
            f"not {flavour!r}: leave --config.model.flavour empty"
        )
    return Initial(
        init=init,
        flavour=config["model"]["flavour"],
        mean=tuple(config["input"]["mean"]),
        std=tuple(config["input"]["std"]),
        read=lambda: _read_run(workdir, run),
        trained_on=run.get("trained_on", {}),
        run=run,
    )


def _read_run(workdir: Path, run: dict[str, Any]) -> dict[str, np.ndarray]:
    options = run["config"]["model"]
    outputs, ordinal = describe_heads(
        {task: run["config"]["heads"][task] for task in run["classes"]}
    )
    network = create_model(
        options["name"],
        outputs,
        ordinal=ordinal,
        **{key: options[key] for key in option_names(options["name"]) & options.keys()},
    )
    size = run["config"]["input"]["crop_size"] or network.backbone.input_size
    template: Any = jax.eval_shape(lambda: create_variables(network, size, 0))
    # Not the CPU: with JAX_PLATFORMS=cuda there is none.
    on_one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=on_one), template
    )
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        variables = jax.device_get(checkpoints.restore_best(template))
    return flatten_dict(variables, sep="/")
