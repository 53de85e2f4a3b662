"""Name map of the package efficientnet-lite-pytorch: EfficientNet-Lite0 to Lite4."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from agenet.weights.names.common import from_torch, head_path

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_PLAIN = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_EXPANDED = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def matches(names: Collection[str]) -> bool:
    return "_conv_stem.weight" in names


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors under our names, see `common.from_torch`."""
    blocks = _blocks(tensors)

    def rename(module: str) -> str | None:
        if module == "_fc":
            bias = tensors.get("_fc.bias")
            return None if bias is None else head_path(len(bias))
        if module in _OUTER:
            return f"backbone/{_OUTER[module]}"
        layer = re.fullmatch(r"_blocks\.(\d{1,3})\._(\w+)", module)
        block = blocks.get(int(layer[1])) if layer else None
        if layer is None or block is None:
            return None
        path = (_PLAIN if block.startswith("blocks_0") else _EXPANDED).get(layer[2])
        return f"backbone/{block}/{path}" if path else None

    return from_torch(tensors, rename, "efficientnet-lite-pytorch")


def _blocks(tensors: Mapping[str, np.ndarray]) -> dict[int, str]:
    """Returns our name of each block; the file numbers them across all stages.

    A stage ends where the number of features changes: no two successive stages share it.
    """
    result: dict[int, str] = {}
    stage, index, features = -1, 0, 0
    while (kernel := tensors.get(f"_blocks.{len(result)}._project_conv.weight")) is not None:
        if len(kernel) == features:
            index += 1
        else:
            stage, index, features = stage + 1, 0, len(kernel)
        result[len(result)] = f"blocks_{stage}_{index}"
    return result
