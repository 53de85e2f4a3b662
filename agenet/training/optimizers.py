"""Durations, learning-rate schedules and optimisers, from a config."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import optax

from agenet.errors import UserError


def to_steps(duration: str, *, steps_per_epoch: int, total_steps: int | None = None) -> int:
    """Number of steps that a duration means, rounded to the nearest.

    Args:
        duration: "<number> steps", "<number> epochs" or, if `total_steps` is given, "<number>%".

    Raises:
        UserError: if the duration does not read so.

    >>> to_steps("2 epochs", steps_per_epoch=100), to_steps("7 steps", steps_per_epoch=100)
    (200, 7)
    >>> to_steps("25%", steps_per_epoch=100, total_steps=500)
    125
    """
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
    return round(steps)


def create_schedule(
    config: ml_collections.ConfigDict, *, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """The learning rate at each step; `config` is the config's `schedule`.

    A linear warm-up from zero precedes the schedule proper, which spans the remaining steps.
    "piecewise" multiplies the learning rate by `scales[i]` from `boundaries[i - 1]` on, so there is
    one scale more than boundaries; boundaries count from the start of the run.

    Raises:
        UserError: for an unknown name, a bad duration, a learning rate that is not positive,
            a run without steps, a warm-up as long as the run, or boundaries that do not fit
            the scales.
    """

    def steps(duration: str) -> int:
        return to_steps(duration, steps_per_epoch=steps_per_epoch, total_steps=total_steps)

    peak, warmup = config.learning_rate, steps(config.warmup)
    if not 0 < peak < math.inf:
        raise UserError(f"schedule.learning_rate {peak} must be a positive number")
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
    elif config.name == "piecewise":
        boundaries = [steps(boundary) - warmup for boundary in config.boundaries]
        schedule = _piecewise(peak, boundaries, config.scales)
    else:
        raise UserError(
            f'schedule.name "{config.name}" is not known: use "constant", "piecewise" or "cosine"'
        )
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def _piecewise(peak: float, boundaries: Sequence[int], scales: Sequence[float]) -> optax.Schedule:
    if len(scales) != len(boundaries) + 1 or list(boundaries) != sorted(set(boundaries)):
        raise UserError(
            f"schedule.boundaries ({len(boundaries)}) must increase and be one fewer than "
            f"schedule.scales ({len(scales)}); does the run have enough steps?"
        )
    return optax.join_schedules([optax.constant_schedule(peak * s) for s in scales], boundaries)


def create_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimiser that the config's `optimizer` names.

    Gradients are scaled down to a norm of `clip_norm` over all that is trained. `weight_decay` is
    that of kernels alone: beside the moments of "adam", which makes it AdamW (Loshchilov and
    Hutter, "Decoupled Weight Decay Regularization", ICLR 2019), and part of the gradient that
    "sgd" has its momentum of, as PyTorch has both. The learning rate for the backbone is the
    schedule's times `backbone_scale`.

    Raises:
        UserError: if the name is not known, or one of the other fields is negative.
    """
    for name in ("clip_norm", "weight_decay", "backbone_scale"):
        if not 0 <= config[name] < math.inf:
            raise UserError(f"optimizer.{name} {config[name]} must be a number from 0")
    # What is off leaves no trace in the optimiser's state, and so in checkpoints.
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = config.weight_decay
    if config.name == "adam":
        adamw = optax.adamw(schedule, weight_decay=decay, mask=_kernels)
        parts.append(adamw if decay else optax.adam(schedule))
    elif config.name == "sgd":
        parts += [optax.add_decayed_weights(decay, _kernels)] if decay else []
        parts.append(optax.sgd(schedule, momentum=config.momentum))
    else:
        raise UserError(f'optimizer.name "{config.name}" is not known: use "adam" or "sgd"')
    if config.backbone_scale != 1:
        parts.append(optax.masked(optax.scale(config.backbone_scale), _backbone))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _kernels(params: Any) -> Any:
    """True for what is multiplied with features: no biases, nothing of a normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _backbone(params: Any) -> Any:
    return {name: name == "backbone" for name in params}
