"""Variables of a network from NumPy, the same on every version of JAX."""

import math
import zlib

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def random_variables(shapes, seed=0):
    """Variables like `shapes`, drawn leaf by leaf; activations neither vanish nor explode."""
    flat = flatten_dict(shapes, sep="/")
    return unflatten_dict(
        {name: _leaf(name, leaf.shape, seed) for name, leaf in flat.items()}, sep="/"
    )


def _leaf(name, shape, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    kind = name.rpartition("/")[2]
    if kind in ("scale", "var"):
        # The last layer of a residual branch adds little, as in a trained network.
        scale = 0.3 if "/bn3/" in name and kind == "scale" else 1.0
        return (scale * rng.uniform(0.7, 1.3, shape)).astype(np.float32)
    if kind == "kernel":
        return rng.normal(0, math.prod(shape[:-1]) ** -0.5 * 2**0.5, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)
