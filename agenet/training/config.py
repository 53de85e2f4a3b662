"""Settings of training: heads, optimizer and learning-rate schedule.

`configs/default.py` documents every field and states its default.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

_NotNegative = Annotated[float, Interval(ge=0, lt=math.inf)]


@dataclass(frozen=True)
class HeadsConfig:
    """The kind of head for each task, see `agenet.training.losses`."""

    age: Literal["groups", "distribution", "ordinal"]
    gender: Literal["softmax", "sigmoid"]

    def of(self, tasks: Sequence[str]) -> dict[str, str]:
        """The heads of the given tasks."""
        return {task: getattr(self, task) for task in tasks}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, see `agenet.training.optimizers.create_optimizer`."""

    name: Literal["adam", "adamw", "lion", "lamb", "sgd", "rmsprop", "adafactor", "muon"]
    momentum: _NotNegative
    backbone_scale: _NotNegative
    layer_decay: Annotated[float, Interval(gt=0, le=1)]
    clip_norm: _NotNegative
    weight_decay: _NotNegative


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time, see `agenet.training.optimizers.create_schedule`."""

    name: Literal["constant", "piecewise", "piecewise_epochs", "cosine", "polynomial", "one_cycle"]
    learning_rate: Annotated[float, Interval(gt=0, lt=math.inf)]
    warmup: str
    boundaries: tuple[str, ...]
    scales: tuple[float, ...]
    power: Annotated[float, Interval(gt=0, lt=math.inf)]
    final_scale: Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class DistillConfig:
    """Knowledge distillation, see `agenet.training.distillation`."""

    teacher: str
    weight: Annotated[float, Interval(gt=0, le=1)]
    temperature: Annotated[float, Interval(gt=0, lt=math.inf)]
