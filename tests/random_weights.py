"""Files of weights with random values, of any network and heads."""

from collections.abc import Mapping
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict

from agenet.models import create_model
from agenet.training.losses import describe_heads
from agenet.training.state import create_variables
from agenet.weights.load import Weights, save_weights
from agenet.weights.spec import InputSpec, WeightsSpec
from tests.random_variables import random_variables


def write_random_weights(
    path: Path, model: str, flavour: str, heads: Mapping[str, str], images: InputSpec
) -> Path:
    """Writes a file of agenet's format, and returns its path."""
    classes, ordinal = describe_heads(heads)
    spec = WeightsSpec(
        model=model,
        flavour=flavour,
        classes=classes,
        input=images,
        source="agenet",
        origin="a test",
        sha256=None,
        licence="none",
        heads=dict(heads),
    )
    network = create_model(model, classes, flavour=flavour, ordinal=ordinal)
    shapes = jax.eval_shape(lambda: create_variables(network, images.size, 0))
    save_weights(path, Weights(flatten_dict(random_variables(shapes), sep="/"), spec))
    return path
