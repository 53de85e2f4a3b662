"""What happens to stored pictures on the device: crop, warp, flip, colours, normalise.

Training and serving share the evaluation transform, so that they cannot drift apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp

from agenet.data.warp import shift_scale_rotate, warp
from agenet.errors import UserError

Transform = Callable[..., jax.Array]

VIEWS = (1, 2, 4)  # of a test picture, see `make_views_transform`


@dataclass(frozen=True)
class Augmentation:
    """What training pictures undergo, as in `config.augment`; each picture draws its own.

    The parameters mean what they mean to ShiftScaleRotate, RandomBrightnessContrast and
    HorizontalFlip of Albumentations, see `agenet.data.warp` and `brightness_contrast`, and are
    drawn uniformly up to their limits in either direction. Of ShiftScaleRotate it is the meaning
    before version 2, which began to round shifts and to stretch width and height apart, with a
    black border or, by the probability `repeat_edge`, BORDER_REPLICATE. `grey` and
    `low_resolution` are probabilities: of ToGray, and of `reduce_resolution` by any amount.

    Raises:
        UserError: a value makes no sense.
    """

    crop: str = "random"  # or "center"
    flip: float = 0.5  # probability of mirroring
    shift: float = 0.0  # of the size of a crop
    scale: float = 0.0  # around a factor of 1
    rotate: float = 0.0  # degrees
    warp_probability: float = 1.0  # of shift, scale and rotate together
    repeat_edge: float = 0.0  # probability of the picture's edge, not black, beyond it
    brightness: float = 0.0  # of the largest value, 255
    contrast: float = 0.0  # around a factor of 1
    color_probability: float = 0.5  # of brightness and contrast together
    grey: float = 0.0  # probability of losing the colours
    low_resolution: float = 0.0  # probability of losing details, down to a quarter of the pixels
    mixup: float = (
        0.0  # alpha of mixup, which is the training step's, see `agenet.training.steps.Recipe`
    )

    def __post_init__(self) -> None:
        if self.crop not in ("random", "center"):
            raise UserError(f'augment.crop "{self.crop}" is not known: use "random" or "center"')
        largest = {"rotate": 180.0, "scale": 0.99, "mixup": 100.0}
        for name in (field.name for field in fields(self) if field.name != "crop"):
            value, limit = getattr(self, name), largest.get(name, 1.0)
            if not 0 <= value <= limit:
                raise UserError(f"augment.{name} {value:g} must be a number from 0 to {limit:g}")

    @property
    def warps(self) -> bool:
        return max(self.shift, self.scale, self.rotate) > 0 and self.warp_probability > 0

    @property
    def recolors(self) -> bool:
        return max(self.brightness, self.contrast) > 0 and self.color_probability > 0


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std per channel; [..., 3] to float32 [..., 3]; x, mean and std in 0..255."""
    scale = 1.0 / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) * scale


def center_corner(images: jax.Array, size: int) -> tuple[int, int]:
    """Top and left of the middle square of pictures [B, H, W, 3]."""
    return (images.shape[1] - size) // 2, (images.shape[2] - size) // 2


def example_keys(rng: jax.Array, epoch: jax.typing.ArrayLike, rows: jax.Array) -> jax.Array:
    """A random key [B] for each row int32 [B] of a data set, another one in every epoch.

    What a picture undergoes thus depends neither on its batch nor on the batch's size.
    """
    rng = jax.random.fold_in(rng, epoch)
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)


def random_corners(images: jax.Array, size: int, rngs: jax.Array) -> jax.Array:
    """Top and left, int32 [B, 2], of squares anywhere inside pictures [B, H, W, 3], uniformly."""
    _, height, width, _ = images.shape
    room = jnp.array([height - size + 1, width - size + 1])
    return jax.vmap(lambda rng: jax.random.randint(rng, (2,), 0, room))(rngs)


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """The middle square: [B, H, W, 3] to [B, size, size, 3]."""
    top, left = center_corner(images, size)
    return images[:, top : top + size, left : left + size]


def random_crop(images: jax.Array, size: int, rngs: jax.Array) -> jax.Array:
    """A square anywhere inside, uniformly, another for each picture: to [B, size, size, 3]."""

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (size, size, image.shape[-1]))

    return jax.vmap(crop)(images, random_corners(images, size, rngs))


def random_flip(images: jax.Array, rngs: jax.Array, probability: float = 0.5) -> jax.Array:
    """Some of the pictures [B, H, W, 3] mirrored left to right."""
    flip = _happens(rngs, probability)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_warps(rngs: jax.Array, size: int, augmentation: Augmentation) -> jax.Array:
    """Shifts, scales, rotations and flips of crops of `size` pixels, as matrices [B, 2, 3]."""
    flip_rngs, apply_rngs, shift_rngs, scale_rngs, rotate_rngs = _split(rngs, 5)
    applied = _happens(apply_rngs, augmentation.warp_probability)
    shift = _uniform(shift_rngs, augmentation.shift, (2,)) * applied[:, None]
    scale = _uniform(scale_rngs, augmentation.scale) * applied
    rotate = _uniform(rotate_rngs, augmentation.rotate) * applied
    flip = _happens(flip_rngs, augmentation.flip)
    return shift_scale_rotate(shift, 1 + scale, rotate, flip, size)


