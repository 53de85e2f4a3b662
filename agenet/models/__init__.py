"""The networks by name."""

import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

from agenet.errors import UserError
from agenet.models.levi_hassner import LeviHassner

MODELS: dict[str, type[nn.Module]] = {"levi_hassner": LeviHassner}


def create_model(name: str, num_classes: Mapping[str, int], **options: Any) -> nn.Module:
    """The network `name` with one head per task, for example {"age": 8, "gender": 2}.

    `options` are fields of the network's class, such as `dropout_rate` or `dtype`. The side of
    its square input in pixels is its `input_size`.

    Raises:
        UserError: no network has this name.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(MODELS))
        raise UserError(f"no model {name!r}; did you mean {nearest!r}? (known: {known})")
    return MODELS[name](num_classes=FrozenDict(num_classes), **options)
