"""What happens to stored pictures on the device: crop, flip, normalise.

Training and serving share the evaluation transform, so that they cannot drift apart.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Transform = Callable[..., jax.Array]


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std per channel; uint8 [..., 3] to float32 [..., 3]; mean and std in 0..255."""
    scale = 1.0 / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) * scale


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """The middle square: [B, H, W, 3] to [B, size, size, 3]."""
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def random_crop(images: jax.Array, size: int, rng: jax.Array) -> jax.Array:
    """A square anywhere inside, uniformly, another for each picture: to [B, size, size, 3]."""
    batch, height, width, channels = images.shape
    room = jnp.array([height - size + 1, width - size + 1])
    corners = jax.random.randint(rng, (batch, 2), 0, room)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (size, size, channels))

    return jax.vmap(crop)(images, corners)


def random_flip(images: jax.Array, rng: jax.Array) -> jax.Array:
    """Each picture [H, W, 3] of [B, H, W, 3] mirrored left to right, half of the time."""
    flip = jax.random.bernoulli(rng, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def make_train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3], rng) -> float32 [B, size, size, 3]`."""

    def transform(images: jax.Array, rng: jax.Array) -> jax.Array:
        crop_rng, flip_rng = jax.random.split(rng)
        images = random_flip(random_crop(images, size, crop_rng), flip_rng)
        return normalize(images, mean, std)

    return transform


def make_eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3]) -> float32 [B, size, size, 3]`."""

    def transform(images: jax.Array) -> jax.Array:
        return normalize(center_crop(images, size), mean, std)

    return transform
