"""timm's names of EfficientNet B and Lite, with and without `tf_`, which are ours."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from agenet.weights.names.common import from_torch, head

_LAYER = re.compile(
    r"(blocks\.\d\.\d+\.(conv_(dw|pw|pwl)|bn\d|se\.conv_(reduce|expand)))|conv_(stem|head)|bn\d"
)


def matches(names: Collection[str]) -> bool:
    return "conv_stem.weight" in names


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Tensors by our names, see `common.from_torch`."""

    def rename(module: str) -> str | None:
        if module == "classifier":
            return head(len(tensors["classifier.bias"])) if "classifier.bias" in tensors else None
        if not _LAYER.fullmatch(module):
            return None
        return "backbone/" + re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")

    return from_torch(tensors, rename, "timm")
