"""Name maps: how other frameworks name and lay out the tensors of our networks.

There is one module for each source. It has `matches(names)`, whether the names of a file are this
source's, and `to_agenet(tensors, model)`, which returns the tensors under our names, such as
"params/backbone/layer1_0/conv1/kernel", and in our layout. `from_agenet(tensors, model)`, where
there is one, is its inverse for a network with one head.
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
    """Returns the source that names its tensors like this; None if no map fits."""
    return next((source for source, module in MAPS.items() if module.matches(names)), None)
