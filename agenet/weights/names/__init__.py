"""Name maps: how other frameworks name and lay out the tensors of our networks.

There is one module for each source. It has `matches(names)`, whether the names of a file are this
source's, and `to_agenet(tensors, model)`, which returns the tensors under our names, such as
"params/backbone/layer1_0/conv1/kernel", and in our layout. `from_agenet(tensors, model)`, where
there is one, is its inverse for a network with one head.
"""

import logging
from collections.abc import Collection, Mapping
from types import ModuleType

import numpy as np

from agenet.weights.formats.checkpoints import AVERAGED
from agenet.weights.names import caffe, keras, lite, timm, torchvision
from agenet.weights.names.common import list_names

log = logging.getLogger(__name__)

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


# A tensor of each source that uses dots, near the network's input.
_ANCHORS = (
    "layer1.0.conv1.weight",
    "features.0.0.weight",
    "conv_stem.weight",
    "_conv_stem.weight",
)
_MOST_PREFIXES = 8


def find_network(tensors: Mapping[str, np.ndarray]) -> tuple[str | None, dict[str, np.ndarray]]:
    """Returns the source of a file's tensors, and those of the network without a common prefix.

    A training program may hold the network as a part, such as "model" in PyTorch Lightning, whose
    name comes before those of the network's tensors. What is left out, and which of several
    networks is taken, is logged.
    """
    if (source := detect(tensors)) is not None:
        return source, dict(tensors)
    prefixes = dict.fromkeys(
        name.removesuffix(anchor)
        for name in tensors
        for anchor in _ANCHORS
        if name.endswith(f".{anchor}")
    )
    found = {}
    for prefix in [*prefixes][:_MOST_PREFIXES]:
        part = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if (source := detect(part)) is not None:
            found[prefix] = source, part
    if not found:
        return None, dict(tensors)
    chosen, *others = sorted(found, key=lambda prefix: bool(AVERAGED.search(prefix)))
    left = sorted(name for name in tensors if not name.startswith(chosen))
    if others:
        log.warning("there are networks at %s: the first is read", list_names([chosen, *others]))
    elif left:
        log.warning("not part of the network at %s, left out: %s", chosen, list_names(left))
    return found[chosen]
