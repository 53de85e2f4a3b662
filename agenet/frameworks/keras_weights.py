"""Weights of the networks in `keras_networks`: their names and layout there, and assigning them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.weights.names import keras as names


def from_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """From agenet's names and layout, with one head, to those of `create_keras`'s network."""
    return _rgb(names.from_agenet(tensors, model))


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """From the names and layout of `create_keras`'s network to agenet's."""
    return names.to_agenet(_rgb(tensors), model)


def _rgb(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reverses the input channels of a ResNet: those of Keras applications take BGR."""
    name = "conv1_conv/kernel"
    reversed_ = {name: tensors[name][:, :, ::-1]} if name in tensors else {}
    return {**tensors, **reversed_}


def assign_keras(model: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Sets all variables of a Keras network except those that normalise its input.

    Raises:
        UserError: the tensors are of another network.
    """
    named = {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.variables
        if not layer.name.startswith(("normalization", "dropout")) and "seed" not in variable.name
    }
    if differing := named.keys() ^ tensors.keys():
        raise UserError(f"not the variables of {model.name}: {', '.join(sorted(differing)[:5])}")
    for name, variable in named.items():
        variable.assign(tensors[name])
