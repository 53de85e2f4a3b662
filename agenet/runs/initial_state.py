"""Creates the state before the first step: random parameters or pre-trained weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from agenet.distributed.mesh import place, replicated
from agenet.errors import UserError
from agenet.models.heads import ordinal_start
from agenet.runs.compilation import compiling
from agenet.runs.experiment import Experiment
from agenet.runs.initial_weights import InitialWeights
from agenet.runs.lineage import check_not_seen, has_same_holdout
from agenet.training.freeze import split_params
from agenet.training.losses import BY_YEAR, estimate_age_distribution
from agenet.training.state import TrainState, create_variables
from agenet.weights.load import below, load_into


def create_initial_state(experiment: Experiment) -> TrainState:
    """The state before the first step, on every device, with pre-trained weights loaded.

    Raises:
        UserError: the initial weights cannot be read, do not fit, or were trained on subjects
            that this run validates or tests on.
    """
    on_all = replicated(experiment.mesh)

    def create() -> dict[str, Any]:
        return _create_variables(experiment)

    if experiment.initial is None:
        with compiling("the initial parameters"):
            variables = jax.jit(create, out_shardings=on_all)()
    else:
        _check_new_parts(experiment, jax.eval_shape(create)["params"])
        initial = experiment.initial
        if initial.run is None or not has_same_holdout(initial.run, experiment.identity):
            check_not_seen(initial.spec.trained_on, experiment.records, experiment.splits)
        loaded = _load(initial, create, experiment.heads, experiment.config.new_part_names)
        variables = place(loaded, on_all)
    return jax.jit(experiment.create_state, out_shardings=on_all)(variables)


def _create_variables(experiment: Experiment) -> dict[str, Any]:
    variables = create_variables(experiment.model, experiment.crop_size, experiment.config.seed)
    head = experiment.heads.get("age")
    if head in BY_YEAR:
        # Age ranges teach nothing about the years within them: there the prediction stays what
        # it is at the start, so that should be how common each year is.
        records, rows = experiment.records, experiment.splits.train
        shares = estimate_age_distribution(records.age_low[rows], records.age_high[rows])
        start = {name: jnp.float32(value) for name, value in ordinal_start(shares).items()}
        if head == "distribution":
            start = {"bias": jnp.log(jnp.float32(shares))}
        variables["params"]["heads"]["age"] |= start
    return variables


def _check_new_parts(experiment: Experiment, params: dict[str, Any]) -> None:
    config = experiment.config
    _, frozen = split_params(params, experiment.model.frozen)
    names = flatten_dict(frozen, sep="/")
    if any(below(f"params/{name}", config.new_part_names) for name in names):
        raise UserError(
            f'new_parts "{config.new_parts}" and freeze "{config.freeze}" have parts in common, '
            "which would stay random: unfreeze them, or remove them from new_parts"
        )


def _load(
    initial: InitialWeights,
    create: Callable[[], dict[str, Any]],
    heads: Mapping[str, str],
    new_parts: Sequence[str],
) -> Mapping[str, Any]:
    """Reads initial weights into the variables of a network.

    Args:
        initial: the weights.
        create: returns fresh variables; traceable.
        heads: the kind of head of each task.
        new_parts: prefixes of names that keep their fresh values.
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
