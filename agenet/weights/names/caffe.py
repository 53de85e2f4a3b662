"""Name map of the networks that Levi and Hassner published as Caffe models."""

from collections.abc import Collection, Mapping

import numpy as np

from agenet.errors import UserError
from agenet.weights.names.common import check_known, check_placed, first_head, split_name

_PATHS = {
    "conv1": "backbone/conv1",
    "conv2": "backbone/conv2",
    "conv3": "backbone/conv3",
    "fc6": "backbone/fc1",
    "fc7": "backbone/fc2",
}
_LEAVES = {"0": "kernel", "1": "bias"}
# The task of a published network by its number of classes, and where our classes are among its own:
# the order of the age groups is that of `agenet.labels.AGE_GROUPS`, but male comes before female.
_TASKS = {8: ("age", list(range(8))), 2: ("gender", [1, 0])}


def matches(names: Collection[str]) -> bool:
    return {"conv1/0", "conv2/0", "conv3/0", "fc6/0", "fc7/0", "fc8/0"} <= set(names)


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors under our names and in our layout.

    The Caffe networks take BGR and ours RGB, so the input channels of the first kernel are
    reversed. Their first dense layer takes feature maps flattened as channels, rows, columns; ours
    as rows, columns, channels.

    Raises:
        UserError: a tensor has no counterpart in our network, or the last layer no bias.
    """
    result, unknown = {}, []
    for name, tensor in tensors.items():
        layer, _, number = name.rpartition("/")
        task, order = _task(tensors) if layer == "fc8" else ("", [])
        path = f"heads/{task}" if task else _PATHS.get(layer)
        if path is None or number not in _LEAVES:
            unknown.append(name)
            continue
        if number == "1":
            tensor = tensor.reshape(-1)
        elif layer.startswith("conv"):
            tensor = tensor.transpose(2, 3, 1, 0)
        else:
            tensor = tensor.reshape(tensor.shape[-2:])
            if layer == "fc6":
                tensor = _rows_first(tensor, channels=len(tensors["conv3/0"]))
            tensor = tensor.T
        if layer == "conv1" and number == "0":
            tensor = tensor[:, :, ::-1]
        result[f"params/{path}/{_LEAVES[number]}"] = tensor[..., order] if task else tensor
    check_known(unknown, "Levi and Hassner's Caffe models")
    return result


def from_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a network with one head under Caffe's names.

    A head of two classes is written in the published order: male, female.

    Raises:
        UserError: a tensor has no counterpart in the Caffe network.
    """
    layers = {path: layer for layer, path in _PATHS.items()}
    layers |= dict.fromkeys(first_head(tensors), "fc8")
    result, unplaced = {}, []
    for name, tensor in tensors.items():
        path, template = split_name(name)
        layer = layers.get(path)
        number = {"params/{}/kernel": "0", "params/{}/bias": "1"}.get(template)
        if layer is None or number is None:
            unplaced.append(name)
            continue
        if layer == "fc8" and tensor.shape[-1] in _TASKS:
            tensor = tensor[..., _TASKS[tensor.shape[-1]][1]]
        if number == "0" and layer == "conv1":
            tensor = tensor[:, :, ::-1]
        if number == "0" and layer == "fc6":
            tensor = _channels_first(tensor, tensors["params/backbone/conv3/bias"].size)
        moved = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        result[f"{layer}/{number}"] = np.ascontiguousarray(moved)
    check_placed(unplaced, "Levi and Hassner's Caffe models")
    return result


def _task(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[int]]:
    classes = tensors["fc8/1"].size if "fc8/1" in tensors else 0
    if not classes:
        raise UserError("fc8 has no classes")
    return _TASKS.get(classes, ("classes", list(range(classes))))


def _rows_first(matrix: np.ndarray, channels: int) -> np.ndarray:
    """Reorders columns from channels, rows, columns of a square map to rows, columns, channels."""
    side = round((matrix.shape[1] / channels) ** 0.5)
    if side * side * channels != matrix.shape[1]:
        raise UserError(f"fc6 takes {matrix.shape[1]} values, no square of {channels} channels")
    return matrix.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(matrix.shape)


def _channels_first(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Reorders rows from rows, columns, channels of a square map to channels, rows, columns."""
    side = round((len(kernel) / channels) ** 0.5)
    return kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
