"""Affine warps of images on the device, with bilinear interpolation.

A warp is a matrix [2, 3] that maps a pixel (x, y, 1) of the result to its source position (x, y),
as in OpenCV's `warpAffine` with WARP_INVERSE_MAP. Integers are centres of pixels.
"""

import jax
import jax.numpy as jnp


def warp(
    images: jax.Array, matrices: jax.Array, size: int, repeat_edge: jax.Array | None = None
) -> jax.Array:
    """Warps images [B, H, W, 3] by matrices [B, 2, 3].

    Args:
        images: the images.
        matrices: the warps.
        size: side of the result.
        repeat_edge: bool [B]; outside of an image the result is black (OpenCV's BORDER_CONSTANT)
            or, where this is True, repeats the edge (BORDER_REPLICATE).

    Returns:
        float32 [B, size, size, 3].
    """
    _, height, width, _ = images.shape
    # One black pixel on each side is enough: positions beyond it are clipped to it, and those in
    # between are interpolated as usual.
    images = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def warp_one(image: jax.Array, matrix: jax.Array, repeat_edge: jax.Array) -> jax.Array:
        x, y = jnp.arange(size, dtype=jnp.float32), jnp.arange(size, dtype=jnp.float32)[:, None]
        positions = matrix[:, 0, None, None] * x + matrix[:, 1, None, None] * y
        positions += matrix[:, 2, None, None]
        left, right_part = _floor_and_fraction(positions[0], width, repeat_edge)
        top, lower_part = _floor_and_fraction(positions[1], height, repeat_edge)

        def pixels(down: int, right: int) -> jax.Array:
            found = image.at[top + (1 + down), left + (1 + right)].get(mode="promise_in_bounds")
            return found.astype(jnp.float32)

        upper = pixels(0, 0) * (1 - right_part) + pixels(0, 1) * right_part
        lower = pixels(1, 0) * (1 - right_part) + pixels(1, 1) * right_part
        return upper * (1 - lower_part) + lower * lower_part

    if repeat_edge is None:
        repeat_edge = jnp.zeros(len(images), bool)
    return jax.vmap(warp_one)(images, matrices, repeat_edge)


def _floor_and_fraction(
    positions: jax.Array, length: int, repeat_edge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The pixel before each position [h, w], from -1 to length - 1, and the next one's weight."""
    positions = jnp.where(repeat_edge, jnp.clip(positions, 0, length - 1), positions)
    before = jnp.clip(jnp.floor(positions), -1, length - 1)
    return before.astype(jnp.int32), jnp.clip(positions - before, 0, 1)[..., None]


def shift_scale_rotate(
    shift: jax.Array, scale: jax.Array, rotate: jax.Array, flip: jax.Array, size: int
) -> jax.Array:
    """Matrices [B, 2, 3] of warps about the centre of square images.

    Args:
        shift: translation right and down, [B, 2], in units of `size`.
        scale: factor of enlargement, [B].
        rotate: counter-clockwise rotation in degrees, [B].
        flip: whether to mirror left to right after the others, bool [B].
        size: side of the images in pixels.
    """
    middle = (size - 1) / 2
    cos, sin = (f(jnp.deg2rad(rotate)) / scale for f in (jnp.cos, jnp.sin))
    mirror = jnp.where(flip, -1.0, 1.0)
    across, down = middle * mirror + size * shift[:, 0], middle + size * shift[:, 1]
    rows = (
        (cos * mirror, -sin, middle - cos * across + sin * down),
        (sin * mirror, cos, middle - sin * across - cos * down),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], 1)
