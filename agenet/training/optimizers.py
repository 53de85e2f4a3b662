"""Durations in steps, learning-rate schedules and optimizers."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax

from agenet.errors import UserError
from agenet.training.config import OptimizerConfig, ScheduleConfig
from agenet.training.freeze import in_stage

# Of a run, the part in which the rate of "one_cycle" rises; Optax's and PyTorch's default.
_RISING = 0.3
# Makes Muon's updates as large as Adam's, so that one learning rate serves both: Liu et al., "Muon
# is Scalable for LLM Training", 2025.
_MUON_RMS = 0.2


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

    "cosine" and "polynomial" fall from the learning rate to `final_scale` of it: half a cosine, or
    (1 - t)^`power` for the elapsed part t. "one_cycle" has a warm-up of its own, as long as
    `warmup` or, if that is zero, 30 % of the run: half a cosine from 1/25 of the rate, and then
    half a cosine down to 1/250,000 of it (Smith and Topin, "Super-Convergence", 2018, as in Optax
    and PyTorch).

    Raises:
        UserError: a bad duration, a run without steps, a warm-up as long as the run, or boundaries
            that do not fit the scales.

    >>> config = ScheduleConfig(
    ...     "piecewise_epochs", 1, "0 steps", ("25%", "50%"), (1, 0.5, 0.25), power=1, final_scale=0
    ... )
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
    if config.name == "one_cycle" and warmup == 0:
        warmup = max(round(_RISING * total_steps), 1)
    if warmup >= total_steps:
        raise UserError(
            f'schedule.warmup "{config.warmup}" ({warmup} steps) must be shorter than the run '
            f"({total_steps} steps)"
        )
    if config.name == "one_cycle":
        # Half a step more, because Optax rounds down.
        return optax.cosine_onecycle_schedule(total_steps, peak, (warmup + 0.5) / total_steps)
    final = config.final_scale
    if config.name == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, total_steps - warmup, alpha=final)
    elif config.name == "polynomial":
        schedule = optax.polynomial_schedule(peak, final * peak, config.power, total_steps - warmup)
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
    config: OptimizerConfig,
    schedule: optax.Schedule,
    stages: Sequence[Sequence[str]] = (),
) -> optax.GradientTransformation:
    """The optimizer with a learning rate that follows the schedule.

    All are Optax's, with its defaults but for what follows. Gradients are scaled down to a norm of
    at most `clip_norm` over all trained parameters; 0 turns clipping off. `momentum` is that of
    "sgd" and "rmsprop". `weight_decay` applies to kernels only. With "sgd" and "rmsprop" it is
    added to the gradient before momentum, as in PyTorch. With "lamb" it is part of the update whose
    size is set. Otherwise it is decoupled: kernels shrink by the learning rate times the decay,
    which makes "adam" AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR
    2019).

    "muon" updates the kernels of the backbone, those of convolutions as matrices [height * width *
    in, out], and has Adam for all else: heads, as its author advises, depthwise kernels, which are
    no matrices, biases and normalisation.

    The learning rate of the backbone is the schedule's times `backbone_scale`, that of its stage
    number k of n, from 0, times `layer_decay`^(n - k) as well; heads have the schedule's (Bao et
    al., "BEiT", ICLR 2022, by layer).

    Args:
        config: the settings.
        schedule: the learning rate.
        stages: of the backbone, for each the prefixes of its parameters' names; for `layer_decay`.
    """
    # What is off leaves no trace in the optimizer's state, and so in checkpoints.
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay, name = config.weight_decay, config.name
    if decay and name in ("sgd", "rmsprop"):
        parts.append(optax.add_decayed_weights(decay, _kernels))
    if name == "adam" and not decay:
        parts.append(optax.adam(schedule))
    elif name in ("adam", "adamw"):
        parts.append(optax.adamw(schedule, weight_decay=decay, mask=_kernels))
    elif name == "lion":
        parts.append(optax.lion(schedule, weight_decay=decay, mask=_kernels))
    elif name == "lamb":
        parts.append(optax.lamb(schedule, weight_decay=decay, mask=_kernels))
    elif name == "sgd":
        parts.append(optax.sgd(schedule, momentum=config.momentum))
    elif name == "rmsprop":
        parts.append(optax.rmsprop(schedule, momentum=config.momentum))
    elif name == "adafactor":
        parts.append(optax.adafactor(schedule))
    else:
        parts.append(
            optax.contrib.muon(
                schedule,
                muon_weight_dimension_numbers=_muon_dimensions,
                consistent_rms=_MUON_RMS,
            )
        )
    if decay and name in ("adafactor", "muon"):
        # Optax's own is independent of the learning rate, or leaves out the kernels of heads.
        parts.append(optax.add_decayed_weights(lambda step: -decay * schedule(step), _kernels))
    if config.backbone_scale != 1:
        parts.append(optax.masked(optax.scale(config.backbone_scale), _backbone))
    if config.layer_decay != 1:
        parts.append(_scale_by_stage(config.layer_decay, stages))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _muon_dimensions(params: Any) -> Any:
    """For each parameter its axes of input and output, or None for those that are no matrices."""

    def dimensions(path: tuple[Any, ...], leaf: Any) -> Any:
        is_matrix = path[0].key == "backbone" and leaf.ndim > 1 and leaf.shape[-2] > 1
        axes = tuple(range(leaf.ndim - 1)), leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(*axes) if is_matrix else None

    return jax.tree.map_with_path(dimensions, params)


def _scale_by_stage(decay: float, stages: Sequence[Sequence[str]]) -> optax.GradientTransformation:
    """Multiplies the updates of the backbone's stage k of n, from 0, by decay^(n - k)."""

    def factor(name: str) -> float:
        number = next(n for n, prefixes in enumerate(stages) if in_stage(name, prefixes))
        return decay ** (len(stages) - number)

    def scale(updates: Any, params: Any) -> Any:
        backbone = {
            name: optax.tree.scale(factor(name), tree) for name, tree in updates["backbone"].items()
        }
        return {**updates, "backbone": backbone}

    return optax.stateless(scale)


def _kernels(params: Any) -> Any:
    """True for parameters that are multiplied with features: no biases, no normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _backbone(params: Any) -> Any:
    return {name: name == "backbone" for name in params}
