"""Image transforms on the device: crop, warp, flip, colours, erasing, normalisation, views.

Training and serving share the evaluation transform.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from agenet.data.config import Augmentation
from agenet.data.randaugment import rand_augment
from agenet.data.warp import shift_scale_rotate, warp

Transform = Callable[..., jax.Array]

VIEWS = (1, 2, 4)  # numbers of views of a test image, see `make_views_transform`

# What distinguishes the keys of transforms that were added later: those of the others stay.
_RAND_AUGMENT, _ERASE = 100, 101

# Of random erasing, as in torchvision: its smallest share of the image, the range of its height
# divided by its width, and the number of rectangles that are drawn until one fits.
_SMALLEST_ERASED = 0.02
_ERASED_RATIOS = (0.3, 3.3)
_ERASE_ATTEMPTS = 10


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std per channel: [..., 3] to float32 [..., 3], all three in units of 0..255."""
    scale = 1.0 / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) * scale


def center_corner(images: jax.Array, size: int) -> tuple[int, int]:
    """Top and left of the central square of images [B, H, W, 3]."""
    return (images.shape[1] - size) // 2, (images.shape[2] - size) // 2


def example_keys(rng: jax.Array, epoch: jax.typing.ArrayLike, rows: jax.Array) -> jax.Array:
    """Random keys [B] for rows int32 [B] of a data set in an epoch.

    An image's augmentation therefore does not depend on its batch or the batch size.
    """
    rng = jax.random.fold_in(rng, epoch)
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)


def random_corners(images: jax.Array, size: int, rngs: jax.Array) -> jax.Array:
    """Top and left, int32 [B, 2], of uniformly drawn squares inside images [B, H, W, 3]."""
    _, height, width, _ = images.shape
    room = jnp.array([height - size + 1, width - size + 1])
    return jax.vmap(lambda rng: jax.random.randint(rng, (2,), 0, room))(rngs)


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """The central square: [B, H, W, 3] to [B, size, size, 3]."""
    top, left = center_corner(images, size)
    return images[:, top : top + size, left : left + size]


def random_crop(images: jax.Array, size: int, rngs: jax.Array) -> jax.Array:
    """A uniformly drawn square of each image: [B, H, W, 3] to [B, size, size, 3]."""

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (size, size, image.shape[-1]))

    return jax.vmap(crop)(images, random_corners(images, size, rngs))


def random_flip(images: jax.Array, rngs: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors images [B, H, W, 3] left to right, each with the given probability."""
    flip = _bernoulli(rngs, probability)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_warps(rngs: jax.Array, size: int, augmentation: Augmentation) -> jax.Array:
    """Matrices [B, 2, 3] that shift, scale, rotate and flip crops of `size` pixels."""
    flip_rngs, apply_rngs, shift_rngs, scale_rngs, rotate_rngs = _split_keys(rngs, 5)
    applied = _bernoulli(apply_rngs, augmentation.warp_probability)
    shift = _uniform(shift_rngs, augmentation.shift, (2,)) * applied[:, None]
    scale = _uniform(scale_rngs, augmentation.scale) * applied
    rotate = _uniform(rotate_rngs, augmentation.rotate) * applied
    flip = _bernoulli(flip_rngs, augmentation.flip)
    return shift_scale_rotate(shift, 1 + scale, rotate, flip, size)


def random_colors(rngs: jax.Array, augmentation: Augmentation) -> tuple[jax.Array, jax.Array]:
    """Brightness [B] and contrast [B] for `brightness_contrast`, 0 for unchanged images."""
    apply_rngs, brightness_rngs, contrast_rngs = _split_keys(rngs, 3)
    applied = _bernoulli(apply_rngs, augmentation.color_probability)
    brightness = _uniform(brightness_rngs, augmentation.brightness)
    return brightness * applied, _uniform(contrast_rngs, augmentation.contrast) * applied


def random_halvings(rngs: jax.Array, probability: float) -> jax.Array:
    """Halvings float32 [B] for `reduce_resolution`: with `probability` from 0 to 2, else 0."""
    apply_rngs, amount_rngs = _split_keys(rngs, 2)
    return _bernoulli(apply_rngs, probability) * (1 + _uniform(amount_rngs, 1.0))


def _split_keys(rngs: jax.Array, count: int) -> jax.Array:
    """Splits each example's key: [B] to [count, B]."""
    return jax.vmap(lambda rng: jax.random.split(rng, count), out_axes=1)(rngs)


def _fold_in(rngs: jax.Array, number: int) -> jax.Array:
    """Other keys for each example: [B] to [B]."""
    return jax.vmap(lambda rng: jax.random.fold_in(rng, number))(rngs)


def _bernoulli(rngs: jax.Array, probability: float) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.bernoulli(rng, float(probability)))(rngs)


