"""Runs a function of the user's own, which predicts faces, as a predictor.

The function is named on the command line as MODULE:FUNCTION or FILE.py:FUNCTION. It takes a list of
images, RGB uint8 [H, W, 3], each of one face, and returns two sequences with a number for each
image, or None in place of either: ages in years, and probabilities of being male.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError, did_you_mean, printable
from agenet.faces.face import Prediction
from agenet.files import expand_home
from agenet.labels import GENDERS, MAX_AGE

SIZE = 224  # pixels; side of the faces that are cropped for a plugin
_OLDEST = 150  # years
_PLUGIN = re.compile(r"(?P<module>.+):(?P<function>[A-Za-z_]\w*)")

PluginFunction = Callable[[list[np.ndarray]], tuple[Any, Any]]


def is_plugin(name: str) -> bool:
    """Whether this is MODULE:FUNCTION or FILE.py:FUNCTION."""
    return _PLUGIN.fullmatch(name) is not None


class Plugin:
    """Predicts with a function of the user's own.

    Args:
        name: MODULE:FUNCTION or FILE.py:FUNCTION.

    Raises:
        UserError: there is no such function, or importing it fails.
    """

    size = SIZE

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = _load(name)

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction | None]:
        """Predicts images, RGB uint8 [H, W, 3], of one face each; None where there is nothing.

        Raises:
            UserError: the function fails or returns something else than it should.
        """
        try:
            returned = self._function(list(images))
        except Exception as error:  # Of any kind: it is not agenet's code.
            raise UserError(f"{self.name} raised {_describe(error)}") from error
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise UserError(
                f"{self.name} must return a pair (ages, probabilities of being male), not "
                f"{_shape(returned)}"
            )
        ages = self._numbers(returned[0], "ages", len(images), _OLDEST)
        male = self._numbers(returned[1], "probabilities of being male", len(images), 1)
        return [_prediction(a, m) for a, m in zip(ages, male, strict=True)]

    def _numbers(
        self, values: Any, what: str, count: int, largest: float
    ) -> Sequence[float | None]:
        if values is None:
            return [None] * count
        try:
            found = [None if v is None else float(v) for v in values]
        except (TypeError, ValueError):
            raise UserError(
                f"{self.name} returned {_shape(values)} as {what}: return {count} numbers, one for "
                "each image, or None for an image without a prediction"
            ) from None
        if len(found) != count:
            raise UserError(f"{self.name} returned {len(found)} {what} for {count} images")
        for at, value in enumerate(found):
            if value is not None and not 0 <= value <= largest:
                raise UserError(
                    f"{self.name} returned {value:g} among its {what}, for image {at + 1} of a "
                    f"list of {count}: they must be from 0 to {largest:g}, or None"
                )
        return found


def _prediction(age: float | None, male: float | None) -> Prediction | None:
    if age is None and male is None:
        return None
    if male is None:
        return Prediction(age=None if age is None else min(age, MAX_AGE))
    return Prediction(
        age=None if age is None else min(age, MAX_AGE),
        gender=GENDERS[male > 0.5],
        gender_probability=max(male, 1 - male),
    )


def _load(name: str) -> PluginFunction:
    match = _PLUGIN.fullmatch(name)
    if match is None:
        raise UserError(f'"{name}" is not MODULE:FUNCTION or FILE.py:FUNCTION')
    source, function = match["module"], match["function"]
    try:
        module = _import_file(source) if source.endswith(".py") else importlib.import_module(source)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        missing = printable(str(error.name))
        advice = "" if source.endswith(".py") else ", or name a file, as in FILE.py:FUNCTION"
        raise UserError(
            f"{name}: there is no module {missing}: install it, or set PYTHONPATH to its "
            f"folder{advice}"
        ) from error
    except Exception as error:
        raise UserError(f"{name}: importing it raised {_describe(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(f"{source} has no function {function}{did_you_mean(function, known)}")
    return found


def _import_file(path: str) -> Any:
    file = expand_home(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    name = f"agenet_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # It ends in .py.
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # As dataclasses and pickling need it.
    spec.loader.exec_module(module)
    return module


def _describe(error: Exception) -> str:
    """Kind and text of an error, and where in the user's code it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).splitlines() or [""])[0]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return printable(f"{type(error).__name__}: {text}", 300) + f" ({place})"


def _shape(value: Any) -> str:
    """What something is, in few words."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {printable(str(tuple(shape)))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"
