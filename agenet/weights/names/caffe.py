"""Names of the networks of Levi and Hassner as they published them (Caffe)."""

from collections.abc import Collection, Mapping

import numpy as np

from agenet.errors import UserError
from agenet.weights.names.common import refuse

_PATHS = {
    "conv1": "backbone/conv1",
    "conv2": "backbone/conv2",
    "conv3": "backbone/conv3",
    "fc6": "backbone/fc1",
    "fc7": "backbone/fc2",
}
_LEAVES = {"0": "kernel", "1": "bias"}
# What their networks tell apart, and the order of the classes among ours: they list the age groups
# as `agenet.labels.AGE_GROUPS` but male before female.
_TASKS = {8: ("age", list(range(8))), 2: ("gender", [1, 0])}


def matches(names: Collection[str]) -> bool:
    return {"conv1/0", "conv2/0", "conv3/0", "fc6/0", "fc7/0", "fc8/0"} <= set(names)


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Tensors by our names and in our layout.

    Their input is BGR, ours RGB: the input channels of the first kernel are reversed. The first
    dense layer sees a map flattened as channels, rows, columns; ours comes as rows, columns,
    channels.

    Raises:
        UserError: a tensor has no place with us, or the last layer tells no classes of ours.
    """
    result, strangers = {}, []
    for name, tensor in tensors.items():
        layer, _, number = name.rpartition("/")
        task, order = _task(tensors) if layer == "fc8" else ("", [])
        path = f"heads/{task}" if task else _PATHS.get(layer)
        if path is None or number not in _LEAVES:
            strangers.append(name)
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
    refuse(strangers, "Levi and Hassner's Caffe models")
    return result


def _task(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[int]]:
    classes = tensors["fc8/1"].size if "fc8/1" in tensors else 0
    if classes not in _TASKS:
        raise UserError(f"fc8 tells {classes} classes apart, not 8 age groups or 2 genders")
    return _TASKS[classes]


def _rows_first(matrix: np.ndarray, channels: int) -> np.ndarray:
    """Columns in the order channels, rows, columns of a square map to rows, columns, channels."""
    side = round((matrix.shape[1] / channels) ** 0.5)
    if side * side * channels != matrix.shape[1]:
        raise UserError(f"fc6 takes {matrix.shape[1]} values, no square of {channels} channels")
    return matrix.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(matrix.shape)
