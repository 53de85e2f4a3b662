"""Specification of a set of weights: its network, input and provenance, as stored in its file."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from agenet.errors import UserError, printable
from agenet.labels import HEADS

RGB = tuple[float, float, float]

# The naming schemes with a name map, and our own.
SOURCES = ("torchvision", "timm", "keras", "lite", "caffe", "agenet")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area", "lanczos")
_LONGEST_TEXT = 1000
_LONGEST_JSON = 10_000_000  # ten times what the largest data set's subjects take
# A value of `trained_on`: all subjects of the data set except those of its fold 0.
NOT_FOLD_0 = "all outside fold 0"
_LARGEST_SIZE = 10_000
_MOST_TASKS = 100
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class InputSpec:
    """The input that a network of this package expects with these weights.

    The network takes `(image - mean) / std` of an RGB image with values 0 to 255, whatever channel
    order and range the framework of origin uses.

    Attributes:
        size: side of the square input, in pixels.
        mean: mean per channel R, G, B, for values from 0 to 255.
        std: standard deviation, likewise.
        interpolation: method of resizing, one of `INTERPOLATIONS`.
        crop_fraction: side of the central crop as a fraction of the resized image's shorter side.
    """

    size: int
    mean: RGB
    std: RGB
    interpolation: str
    crop_fraction: float


@dataclass(frozen=True)
class WeightsSpec:
    """Network, input and provenance of a set of weights.

    Attributes:
        model: name of the network in the registry, such as "resnet50".
        flavour: variant of the network that the weights need, such as "torchvision".
        classes: number of classes of each task, such as {"imagenet": 1000}; none for a backbone
            without heads.
        input: the input that the network expects.
        source: naming scheme of the original file, one of `SOURCES`.
        origin: address or package that the original file came from.
        sha256: hash of the original file, 64 hexadecimal digits; None if unknown.
        licence: licence of the weights, as their publisher states it.
        heads: kind of the head of each task, such as {"age": "distribution"}, see
            `agenet.training.losses`; none for other tasks.
        trained_on: subjects in the training data, by data set, see `agenet.runs.lineage`; empty
            if unknown.
    """

    model: str
    flavour: str
    classes: dict[str, int]
    input: InputSpec
    source: str
    origin: str
    sha256: str | None
    licence: str
    heads: dict[str, str] = field(default_factory=dict)
    trained_on: dict[str, str] = field(default_factory=dict)

    @property
    def stored_size(self) -> int:
        """Side of the square that an image is resized to before its centre is cropped."""
        return round(self.input.size / self.input.crop_fraction)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "WeightsSpec":
        """Reads the untrusted text of a file that `to_json` may have written.

        Raises:
            UserError: the text is not JSON, or a field is missing, unknown, of another type or out
                of range.
        """
        if len(text) > _LONGEST_JSON:
            raise UserError(f"weights specification: longer than {_LONGEST_JSON} characters")
        try:
            # Very long integers and deep nesting raise here too, the latter possibly not before
            # it is quoted in a message.
            return _weights_spec(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"weights specification: not JSON ({error})") from error


def _weights_spec(value: object) -> WeightsSpec:
    if isinstance(value, dict):
        value = {"heads": {}, "trained_on": {}} | value  # Older files lack these fields.
    return WeightsSpec(
        **_fields(
            value,
            "",
            model=_text,
            flavour=_text,
            classes=_classes,
            input=_input_spec,
            source=_one_of(SOURCES),
            origin=_text,
            sha256=_sha256,
            licence=_text,
            heads=_heads,
            trained_on=_trained_on,
        )
    )


def _input_spec(value: object, name: str) -> InputSpec:
    return InputSpec(
        **_fields(
            value,
            f"{name}.",
            size=lambda size, name: _integer(size, name, _LARGEST_SIZE),
            mean=lambda mean, name: _rgb(mean, name, 0.0),
            std=lambda std, name: _rgb(std, name, 1e-3),
            interpolation=_one_of(INTERPOLATIONS),
            crop_fraction=lambda fraction, name: _number(fraction, name, 0.01, 1.0),
        )
    )


def _fields(
    value: object, prefix: str, **readers: Callable[[object, str], object]
) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != readers.keys():
        have = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        where = prefix.rstrip(".") or "weights specification"
        raise UserError(
            f"{where} must have the fields {', '.join(readers)}, not {printable(have, 200)}"
        )
    return {name: read(value[name], prefix + name) for name, read in readers.items()}


def _wrong(name: str, value: object, expected: str) -> UserError:
    return UserError(f"weights specification: {name} must be {expected}, not {value!r:.100}")


def _text(value: object, name: str) -> str:
    # Must not contain control characters, since it is shown in terminals.
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise _wrong(name, value, f"printable text of at most {_LONGEST_TEXT} characters")
    return value


def _one_of(choices: tuple[str, ...]) -> Callable[[object, str], str]:
    def read(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _wrong(name, value, f"one of {', '.join(choices)}")
        return value

    return read


def _integer(value: object, name: str, largest: int) -> int:
    if type(value) is not int or not 1 <= value <= largest:
        raise _wrong(name, value, f"an integer from 1 to {largest}")
    return value


def _number(value: object, name: str, smallest: float, largest: float) -> float:
    # NaN is in no range; bool is a subclass of int.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, value, "a number")
    if not smallest <= value <= largest:
        raise _wrong(name, value, f"from {smallest:g} to {largest:g}")
    return float(value)


def _rgb(value: object, name: str, smallest: float) -> RGB:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise _wrong(name, value, "three numbers")
    red, green, blue = (_number(part, name, smallest, 1000.0) for part in value)
    return red, green, blue


def _classes(value: object, name: str) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > _MOST_TASKS:
        raise _wrong(name, value, "tasks with their numbers of classes")
    return {
        _text(task, name): _integer(count, f"{name}.{task:.50}", _MOST_CLASSES)
        for task, count in value.items()
    }


def _heads(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(task, str) and head in HEADS.get(task, ()) for task, head in value.items()
    ):
        raise _wrong(name, value, f"heads of tasks, such as {HEADS}")
    return dict(value)


def _trained_on(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > _MOST_TASKS:
        raise _wrong(name, value, "data sets with their subjects")
    for data_set, subjects in value.items():
        _text(data_set, name)
        try:
            valid = (
                subjects == NOT_FOLD_0 or len(base64.b64decode(subjects, validate=True)) % 8 == 0
            )
        except (ValueError, TypeError):
            valid = False
        if not valid:
            raise _wrong(f"{name}.{data_set:.50}", subjects, "base64 of 64-bit integers")
    return dict(value)


def _sha256(value: object, name: str) -> str | None:
    if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        raise _wrong(name, value, "64 hexadecimal digits or null")
    return value