def random_colors(rngs: jax.Array, augmentation: Augmentation) -> tuple[jax.Array, jax.Array]:
    """Brightness [B] and contrast [B], both 0 where a picture stays as it is."""
    apply_rngs, brightness_rngs, contrast_rngs = _split(rngs, 3)
    applied = _happens(apply_rngs, augmentation.color_probability)
    brightness = _uniform(brightness_rngs, augmentation.brightness)
    return brightness * applied, _uniform(contrast_rngs, augmentation.contrast) * applied


def random_halvings(rngs: jax.Array, probability: float) -> jax.Array:
    """How often the resolution is halved, float32 [B]: 0, or with `probability` up to 2."""
    apply_rngs, amount_rngs = _split(rngs, 2)
    return _happens(apply_rngs, probability) * (1 + _uniform(amount_rngs, 1.0))


def _split(rngs: jax.Array, purposes: int) -> jax.Array:
    """Each example's key divided: [B] to [purposes, B]."""
    return jax.vmap(lambda rng: jax.random.split(rng, purposes), out_axes=1)(rngs)


def _happens(rngs: jax.Array, probability: float) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.bernoulli(rng, float(probability)))(rngs)


def _uniform(rngs: jax.Array, limit: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.uniform(rng, shape, minval=-limit, maxval=limit))(rngs)


def brightness_contrast(images: jax.Array, brightness: jax.Array, contrast: jax.Array) -> jax.Array:
    """X (1 + contrast) + 255 brightness, cut to 0..255; images [B, H, W, 3], the others [B]."""
    factor, offset = (1 + contrast)[:, None, None, None], (255 * brightness)[:, None, None, None]
    return jnp.clip(images.astype(jnp.float32) * factor + offset, 0, 255)


def to_grey(images: jax.Array, grey: jax.Array) -> jax.Array:
    """Those of pictures [B, H, W, 3] for which `grey`, bool [B], says so in shades of grey.

    Luma as in ITU-R BT.601, which OpenCV and Pillow use.
    """
    luma = jnp.sum(images * jnp.array([0.299, 0.587, 0.114]), -1, keepdims=True)
    return jnp.where(grey[:, None, None, None], luma, images)


def reduce_resolution(images: jax.Array, halvings: jax.Array) -> jax.Array:
    """Pictures [B, H, W, 3] as if they had been made smaller and larger again.

    Args:
        images: any numbers.
        halvings: how often width and height are halved, [B], 0 to 2. What lies between whole
            numbers is interpolated, as between the levels of a mipmap (Williams, "Pyramidal
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


def make_train_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation = Augmentation(),
) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3], rngs [B]) -> float32 [B, size, size, 3]`.

    Each picture has a key of its own, see `example_keys`.

    Crop, warp and flip are one interpolation, from the stored picture: a warped crop has a border
    only where the stored picture ends. What is turned off costs nothing.
    """

    def crop_and_warp(
        images: jax.Array, crop_rngs: jax.Array, warp_rngs: jax.Array, edge_rngs: jax.Array
    ) -> jax.Array:
        if augmentation.crop == "random":
            corners = random_corners(images, size, crop_rngs)
        else:
            corners = jnp.array([center_corner(images, size)])
        matrices = random_warps(warp_rngs, size, augmentation)
        edge = _happens(edge_rngs, augmentation.repeat_edge) if augmentation.repeat_edge else None
        return warp(images, matrices.at[:, :, 2].add(corners[:, ::-1]), size, edge)

    def transform(images: jax.Array, rngs: jax.Array) -> jax.Array:
        crop_rngs, flip_rngs, color_rngs, grey_rngs, resolution_rngs, edge_rngs = _split(rngs, 6)
        if augmentation.warps:
            images = crop_and_warp(images, crop_rngs, flip_rngs, edge_rngs)
        else:
            if augmentation.crop == "random":
                images = random_crop(images, size, crop_rngs)
            else:
                images = center_crop(images, size)
            if augmentation.flip:
                images = random_flip(images, flip_rngs, augmentation.flip)
        if augmentation.recolors:
            colors = random_colors(color_rngs, augmentation)
            images = brightness_contrast(images, *colors)
        if augmentation.grey:
            images = to_grey(images, _happens(grey_rngs, augmentation.grey))
        if augmentation.low_resolution:
            halvings = random_halvings(resolution_rngs, augmentation.low_resolution)
            images = reduce_resolution(images, halvings)
        return normalize(images, mean, std)

    return transform


def make_views_transform(
    size: int, mean: Sequence[float], std: Sequence[float], views: int
) -> Transform:
    """Returns `transform(images uint8 [B, H, W, 3]) -> float32 [B, views, size, size, 3]`.

    The first view is that of `make_eval_transform`, the second its mirror image, the third and
    fourth are the whole picture, made smaller, and its mirror image. To average over views of a
    test picture is the "over-sampling" of Levi & Hassner 2015, who take five crops, each mirrored.
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
