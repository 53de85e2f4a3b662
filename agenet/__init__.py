"""Age and gender classification from face images, in JAX and Flax."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agenet.inference.predictor import Predictor

# From 1.29 on ONNX Runtime sends telemetry and writes an identifier below the home folder, unless
# this is set before its first import. Every module of agenet is imported after this one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Predictor"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line must not wait for NumPy and OpenCV.
    if name == "Predictor":
        return import_module("agenet.inference.predictor").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
