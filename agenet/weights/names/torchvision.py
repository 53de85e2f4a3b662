"""torchvision's names (ResNet, EfficientNet); timm's ResNets have the same."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from agenet.weights.names.common import from_torch, head

# Inside `block`: the layers of an inverted residual block without and with expansion.
_PLAIN = {
    "0.0": "conv_dw",
    "0.1": "bn1",
    "1.fc1": "se/conv_reduce",
    "1.fc2": "se/conv_expand",
    "2.0": "conv_pw",
    "2.1": "bn2",
}
_EXPANDED = {
    "0.0": "conv_pw",
    "0.1": "bn1",
    "1.0": "conv_dw",
    "1.1": "bn2",
    "2.fc1": "se/conv_reduce",
    "2.fc2": "se/conv_expand",
    "3.0": "conv_pwl",
    "3.1": "bn3",
}
_OUTER = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.8.0": "conv_head",
    "features.8.1": "bn2",
}


def matches(names: Collection[str]) -> bool:
    return "features.0.0.weight" in names or {"conv1.weight", "layer1.0.conv1.weight"} <= set(names)


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Tensors by our names, see `common.from_torch`."""
    top = "fc" if model.startswith("resnet") else "classifier.1"

    def rename(module: str) -> str | None:
        if module == top:
            return head(tensors[f"{top}.bias"].size) if f"{top}.bias" in tensors else None
        path = _resnet(module) if model.startswith("resnet") else _efficientnet(module)
        return f"backbone/{path}" if path else None

    return from_torch(tensors, rename, "torchvision")


def _resnet(module: str) -> str | None:
    if not re.fullmatch(r"(layer\d\.\d+\.)?(conv\d|bn\d|downsample\.[01])", module):
        return None
    return re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")


def _efficientnet(module: str) -> str | None:
    if module in _OUTER:
        return _OUTER[module]
    block = re.fullmatch(r"features\.([1-7])\.(\d+)\.block\.(\d\.\w+)", module)
    if not block:
        return None
    stage, index, layer = int(block[1]), block[2], block[3]
    path = (_PLAIN if stage == 1 else _EXPANDED).get(layer)
    return f"blocks_{stage - 1}_{index}/{path}" if path else None
