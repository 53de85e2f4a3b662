"""Durations in steps, learning-rate schedules and optimizers."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax

from agenet.errors import UserError
from agenet.training.config import OptimizerConfig, ScheduleConfig


def to_steps(duration: str, *, steps_per_epoch: int, total_steps: int | None = None) -> int:
    """The number of steps in a duration, rounded to the nearest.

    Args:
        duration: "<number> steps", "<number> epochs" or, if `total_steps` is given, "<number>%".
        steps_per_epoch: what an epoch is.
        total_steps: the length of the run, of which percentages are taken.

    Raises:
        UserError: if the duration does not read so.

    >>> to_steps("2 epochs", steps_per_epoch=100), to_steps("7 steps", steps_per_epoch=100)
    (200, 7)
    >>> to_steps("25%", steps_per_epoch=100, total_steps=500)
    125
    """
    return round(_exact_steps(duration, steps_per_epoch, total_steps))


def _exact_steps(duration: str, steps_per_epoch: int, total_steps: int | None) -> float:
    units: dict[str, float] = {
        "epoch": steps_per_epoch,
        "epochs": steps_per_epoch,
        "step": 1,
        "steps": 1,
    }
    if total_steps is not None:
        units["%"] = total_steps / 100
    try:
        number, unit = str(duration).replace("%", " %").split()
        steps = float(number) * units[unit]
        if not 0 <= steps < math.inf:
            raise ValueError(duration)
    except (ValueError, KeyError):
        percent = ', "25%"' if total_steps is not None else ""
        raise UserError(
            f'"{duration}" is not a duration: write one like "5 epochs", "200 steps"{percent}'
        ) from None
    return steps


def create_schedule(
    config: ScheduleConfig, *, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """The learning rate as a function of the step.

    A linear warm-up from zero comes first; the schedule itself spans the remaining steps.

    "piecewise" multiplies the learning rate by `scales[i]` from `boundaries[i - 1]` on, so there
    is one scale more than boundaries; boundaries count from the start of the run.
    "piecewise_epochs" does the same with every boundary moved up to the start of an epoch, as in
    the reference report: the rate of an epoch, counted from 0, depends on whether its number is
    below 25, 50 or 75 % of the number of epochs. Of a short run several boundaries may then be
    the same.

    Raises:
        UserError: a bad duration, a run without steps, a warm-up as long as the run, or boundaries
            that do not fit the scales.

    >>> config = ScheduleConfig("piecewise_epochs", 1, "0 steps", ("25%", "50%"), (1, 0.5, 0.25))
    >>> schedule = create_schedule(config, steps_per_epoch=10, total_steps=50)
    >>> [float(schedule(step)) for step in (0, 19, 20, 29, 30, 49)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def steps(duration: str) -> int:
        return to_steps(duration, steps_per_epoch=steps_per_epoch, total_steps=total_steps)

    def boundary(duration: str) -> int:
        if config.name == "piecewise":
            return steps(duration)
        epochs = _exact_steps(duration, steps_per_epoch, total_steps) / steps_per_epoch
        return math.ceil(epochs - 1e-9) * steps_per_epoch  # Less for floating-point error.

    peak, warmup = config.learning_rate, steps(config.warmup)
    if total_steps == 0:
        raise UserError("the run has no steps: raise --config.duration")
    if warmup >= total_steps:
        raise UserError(
            f'schedule.warmup "{config.warmup}" ({warmup} steps) must be shorter than the run '
            f"({total_steps} steps)"
        )
    if config.name == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, total_steps - warmup)
    else:
        boundaries = [boundary(duration) for duration in config.boundaries]
        _check_boundaries(boundaries, config)
        rates = [optax.constant_schedule(peak * scale) for scale in config.scales]
        schedule = optax.join_schedules(rates, [step - warmup for step in boundaries])
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def _check_boundaries(boundaries: Sequence[int], config: ScheduleConfig) -> None:
    may_repeat = config.name == "piecewise_epochs"
    increasing = sorted(boundaries if may_repeat else set(boundaries))
    if len(config.scales) != len(boundaries) + 1 or list(boundaries) != increasing:
        raise UserError(
            f"schedule.boundaries ({len(boundaries)}) must increase and be one fewer than "
            f"schedule.scales ({len(config.scales)}); does the run have enough steps?"
        )


def create_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer with a learning rate that follows the schedule.

    Gradients are scaled down to a norm of at most `clip_norm` over all trained parameters; 0 turns
    clipping off. `weight_decay` applies to kernels only: with "adam" it is decoupled, which makes
    it AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019); with "sgd"
    it is added to the gradient before momentum. Both are as in PyTorch. The learning rate of the
    backbone is the schedule's times `backbone_scale`.
    """
    # What is off leaves no trace in the optimizer's state, and so in checkpoints.
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = config.weight_decay
    if config.name == "adam":
        adamw = optax.adamw(schedule, weight_decay=decay, mask=_kernels)
        parts.append(adamw if decay else optax.adam(schedule))
    else:
        parts += [optax.add_decayed_weights(decay, _kernels)] if decay else []
        parts.append(optax.sgd(schedule, momentum=config.momentum))
    if config.backbone_scale != 1:
        parts.append(optax.masked(optax.scale(config.backbone_scale), _backbone))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _kernels(params: Any) -> Any:
    """True for parameters that are multiplied with features: no biases, no normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _backbone(params: Any) -> Any:
    return {name: name == "backbone" for name in params}
