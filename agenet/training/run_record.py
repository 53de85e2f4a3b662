"""What a checkpoint records of its run besides the state, and the one check of it when it is read.

The record is JSON that a failing disk or a stranger may have changed. The classes name what agenet
uses of it; all else, such as most of the configuration, is checked by those who use it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from agenet.errors import printable
from agenet.training.config import HeadsConfig

_Count = Annotated[int, Ge(0)]
_Seconds = Annotated[FiniteFloat, Ge(0)]
_Rate = Annotated[float, Interval(ge=0, le=1)]
_Positive = Annotated[FiniteFloat, Gt(0)]


@dataclass
class Progress:
    """What a resumed run must know besides its state; saved with every checkpoint."""

    # Of all sessions, without the time that saving takes.
    training_seconds: _Seconds = 0.0
    validation_seconds: _Seconds = 0.0
    evaluated_step: _Count = 0  # the last one that was validated
    improved_step: _Count = 0  # the last validated one that was better than all before
    stopped_early: bool = False  # by the config's patience; the run is then complete
    epochs_found: _Count = 0  # number whose features were cached when the run started
    rows: _Count = 0  # number written to metrics.jsonl
    rows_digest: str = ""  # of these, see `agenet.evaluation.history.digest_row`
    sums: dict[str, FiniteFloat] = field(default_factory=dict)  # over the steps since the last row


# Fields with a default were added later: records of earlier versions lack them.
@dataclass(frozen=True)
class _Model:
    name: str
    flavour: str = ""
    dropout_rate: _Rate = 0.0
    drop_path_rate: _Rate = 0.0
    extra_layers: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class _Input:
    size: Annotated[int, Interval(ge=1, le=10_000)]
    crop_size: Annotated[int, Interval(ge=0, le=10_000)]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Positive, _Positive, _Positive]


@dataclass(frozen=True)
class _Config:
    seed: _Count
    init: str
    model: _Model
    input: _Input
    heads: HeadsConfig = field(default_factory=lambda: HeadsConfig("groups", "softmax"))


@dataclass(frozen=True)
class _Dataset:
    name: str
    fingerprint: str
    pictures: str = ""


@dataclass(frozen=True)
class _Machine:
    devices: str
    processor: str
    versions: dict[str, str]


@dataclass(frozen=True)
class _Initial:
    digest: str | None = None
    data: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Record:
    step: _Count
    config: _Config
    dataset: _Dataset
    splits: dict[str, int]
    classes: dict[Literal["age", "gender"], list[str]]
    progress: Progress = field(default_factory=Progress)
    total_steps: _Count = 0
    asked: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    machine: _Machine = _Machine("", "", {})
    trained_on: dict[str, str] = field(default_factory=dict)
    initial: _Initial = _Initial()
    digests: dict[str, str] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class _BestRecord(_Record):
    metric: str
    value: FiniteFloat


def parse_record(content: bytes, *, best: bool) -> dict[str, Any]:
    """Parses and checks a record.

    Args:
        content: JSON, as it was saved.
        best: whether it belongs to the best state, whose metric it then has.

    Raises:
        ValueError: it is not the record of a run; the message names the first wrong field.
    """
    try:
        record: dict[str, Any] = json.loads(content)
        # As JSON again: there lists may stand for tuples even though types are strict.
        _adapter(best).validate_json(json.dumps(record), strict=True)
    except ValidationError as error:
        raise ValueError(f"its record of the run is damaged, {_describe(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("its record of the run is damaged, it is not JSON") from error
    return record


def parse_progress(record: Mapping[str, Any]) -> Progress:
    """The progress in a checked record."""
    return TypeAdapter(Progress).validate_python(record.get("progress", {}))


def is_complete(record: Mapping[str, Any]) -> bool:
    """Whether `record`, that of a latest checkpoint, is of a finished run."""
    progress = record.get("progress", {})
    at_end = record["step"] >= record.get("total_steps", 0)
    validated = progress.get("evaluated_step", record["step"]) >= record["step"]
    return progress.get("stopped_early", False) or (at_end and validated)


@functools.cache
def _adapter(best: bool) -> TypeAdapter[Any]:
    return TypeAdapter(_BestRecord if best else _Record)


def _describe(error: ValidationError) -> str:
    """One line on the first of pydantic's errors."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Input should be ")
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{printable(name) or 'it'} must be {message}"
