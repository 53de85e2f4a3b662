"""Opens the predictors that `agenet evaluate` compares: weights, runs and functions of users."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agenet.errors import UserError, printable
from agenet.faces.face import Prediction
from agenet.files import expand_home, is_address
from agenet.inference.engines import create_engine
from agenet.inference.plugin import Plugin, is_plugin
from agenet.inference.predictor import Predictor
from agenet.places.weights import find_weights
from agenet.weights.bundled import DEFAULT

Predict = Callable[[Sequence[np.ndarray]], Sequence[Prediction | None]]


@dataclass(frozen=True)
class Model:
    """A predictor that can be run.

    Attributes:
        name: unique on the page.
        source: what it is, for the report.
        size: side of the faces that are cut for it, in pixels.
        predict: predicts images of one face each.
        trained_on: see `agenet.weights.spec.WeightsSpec`; None where nobody knows.
    """

    name: str
    source: str
    size: int
    predict: Predict
    trained_on: Mapping[str, str] | None = field(default=None, repr=False)


def open_models(
    arguments: Sequence[str], engine: str = "auto", threads: int | None = None
) -> list[Model]:
    """Loads predictors, each given as WEIGHTS, RUN or PLUGIN, or as NAME= and one of these.

    Args:
        arguments: "default", weights files, folders of runs, addresses of these, MODULE:FUNCTION
            or FILE.py:FUNCTION.
        engine, threads: see `agenet.inference.engines.create_engine`.

    Raises:
        UserError: one of them cannot be loaded.
    """
    models = []
    for argument in arguments:
        label, path = split_name(argument)
        if path == DEFAULT or is_address(path) or Path(path).exists() or not is_plugin(path):
            models.append(_open_weights(label, path, engine, threads))
        else:
            plugin = Plugin(path)
            name = label or path.rpartition("/")[2]
            source = f"the function {printable(path, 200)}"
            models.append(Model(name, source, plugin.size, plugin.predict))
    return models


def split_name(argument: str) -> tuple[str, str]:
    """The label, or "", and the rest of NAME=PATH; folders of sweeps have "=" in their names."""
    label, equals, path = argument.partition("=")
    named = equals and not is_address(argument) and not Path(argument).exists()
    return (label, path) if named else ("", argument)


def _open_weights(label: str, path: str, engine: str, threads: int | None) -> Model:
    if path != DEFAULT and not is_address(path) and not expand_home(path).exists():
        raise UserError(
            f'there is no predictor "{path}": give {DEFAULT}, a .safetensors file, the folder of a '
            "run, an address of one, FILE.py:FUNCTION or MODULE:FUNCTION"
        )
    network = create_engine(find_weights(path), engine, threads)
    spec = network.spec
    trained = f"; trained on faces of {', '.join(spec.trained_on)}" if spec.trained_on else ""
    heads = ", ".join(f"{task} ({kind})" for task, kind in spec.heads.items())
    return Model(
        name=label or (path if path == DEFAULT else Path(path).resolve().name),
        source=f"{spec.model}, {heads or ', '.join(spec.classes)}; {printable(path, 200)}{trained}",
        size=spec.stored_size,
        predict=Predictor(network).predict,
        trained_on=spec.trained_on or None,
    )
