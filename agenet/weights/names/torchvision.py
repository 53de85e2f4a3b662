"""Name map of torchvision: ResNet and EfficientNet-B; timm's ResNets have the same names.

And of the networks that `agenet.frameworks.torch_networks` composes: Levi-Hassner and Lite.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from agenet.weights.names.common import first_head, from_torch, head_path, to_torch

# The layers inside `block`, of an inverted residual block without and with expansion.
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
_LEVI_HASSNER = ("conv1", "conv2", "conv3", "fc1", "fc2")
_OUTER = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.8.0": "conv_head",
    "features.8.1": "bn2",
}


def matches(names: Collection[str]) -> bool:
    return "features.0.0.weight" in names or {"conv1.weight", "layer1.0.conv1.weight"} <= set(names)


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors under our names, see `common.from_torch`."""
    top = _top(model)

    def rename(module: str) -> str | None:
        if module == top:
            bias = tensors.get(f"{top}.bias")
            return None if bias is None else head_path(bias.size)
        return _backbone(module, model)

    return from_torch(tensors, rename, "torchvision")


def from_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a network with one head under torchvision's names.

    Raises:
        UserError: a tensor has no counterpart in torchvision's network.
    """
    modules = {path: name for name in _modules(model) if (path := _backbone(name, model))}
    modules |= dict.fromkeys(first_head(tensors), _top(model))
    return to_torch(tensors, modules, "torchvision")


def _top(model: str) -> str:
    if model == "levi_hassner":
        return "classifier"
    return "fc" if model.startswith("resnet") else "classifier.1"


def _backbone(module: str, model: str) -> str | None:
    if model == "levi_hassner":
        path = module if module in _LEVI_HASSNER else None
    else:
        path = _resnet(module) if model.startswith("resnet") else _efficientnet(module)
    return f"backbone/{path}" if path else None


def _modules(model: str) -> Iterator[str]:
    """Yields a superset of the names of modules in such a network."""
    if model == "levi_hassner":
        yield from _LEVI_HASSNER
    elif model.startswith("resnet"):
        layers = [f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)]
        layers += ["downsample.0", "downsample.1"]
        yield from ("conv1", "bn1")
        yield from (f"layer{s}.{i}.{n}" for s in range(1, 5) for i in range(50) for n in layers)
    else:
        layers = sorted({*_PLAIN, *_EXPANDED})
        yield from _OUTER
        for stage in range(1, 8):
            yield from (f"features.{stage}.{i}.block.{n}" for i in range(50) for n in layers)


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
