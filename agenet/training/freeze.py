"""Splits a network's parameters into frozen and trained ones."""

import re
from collections.abc import Sequence
from typing import Any

from agenet.errors import UserError

Params = dict[str, Any]


def count_frozen(freeze: str, stages: int) -> int:
    """The number of frozen stages of a backbone, counted from the input.

    Args:
        freeze: the config's field, see the examples below.
        stages: the number of the backbone's stages.

    Raises:
        UserError: `freeze` is malformed, or the backbone has fewer stages.

    >>> [count_frozen(freeze, 5) for freeze in ("none", "backbone", "all but 2 stages")]
    [0, 5, 3]
    """
    if freeze in ("none", "backbone"):
        return 0 if freeze == "none" else stages
    found = re.fullmatch(r"all but (\d+) stages?", " ".join(freeze.split()))
    if not found:
        raise UserError(
            f'freeze "{freeze}" is not known: use "none", "backbone" or, for example, '
            '"all but 2 stages"'
        )
    if int(found[1]) > stages:
        raise UserError(f'freeze "{freeze}": the network has {stages} stages')
    return stages - int(found[1])


def in_stage(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a part of a backbone belongs to the stage with these prefixes of names."""
    return any(name == prefix or name.startswith(f"{prefix}_") for prefix in prefixes)


def split_params(params: Params, frozen: Sequence[Sequence[str]]) -> tuple[Params, Params]:
    """Splits parameters into a tree of trained and one of frozen ones.

    Args:
        params: parameters of a `Classifier`.
        frozen: for each frozen stage of its backbone, the prefixes of its parameters' names.
    """
    backbone = params["backbone"]
    kept = {
        name: value
        for name, value in backbone.items()
        if any(in_stage(name, stage) for stage in frozen)
    }
    trained = {name: value for name, value in backbone.items() if name not in kept}
    return {**params, "backbone": trained}, {"backbone": kept}


def merge_params(trained: Params, frozen: Params) -> Params:
    """The inverse of `split_params`."""
    return {**trained, "backbone": {**trained["backbone"], **frozen["backbone"]}}
