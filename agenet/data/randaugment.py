"""RandAugment on the device: random operations on whole batches of images.

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
NeurIPS 2020. The operations and their ranges are those of torchvision's `RandAugment`, except that
geometric ones interpolate bilinearly and magnitudes are real numbers. The libraries for JAX that
are kept up, dm-pix and augmax, have neither RandAugment nor most of its operations.

Each image has an operation of its own. A branch for each image would be evaluated for all images
under `jax.vmap`, so the operations share their work instead: all geometric ones are one warp, all
blends one blend.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from agenet.data.config import MAX_MAGNITUDE
from agenet.data.warp import shift_scale_rotate, warp

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
_MAX_SHEAR = 0.3
_MAX_TRANSLATION = 150 / 331  # of the width
_MAX_ROTATION = 30.0  # degrees
_MAX_BLEND = 0.9  # of the factor, around 1
_MAX_BITS_LOST = 4


def rand_augment(images: jax.Array, rngs: jax.Array, count: int, magnitude: float) -> jax.Array:
    """Applies operations that are drawn uniformly for each image, one after the other.

    Args:
        images: [B, S, S, 3], 0 to 255.
        rngs: a key for each image, [B].
        count: the number of operations.
        magnitude: of all operations, from 0 to `MAX_MAGNITUDE`. Operations with two directions,
            such as rotation, go either way with equal probability.

    Returns:
        float32 [B, S, S, 3], 0 to 255.
    """

    def draw(rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        which, direction = jax.random.split(rng)
        operation = jax.random.randint(which, (count,), 0, len(OPERATIONS))
        return operation, jax.random.rademacher(direction, (count,), jnp.float32)

    operations, signs = jax.vmap(draw)(rngs)
    images = images.astype(jnp.float32)
    for number in range(count):
        level = signs[:, number] * (magnitude / MAX_MAGNITUDE)
        images = apply_operations(images, operations[:, number], level)
    return images


def apply_operations(images: jax.Array, operations: jax.Array, level: jax.Array) -> jax.Array:
    """Applies one operation to each image.

    Args:
        images: float32 [B, S, S, 3], 0 to 255.
        operations: indices into `OPERATIONS`, int [B].
        level: from -1 to 1, [B]; the sign is the direction, where an operation has two.
    """

    def is_(name: str) -> jax.Array:
        return operations == OPERATIONS.index(name)

    images = _transform(images, is_, level)
    images = _blend(images, is_, 1 + _MAX_BLEND * level)
    return _map_tones(images, is_, jnp.abs(level))


def _transform(images: jax.Array, is_: Callable[[str], jax.Array], level: jax.Array) -> jax.Array:
    """Shear, translation and rotation; other images stay as they are, to the bit."""
    size, zero = images.shape[1], jnp.zeros_like(level)

    def amount(name: str, largest: float) -> jax.Array:
        return jnp.where(is_(name), largest * level, 0.0)

    shear_x, shear_y = amount("shear_x", _MAX_SHEAR), amount("shear_y", _MAX_SHEAR)
    # By whole pixels, as in torchvision.
    x, y = (jnp.trunc(amount(f"translate_{axis}", _MAX_TRANSLATION * size)) for axis in "xy")
    # About the corner of the first pixel, whose centre is 0, as Pillow's transform (1, s, 0, 0, 1).
    sheared = jnp.stack(
        [
            jnp.stack([zero + 1, shear_x, shear_x / 2 - x], -1),
            jnp.stack([shear_y, zero + 1, shear_y / 2 - y], -1),
        ],
        1,
    )
    rotated = shift_scale_rotate(
        jnp.zeros((len(images), 2)),
        zero + 1,
        amount("rotate", _MAX_ROTATION),
        jnp.zeros(len(images), bool),
        size,
    )
    return warp(images, jnp.where(is_("rotate")[:, None, None], rotated, sheared), size)


def _blend(images: jax.Array, is_: Callable[[str], jax.Array], factor: jax.Array) -> jax.Array:
    """Brightness, colour, contrast and sharpness: moves away from, or towards, a poorer image."""
    luma = jnp.sum(images * jnp.array([0.299, 0.587, 0.114]), -1, keepdims=True)
    poorer = jnp.zeros_like(images)
    for name, image in (
        ("color", luma),
        ("contrast", luma.mean((1, 2), keepdims=True)),
        ("sharpness", _smooth(images)),
    ):
        poorer = jnp.where(is_(name)[:, None, None, None], image, poorer)
    blends = is_("brightness") | is_("color") | is_("contrast") | is_("sharpness")
    blended = jnp.clip(poorer + factor[:, None, None, None] * (images - poorer), 0, 255)
    return jnp.where(blends[:, None, None, None], blended, images)


def _smooth(images: jax.Array) -> jax.Array:
    """The 3 x 3 filter with 5/13 in the middle and 1/13 elsewhere; borders stay as they are."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return images.at[:, 1:-1, 1:-1].set((total + 4 * images[:, 1:-1, 1:-1]) / 13)


def _map_tones(images: jax.Array, is_: Callable[[str], jax.Array], level: jax.Array) -> jax.Array:
    """Posterize, solarize, autocontrast and equalize: each value by a function of its own."""

    def choose(name: str, mapped: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.where(is_(name)[:, None, None, None], mapped, images)

    level = level[:, None, None, None]
    step = 2.0 ** jnp.round(_MAX_BITS_LOST * level)
    lowest, highest = (f(images, (1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    scale = jnp.where(highest > lowest, 255 / jnp.maximum(highest - lowest, 1e-6), 1.0)
    lowest = jnp.where(highest > lowest, lowest, 0.0)
    result = choose("posterize", jnp.floor(images / step) * step, images)
    inverted = jnp.where(images >= 255 * (1 - level), 255 - images, images)
    result = choose("solarize", inverted, result)
    result = choose("autocontrast", (images - lowest) * scale, result)
    return choose("equalize", equalize(images), result)


def equalize(images: jax.Array) -> jax.Array:
    """Equalises the histogram of each channel of images [B, H, W, 3], as Pillow does.

    Fractions of a level are dropped first.
    """
    batch, height, width, channels = images.shape
    values = jnp.clip(images, 0, 255).astype(jnp.int32)
    flat = values.transpose(0, 3, 1, 2).reshape(batch * channels, -1)

    def equalize_one(values: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[values].add(1, mode="promise_in_bounds")
        last = counts[jnp.max(values)]
        step = (len(values) - last) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
        table = jnp.where(step > 0, table, jnp.arange(256))
        return table.at[values].get(mode="promise_in_bounds")

    equalized = jax.vmap(equalize_one)(flat).reshape(batch, channels, height, width)
    return equalized.transpose(0, 2, 3, 1).astype(jnp.float32)
