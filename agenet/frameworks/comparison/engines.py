"""The frameworks that can be compared, by name."""

import importlib.util

from agenet.frameworks.comparison.engine import Framework
from agenet.frameworks.comparison.in_jax import Jax
from agenet.frameworks.comparison.in_keras import Keras
from agenet.frameworks.comparison.in_torch import Torch

ENGINES: dict[str, type[Framework]] = {"jax": Jax, "torch": Torch, "keras": Keras}
_MODULES = {
    "jax": ("jax", "flax"),
    "torch": ("torch", "torchvision"),
    "keras": ("keras", "tensorflow"),
}


def not_installed(framework: str) -> str:
    """A module that a framework needs and that is not installed, or nothing."""
    absent = (n for n in _MODULES[framework] if importlib.util.find_spec(n) is None)
    return next(absent, "")
