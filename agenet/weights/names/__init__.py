"""From the names of a source framework to ours, one module per source.

Each has `matches(names)`, whether a file's names are this source's, and `to_agenet(tensors,
model)`, the tensors by names such as "params/backbone/layer1_0/conv1/kernel" and in our layout.
"""

from collections.abc import Collection
from types import ModuleType

from agenet.weights.names import caffe, keras, lite, timm, torchvision

MAPS: dict[str, ModuleType] = {
    "torchvision": torchvision,
    "timm": timm,
    "keras": keras,
    "lite": lite,
    "caffe": caffe,
}


def detect(names: Collection[str]) -> str | None:
    """The source whose names these are, None if it is none of them."""
    return next((source for source, module in MAPS.items() if module.matches(names)), None)
