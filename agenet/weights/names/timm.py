"""timm's names of EfficientNet-B, -Lite and -V2, with and without `tf_`: ours follow them."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from agenet.weights.names.common import first_head, from_torch, head_path, split_name, to_torch

_LAYER = re.compile(
    r"(blocks\.\d\.\d+\.(conv(_(dw|exp|pw|pwl))?|bn\d|se\.conv_(reduce|expand)))|"
    r"conv_(stem|head)|bn\d"
)


def matches(names: Collection[str]) -> bool:
    return "conv_stem.weight" in names


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors under our names, see `common.from_torch`."""

    def rename(module: str) -> str | None:
        if module == "classifier":
            bias = tensors.get("classifier.bias")
            return None if bias is None else head_path(len(bias))
        if not _LAYER.fullmatch(module):
            return None
        return "backbone/" + re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")

    return from_torch(tensors, rename, "timm")


def from_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a network with one head under timm's names.

    Raises:
        UserError: a tensor has no counterpart in timm's network.
    """
    modules = dict.fromkeys(first_head(tensors), "classifier")
    for path in {split_name(name)[0] for name in tensors}:
        module = re.sub(r"_(\d+)", r".\1", path.removeprefix("backbone/")).replace("/", ".")
        if _LAYER.fullmatch(module):
            modules[path] = module
    return to_torch(tensors, modules, "timm")
