"""Networks by name: EfficientNet, ResNet and Levi-Hassner with a head for each task."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike

from agenet.errors import UserError, did_you_mean
from agenet.models.classifier import Classifier
from agenet.models.efficientnet import EfficientNet
from agenet.models.levi_hassner import LeviHassner
from agenet.models.resnet import DEPTHS, ResNet

# Constructors of backbones. A backbone has FLAVOURS; STAGES, from the input to the output, each a
# tuple of prefixes of its parameters' names; and `input_size`, the side of its square input images
# in pixels.
MODELS: dict[str, Callable[..., Any]] = {
    "levi_hassner": LeviHassner,
    **{f"resnet{depth}": partial(ResNet, depth) for depth in DEPTHS},
    **{f"efficientnet_b{i}": partial(EfficientNet, f"b{i}") for i in range(8)},
    **{
        f"efficientnet_lite{i}": partial(EfficientNet, f"lite{i}", flavour="tensorflow")
        for i in range(5)
    },
    **{
        f"efficientnet_v2_b{i}": partial(EfficientNet, f"v2_b{i}", flavour="tensorflow")
        for i in range(4)
    },
}


def create_model(
    name: str, num_classes: Mapping[str, int], *, dtype: DTypeLike = jnp.float32, **options: Any
) -> Classifier:
    """Creates a network with a head for each task.

    Args:
        name: one of `MODELS`.
        num_classes: for each task the number of its classes, such as {"age": 8, "gender": 2}.
        dtype: type of the computation; parameters are float32.
        **options: fields of the backbone or of `Classifier`; an empty `flavour` is the default one.

    Raises:
        UserError: unknown name, option or flavour.
    """
    unknown = options.keys() - option_names(name)
    if unknown:
        known = ", ".join(sorted(option_names(name)))
        raise UserError(f"{name} has no option {unknown.pop()!r} (it has: {known})")
    if not options.get("flavour"):
        options.pop("flavour", None)
    # The dropout rate of Levi-Hassner is that of its hidden layers, not of the heads.
    own = {key: options.pop(key) for key in _backbone_fields(name) & options.keys()}
    network = MODELS[name](dtype=dtype, **own)
    if network.flavour not in network.FLAVOURS:
        known = ", ".join(network.FLAVOURS)
        raise UserError(f"{name} has no flavour {network.flavour!r} (it has: {known})")
    return Classifier(network, FrozenDict(num_classes), dtype=dtype, **options)


def option_names(name: str) -> set[str]:
    """The options of the network `name` except `dtype`; raises `UserError` if it is unknown."""
    if name not in MODELS:
        raise UserError(
            f"no model {name!r}{did_you_mean(name, MODELS)} (it is one of {', '.join(MODELS)})"
        )
    return _backbone_fields(name) | (_fields(Classifier) - {"backbone", "num_classes"})


def _backbone_fields(name: str) -> set[str]:
    return _fields(getattr(MODELS[name], "func", MODELS[name])) - {"depth", "variant"}


def _fields(module: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(module)} - {"parent", "name", "dtype"}