def _uniform(rngs: jax.Array, limit: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.uniform(rng, shape, minval=-limit, maxval=limit))(rngs)


def brightness_contrast(images: jax.Array, brightness: jax.Array, contrast: jax.Array) -> jax.Array:
    """X (1 + contrast) + 255 brightness, clipped to 0..255: images [B, H, W, 3], the others [B]."""
    factor, offset = (1 + contrast)[:, None, None, None], (255 * brightness)[:, None, None, None]
    return jnp.clip(images.astype(jnp.float32) * factor + offset, 0, 255)


def to_grey(images: jax.Array, grey: jax.Array) -> jax.Array:
    """Converts the images [B, H, W, 3] for which `grey`, bool [B], is True to grey.

    The luma is that of ITU-R BT.601, as in OpenCV and Pillow.
    """
    luma = jnp.sum(images * jnp.array([0.299, 0.587, 0.114]), -1, keepdims=True)
    return jnp.where(grey[:, None, None, None], luma, images)


def reduce_resolution(images: jax.Array, halvings: jax.Array) -> jax.Array:
    """Removes detail from images [B, H, W, 3], as if they were shrunk and enlarged again.

    Args:
        images: of any type.
        halvings: the number of times that width and height are halved, [B], from 0 to 2.
            Fractions interpolate, as between the levels of a mipmap (Williams, "Pyramidal
            Parametrics", SIGGRAPH 1983).

    Returns:
        float32 [B, H, W, 3].
    """
    batch, height, width, channels = images.shape
    images = images.astype(jnp.float32)
    levels = [
        jax.image.resize(
            jax.image.resize(
                images, (batch, -(-height // by), -(-width // by), channels), "linear"
            ),
            images.shape,
            "linear",
        )
        for by in (2, 4)
    ]
    once, twice = (jnp.clip(halvings - k, 0, 1)[:, None, None, None] for k in (0, 1))
    images += once * (levels[0] - images)
    return images + twice * (levels[1] - images)


def random_erase(
    images: jax.Array, rngs: jax.Array, probability: float, largest: float
) -> jax.Array:
    """Sets a rectangle of each image to zero, with the given probability.

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, as torchvision's `RandomErasing`:
    the area is uniform, the ratio of the sides log-uniform, the position uniform; rectangles that
    do not fit are drawn again, at most ten times.

    Args:
        images: [B, H, W, 3], normalised, so that zero is the mean colour.
        rngs: keys [B].
        probability: of erasing.
        largest: upper limit of the rectangle's share of the image.
    """
    height, width = images.shape[1:3]

    def erased(rng: jax.Array) -> jax.Array:
        """The pixels to erase, bool [H, W]."""
        apply, *keys = jax.random.split(rng, 5)
        shape = (_ERASE_ATTEMPTS,)
        smallest = min(_SMALLEST_ERASED, largest)
        area = jax.random.uniform(keys[0], shape, minval=smallest, maxval=largest)
        area *= height * width
        low, high = jnp.log(jnp.array(_ERASED_RATIOS))
        ratio = jnp.exp(jax.random.uniform(keys[1], shape, minval=low, maxval=high))
        h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
        top = jnp.floor(jax.random.uniform(keys[2], shape) * (height - h + 1))
        left = jnp.floor(jax.random.uniform(keys[3], shape) * (width - w + 1))
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)  # 0 if none does
        h, w, top, left, fits = (each[first] for each in (h, w, top, left, fits))
        y, x = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        return inside & fits & jax.random.bernoulli(apply, float(probability))

    return jnp.where(jax.vmap(erased)(rngs)[..., None], 0.0, images)


def make_train_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation = Augmentation(),
) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3], rngs [B]) -> float32 [B, size, size, 3]`.

    Each image has its own key, see `example_keys`. Crop, warp and flip are one interpolation from
    the stored image, so a warped crop has a border only where the stored image ends.
    """

    def crop_and_warp(
        images: jax.Array, crop_rngs: jax.Array, warp_rngs: jax.Array, edge_rngs: jax.Array
    ) -> jax.Array:
        if augmentation.crop == "random":
            corners = random_corners(images, size, crop_rngs)
        else:
            corners = jnp.array([center_corner(images, size)])
        matrices = random_warps(warp_rngs, size, augmentation)
        edge = _bernoulli(edge_rngs, augmentation.repeat_edge) if augmentation.repeat_edge else None
        return warp(images, matrices.at[:, :, 2].add(corners[:, ::-1]), size, edge)

    def transform(images: jax.Array, rngs: jax.Array) -> jax.Array:
        crop_rngs, flip_rngs, color_rngs, grey_rngs, resolution_rngs, edge_rngs = _split_keys(
            rngs, 6
        )
        if augmentation.warps:
            images = crop_and_warp(images, crop_rngs, flip_rngs, edge_rngs)
        else:
            if augmentation.crop == "random":
                images = random_crop(images, size, crop_rngs)
            else:
                images = center_crop(images, size)
            if augmentation.flip:
                images = random_flip(images, flip_rngs, augmentation.flip)
        if augmentation.randaugment:
            images = rand_augment(
                images,
                _fold_in(rngs, _RAND_AUGMENT),
                augmentation.randaugment,
                augmentation.randaugment_magnitude,
            )
        if augmentation.recolors:
            colors = random_colors(color_rngs, augmentation)
            images = brightness_contrast(images, *colors)
        if augmentation.grey:
            images = to_grey(images, _bernoulli(grey_rngs, augmentation.grey))
        if augmentation.low_resolution:
            halvings = random_halvings(resolution_rngs, augmentation.low_resolution)
            images = reduce_resolution(images, halvings)
        images = normalize(images, mean, std)
        if augmentation.erase:
            erase_rngs = _fold_in(rngs, _ERASE)
            images = random_erase(images, erase_rngs, augmentation.erase, augmentation.erase_area)
        return images

    return transform


def make_views_transform(
    size: int, mean: Sequence[float], std: Sequence[float], views: int
) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3]) -> float32 [B, views, size, size, 3]`.

    The views are that of `make_eval_transform`, its mirror image, the whole image resized, and its
    mirror image. Averaging predictions over views of a test image is the "over-sampling" of Levi &
    Hassner 2015, who use five crops and their mirror images.
    """

    def transform(images: jax.Array) -> jax.Array:
        shape = (len(images), size, size, images.shape[-1])
        single = [center_crop(images, size).astype(jnp.float32)]
        if views == 4:
            single.append(jax.image.resize(images.astype(jnp.float32), shape, "linear"))
        both = [view for image in single for view in (image, image[:, :, ::-1])]
        return normalize(jnp.stack(both, axis=1), mean, std)

    return transform


def make_eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3]) -> float32 [B, size, size, 3]`."""

    def transform(images: jax.Array) -> jax.Array:
        return normalize(center_crop(images, size), mean, std)

    return transform
