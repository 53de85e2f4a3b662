"""Affine warps of pictures on the device, bilinear; beyond a picture's edge black, or the edge.

A warp is a matrix [2, 3] that takes a pixel (x, y, 1) of the result to the place (x, y) that it
shows, the inverse map of OpenCV's `warpAffine`. Whole numbers are the middles of pixels.
"""

import jax
import jax.numpy as jnp


def warp(
    images: jax.Array, matrices: jax.Array, size: int, repeat_edge: jax.Array | None = None
) -> jax.Array:
    """Pictures [B, H, W, 3] seen through matrices [B, 2, 3]: float32 [B, size, size, 3].

    Where no picture is it is black, or shows the picture's edge where `repeat_edge`, bool [B],
    says so: OpenCV's BORDER_CONSTANT and BORDER_REPLICATE.
    """
    _, height, width, _ = images.shape
    # One black pixel around each picture is all the border there is: what lies further away is
    # moved onto it, and what lies between is interpolated like everything else.
    images = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def warp_one(image: jax.Array, matrix: jax.Array, repeat_edge: jax.Array) -> jax.Array:
        x, y = jnp.arange(size, dtype=jnp.float32), jnp.arange(size, dtype=jnp.float32)[:, None]
        places = matrix[:, 0, None, None] * x + matrix[:, 1, None, None] * y
        places += matrix[:, 2, None, None]
        left, right_part = _divide(places[0], width, repeat_edge)
        top, lower_part = _divide(places[1], height, repeat_edge)

        def pixels(down: int, right: int) -> jax.Array:
            found = image.at[top + (1 + down), left + (1 + right)].get(mode="promise_in_bounds")
            return found.astype(jnp.float32)

        upper = pixels(0, 0) * (1 - right_part) + pixels(0, 1) * right_part
        lower = pixels(1, 0) * (1 - right_part) + pixels(1, 1) * right_part
        return upper * (1 - lower_part) + lower * lower_part

    if repeat_edge is None:
        repeat_edge = jnp.zeros(len(images), bool)
    return jax.vmap(warp_one)(images, matrices, repeat_edge)


def _divide(places: jax.Array, length: int, repeat_edge: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pixel before each place [h, w], from -1 to length - 1, and the share of the next one."""
    places = jnp.where(repeat_edge, jnp.clip(places, 0, length - 1), places)
    before = jnp.clip(jnp.floor(places), -1, length - 1)
    return before.astype(jnp.int32), jnp.clip(places - before, 0, 1)[..., None]


def shift_scale_rotate(
    shift: jax.Array, scale: jax.Array, rotate: jax.Array, flip: jax.Array, size: int
) -> jax.Array:
    """The warps of squares of `size` pixels, about their middle: [B, 2, 3].

    Args:
        shift: by how much of the size the picture moves right and down, [B, 2].
        scale: by what factor it grows, [B].
        rotate: by how many degrees it turns counter-clockwise, [B].
        flip: whether it is mirrored left to right after all that, bool [B].
        size: of the squares.
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
