"""Mixes pairs of images of a batch and their labels: mixup and CutMix."""

from typing import Any

import jax
import jax.numpy as jnp


def draw_mixing(
    rng: jax.Array, size: int, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Draws how a batch is mixed: mixup, CutMix or, if both are given, either with equal odds.

    mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018) averages images,
    with one proportion for the whole batch, drawn from Beta(alpha, alpha). CutMix (Yun et al.,
    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019) replaces a box, the same in the whole batch, whose share of the image is drawn likewise;
    its centre is uniform, and of a box that reaches beyond the image only the inside counts.

    Args:
        rng: a key.
        size: side of the images.
        mixup: its alpha, 0 for none.
        cutmix: its alpha, 0 for none.

    Returns:
        The proportion of each image's own labels, float32 [], and that of its own pixels, [] or
        [size, size, 1].
    """
    averaged: jax.typing.ArrayLike = 1.0
    if mixup:
        averaged = jax.random.beta(rng, mixup, mixup)
        if not cutmix:
            return averaged, averaged
    share_rng, centre_rng, which_rng = (jax.random.fold_in(rng, n) for n in (1, 2, 3))
    share = 1 - jax.random.beta(share_rng, cutmix, cutmix)
    inside = box(jax.random.randint(centre_rng, (2,), 0, size), share, size)
    own = 1.0 - inside[..., None].astype(jnp.float32)
    proportion = own.mean()
    if not mixup:
        return proportion, own
    cut = jax.random.bernoulli(which_rng)
    return jnp.where(cut, proportion, averaged), jnp.where(cut, own, averaged)


def box(centre: jax.Array, share: jax.typing.ArrayLike, size: int) -> jax.Array:
    """The pixels, bool [size, size], of CutMix's box.

    Args:
        centre: y and x in pixels, int32 [2].
        share: of the box in the image, if it does not reach beyond it.
        size: side of the image.
    """
    side = jnp.floor(size * jnp.sqrt(share)).astype(jnp.int32)
    low = jnp.clip(centre - side // 2, 0, size)
    high = jnp.clip(centre + side // 2, 0, size)
    pixels = jnp.arange(size)
    down, across = ((pixels >= low[axis]) & (pixels < high[axis]) for axis in (0, 1))
    return down[:, None] & across


def mix(batch: Any, images: jax.Array, own: jax.typing.ArrayLike) -> Any:
    """Mixes each image [B, S, S, 3] with the previous one, whose labels become `partner`.

    Args:
        batch: of which `image` and `row` are left out.
        images: transformed.
        own: the proportion of each image's own pixels.
    """

    def previous(column: jax.Array) -> jax.Array:
        return jnp.roll(column, 1, axis=0)

    labels = {name: column for name, column in batch.items() if name not in ("image", "row")}
    return labels | {
        "mixed": own * images + (1 - own) * previous(images),
        "partner": jax.tree.map(previous, labels),
    }
