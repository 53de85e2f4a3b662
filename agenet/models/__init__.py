"""The networks by name."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike

from agenet.errors import UserError
from agenet.models.classifier import Classifier
from agenet.models.efficientnet import EfficientNet
from agenet.models.levi_hassner import LeviHassner
from agenet.models.resnet import DEPTHS, ResNet

# What builds a backbone. It has FLAVOURS, STAGES (from the input on, prefixes of the names of
# their parameters) and an `input_size`, the side in pixels of the square it is made for.
MODELS: dict[str, Callable[..., Any]] = {
    "levi_hassner": LeviHassner,
    **{f"resnet{depth}": partial(ResNet, depth) for depth in DEPTHS},
    **{f"efficientnet_b{i}": partial(EfficientNet, f"b{i}") for i in range(8)},
    **{
        f"efficientnet_lite{i}": partial(EfficientNet, f"lite{i}", flavour="tensorflow")
        for i in range(5)
    },
}


def create_model(
    name: str, num_classes: Mapping[str, int], *, dtype: DTypeLike = jnp.float32, **options: Any
) -> Classifier:
    """The network `name` with one head per task, for example {"age": 8, "gender": 2}.

    `options` are fields of the network's backbone or of `Classifier`; an empty `flavour` is the
    network's usual one.

    Raises:
        UserError: no network has this name, or it has no such option or flavour.
    """
    unknown = options.keys() - option_names(name)
    if unknown:
        known = ", ".join(sorted(option_names(name)))
        raise UserError(f"{name} has no option {unknown.pop()!r} (it has: {known})")
    if not options.get("flavour"):
        options.pop("flavour", None)
    # The Levi-Hassner network drops between its own hidden layers, not before the heads.
    own = {key: options.pop(key) for key in _backbone_fields(name) & options.keys()}
    network = MODELS[name](dtype=dtype, **own)
    if network.flavour not in network.FLAVOURS:
        known = ", ".join(network.FLAVOURS)
        raise UserError(f"{name} has no flavour {network.flavour!r} (it has: {known})")
    return Classifier(network, FrozenDict(num_classes), dtype=dtype, **options)


def option_names(name: str) -> set[str]:
    """The options of the network `name`, but for `dtype`; raises `UserError` without one."""
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
        known = ", ".join(MODELS)
        raise UserError(f"no model {name!r}; did you mean {nearest!r}? (known: {known})")
    return _backbone_fields(name) | (_fields(Classifier) - {"backbone", "num_classes"})


def _backbone_fields(name: str) -> set[str]:
    return _fields(getattr(MODELS[name], "func", MODELS[name])) - {"depth", "variant"}


def _fields(module: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(module)} - {"parent", "name", "dtype"}
