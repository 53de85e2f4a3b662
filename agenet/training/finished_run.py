"""Reads the best state of a finished run, as weights to predict with or to start another run from.

Everything comes from the run's checkpoints: the record that was saved with them says which network
it is and which input it expects.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from agenet.errors import UserError, printable
from agenet.models import create_model, option_names
from agenet.training.checkpoints import Checkpoints
from agenet.training.losses import describe_heads
from agenet.training.run_record import is_complete
from agenet.training.state import create_variables
from agenet.weights.known import KNOWN
from agenet.weights.load import Weights
from agenet.weights.spec import InputSpec, WeightsSpec


@dataclass(frozen=True)
class FinishedRun:
    """A finished run whose weights have not been read yet.

    Attributes:
        workdir: its work directory.
        record: what its best state was saved with.
    """

    workdir: Path
    record: dict[str, Any]

    @property
    def spec(self) -> WeightsSpec:
        """The network, its input and its training data."""
        record, config = self.record, self.record["config"]
        crop = self._crop_size
        return WeightsSpec(
            model=config["model"]["name"],
            flavour=config["model"]["flavour"],
            classes=describe_heads(self._heads)[0],
            input=InputSpec(
                crop,
                _rgb(config["input"]["mean"]),
                _rgb(config["input"]["std"]),
                "bilinear",
                crop / config["input"]["size"],
            ),
            source="agenet",
            origin=printable(
                f"trained on {record['dataset']['name']}, seed {config['seed']}, from "
                f"{_name_of(config['init'])}",
                1000,
            ),
            sha256=None,
            licence="that of whoever trained them",
            heads=self._heads,
            trained_on=record.get("trained_on", {}),
        )

    def read(self) -> dict[str, np.ndarray]:
        """The best parameters and batch statistics, by names such as "params/heads/age/bias"."""
        options = self.record["config"]["model"]
        outputs, ordinal = describe_heads(self._heads)
        network = create_model(
            options["name"],
            outputs,
            ordinal=ordinal,
            **{key: options[key] for key in option_names(options["name"]) & options.keys()},
        )
        size = self._crop_size
        template: Any = jax.eval_shape(lambda: create_variables(network, size, 0))
        # Not the CPU: with JAX_PLATFORMS=cuda there is none.
        on_one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=on_one), template
        )
        with closing(Checkpoints(self.workdir, read_only=True)) as checkpoints:
            variables = jax.device_get(checkpoints.restore_best(template))
        return flatten_dict(variables, sep="/")

    @property
    def _heads(self) -> dict[str, str]:
        return {task: self.record["config"]["heads"][task] for task in self.record["classes"]}

    @property
    def _crop_size(self) -> int:
        config = self.record["config"]
        own = create_model(config["model"]["name"], {}).backbone.input_size
        return config["input"]["crop_size"] or own


def open_finished(workdir: Path) -> FinishedRun:
    """Opens the run in a work directory.

    Raises:
        UserError: there is none, it is not finished, or an old version of agenet trained it.
    """
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        record, latest = checkpoints.read_run("best"), checkpoints.read_run("latest")
    if record is None:
        raise UserError(
            f"init: {workdir} holds no evaluated state to start from: train it past its first "
            "validation"
        )
    if latest is not None and not is_complete(latest):
        raise UserError(
            f"init: the run in {workdir} stopped at step {latest['step']} of "
            f"{latest.get('total_steps', '?')}: finish it first, with the command that began it"
            + (f", {latest['command']}" if "command" in latest else "")
        )
    config = record["config"]
    if "flavour" not in config["model"] or "heads" not in config:
        raise UserError(
            f"init: the run in {workdir} was trained by an older version of agenet: train it again"
        )
    run = FinishedRun(workdir, record)
    try:
        WeightsSpec.from_json(run.spec.to_json())  # Checks what the fields mean.
    except UserError as error:
        raise UserError(
            f"init: the run in {workdir} is damaged, or of another version of agenet ({error}): "
            "restore a copy of it, or train it again"
        ) from error
    return run


def read_run_weights(workdir: Path) -> Weights:
    """The weights of the best state of a finished run.

    Raises:
        UserError: the folder holds no such run.
    """
    run = open_finished(workdir)
    tensors = run.read()
    return Weights({name: np.asarray(tensor) for name, tensor in tensors.items()}, run.spec)


def _name_of(init: str) -> str:
    """The name of initial weights, without the folder of a file or run on this machine."""
    return init if any(init == entry.name for entry in KNOWN) else Path(init).name


def _rgb(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
