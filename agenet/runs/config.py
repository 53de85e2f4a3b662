"""The typed configuration of a run, and the one place where a configuration is checked.

Config files and flags come in as nested dictionaries, see `agenet.main`, as do the configurations
that checkpoints and reports record. `parse_config` turns either into a `RunConfig`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from agenet.data.config import Augmentation, DatasetConfig, InputConfig
from agenet.errors import UserError, did_you_mean, printable
from agenet.evaluation.metrics import LAST
from agenet.labels import TASK_CLASSES
from agenet.models import option_names
from agenet.models.config import ModelConfig
from agenet.runs.identity import ADDED_FIELDS, with_present_names
from agenet.training.config import (
    DistillConfig,
    HeadsConfig,
    OptimizerConfig,
    ScheduleConfig,
)

# Per channel, RGB, 0 to 255: used where neither the config nor the initial weights say otherwise.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Mean absolute error, and share at most five years off.
IN_YEARS = ("validation/age_mae", "validation/age_cs5")

_Share = Annotated[float, Interval(ge=0, lt=1)]
_Tracker = Literal["tensorboard", "mlflow", "wandb"]


def _split_names(value: Any) -> Any:
    """Several names, of which a flag may hold some in one text: "mlflow,wandb", or none."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    names = [name.strip() for text in texts for name in text.split(",")]
    return tuple(dict.fromkeys(filter(None, names)))


@dataclass(frozen=True)
class RunConfig:
    """The configuration of one run. `configs/default.py` documents every field."""

    seed: Annotated[int, Ge(0)]
    tasks: str
    dataset: DatasetConfig
    input: InputConfig
    augment: Augmentation
    model: ModelConfig
    init: str
    new_parts: str
    freeze: str
    feature_cache: Literal["auto", "off"]
    feature_cache_bytes: Annotated[int, Ge(0)]
    heads: HeadsConfig
    batch_size: Annotated[int, Ge(1)]
    accumulate: Annotated[int, Ge(1)]
    duration: str
    label_smoothing: _Share
    class_weights: Literal["none", "balanced"]
    distill: DistillConfig
    ema: _Share
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    best: str
    patience: str
    test_views: Literal[1, 2, 4]
    evaluate_every: str
    checkpoint_every: str
    log_every: str
    trackers: Annotated[tuple[_Tracker, ...], BeforeValidator(_split_names)]

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, in the order of `TASK_CLASSES`.

        Raises:
            UserError: none is given, or an unknown one.
        """
        names = {name.strip() for name in self.tasks.split(",")}
        if not names or not names <= TASK_CLASSES.keys():
            raise UserError(f'tasks "{self.tasks}" must be "age", "gender" or "age,gender"')
        return tuple(task for task in TASK_CLASSES if task in names)

    @property
    def new_part_names(self) -> tuple[str, ...]:
        """Parts of the network that are not taken from the initial weights."""
        return tuple(filter(None, map(str.strip, self.new_parts.split(","))))


def parse_config(fields: Mapping[str, Any]) -> RunConfig:
    """Checks a configuration and gives it types.

    Args:
        fields: by name, nested as in `RunConfig`. Fields that were added after the first version
            may be missing: they get the value that stands for the behaviour before they existed.

    Raises:
        UserError: one line that names the first wrong field and, where there is one, the nearest
            right name or value.
    """
    flat = with_present_names(flatten_dict(dict(fields), sep="."))
    known = field_names()
    for name in flat:
        if name not in known:
            name = printable(name)
            raise UserError(f"unknown config field {name}{did_you_mean(name, known)}")
    nested = unflatten_dict(ADDED_FIELDS | flat, sep=".")
    try:
        config = _adapter().validate_python(nested)
    except ValidationError as error:
        raise UserError(_describe(error.errors()[0])) from error
    _check_combinations(config)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The inverse of `parse_config`: nested dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def field_names(section: Any = RunConfig, prefix: str = "") -> list[str]:
    """The dotted names of all fields, such as "seed" and "dataset.name"."""
    names: list[str] = []
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            names += field_names(field.type, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def validation_metrics(tasks: Sequence[str]) -> list[str]:
    """The names of all scalars that a validation may measure; the best state is chosen by one.

    For those of `IN_YEARS` see `agenet.runs.experiment.Experiment.measures_years`.
    """
    names = ["loss", "accuracy"]
    for task in tasks:
        names += [f"{task}_loss", f"{task}_accuracy"]
        names += ["age_one_off"] if task == "age" else []
    names = [f"validation/{name}" for name in names]
    return names + [*IN_YEARS] if "age" in tasks else names


@functools.cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _describe(error: Mapping[str, Any]) -> str:
    """One line for one of the errors that pydantic reports."""
    name = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    value, message = error["input"], error["msg"].removeprefix("Input should be ")
    if error["type"] == "missing":
        return f"the config lacks the field {name}: start from configs/default.py"
    if error["type"] == "literal_error":
        choices = message.replace("'", '"')
        return f"{name} {_show(value)} is not known: use {choices}"
    return f"{name} {_show(value)} must be {message}"


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f'"{printable(value)}"'
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _check_combinations(config: RunConfig) -> None:
    """Checks what types and bounds of single fields cannot express."""
    option_names(config.model.name)  # Raises for an unknown network.
    metrics = validation_metrics(config.task_names)
    if config.best not in (LAST, *metrics):
        raise UserError(
            f'best "{config.best}" is not measured: use "{LAST}" or one of {", ".join(metrics)}'
        )
    if config.patience and config.best == LAST:
        raise UserError(
            f'patience "{config.patience}" has no metric to watch, as best is "{LAST}": use '
            "--config.best=validation/loss, or no patience"
        )
    if config.init == "random" and config.freeze != "none":
        raise UserError(f'freeze "{config.freeze}" of random weights: give --config.init, too')
    for name, values in (("mean", config.input.mean), ("std", config.input.std)):
        if len(values) not in (0, 3) or not all(map(math.isfinite, values)):
            raise UserError(f"input.{name} {values} must be three numbers, for R, G, B")
    if any(value <= 0 for value in config.input.std):
        raise UserError(f"input.std {config.input.std} must be positive")
