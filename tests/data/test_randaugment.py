"""RandAugment's operations against Pillow, and their distribution."""

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from agenet.data import randaugment
from agenet.data.augment import example_keys
from agenet.data.randaugment import OPERATIONS, apply_operations, equalize, rand_augment

SIZE, LEVEL = 24, 0.3  # magnitude 9 of 30
Image = PIL.Image.Image


def pictures() -> np.ndarray:
    """Noise on a slope, uint8 [4, 24, 24, 3]; the last has one value in each channel."""
    rng = np.random.default_rng(0)
    slope = np.linspace(20, 180, SIZE)[:, None, None] + np.array([0, 15, 30])
    images = slope + rng.integers(-20, 40, (4, SIZE, SIZE, 3))
    images[3] = (10, 100, 200)
    return images.astype(np.uint8)


def shear(image: Image, *matrix: float) -> Image:
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, BILINEAR)


BILINEAR = PIL.Image.Resampling.BILINEAR
SHIFT = int(150 / 331 * SIZE * LEVEL)
Operation = Callable[[Image, int], Image]
# As torchvision's RandAugment has them for magnitude 9, with a sign where there are two directions.
PILLOW: dict[str, Operation] = {
    "identity": lambda image, sign: image,
    "shear_x": lambda image, sign: shear(image, 1, sign * 0.09, 0, 0, 1, 0),
    "shear_y": lambda image, sign: shear(image, 1, 0, 0, sign * 0.09, 1, 0),
    "translate_x": lambda image, sign: shear(image, 1, 0, -sign * SHIFT, 0, 1, 0),
    "translate_y": lambda image, sign: shear(image, 1, 0, 0, 0, 1, -sign * SHIFT),
    "rotate": lambda image, sign: image.rotate(sign * 9, BILINEAR),
    "brightness": lambda i, sign: PIL.ImageEnhance.Brightness(i).enhance(1 + sign * 0.27),
    "color": lambda i, sign: PIL.ImageEnhance.Color(i).enhance(1 + sign * 0.27),
    "contrast": lambda i, sign: PIL.ImageEnhance.Contrast(i).enhance(1 + sign * 0.27),
    "sharpness": lambda i, sign: PIL.ImageEnhance.Sharpness(i).enhance(1 + sign * 0.27),
    "posterize": lambda image, sign: PIL.ImageOps.posterize(image, 8 - round(9 / (30 / 4))),
    "solarize": lambda image, sign: PIL.ImageOps.solarize(image, 255 * (1 - LEVEL)),
    "autocontrast": lambda image, sign: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, sign: PIL.ImageOps.equalize(image),
}
GEOMETRIC = ("shear_x", "shear_y", "rotate")


@pytest.fixture(scope="module")
def apply() -> Callable[..., jax.Array]:
    return jax.jit(apply_operations)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name: str, sign: int, apply: Callable[..., jax.Array]) -> None:
    images = pictures()
    operations = jnp.full(4, OPERATIONS.index(name))
    found = apply(jnp.float32(images), operations, jnp.full(4, sign * LEVEL))
    expected = np.stack([PILLOW[name](PIL.Image.fromarray(image), sign) for image in images])
    if name in GEOMETRIC:  # At its edge Pillow does not interpolate between image and border.
        marked = np.stack([PILLOW[name](PIL.Image.new("RGB", (SIZE, SIZE), "white"), sign)] * 4)
        inside = np.ones_like(marked, bool)
        for axis, shift in ((1, 1), (1, -1), (2, 1), (2, -1)):
            inside &= np.roll(marked, shift, axis) == 255
        inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
        assert inside.mean() > 0.5
        found, expected = np.where(inside, found, 0), np.where(inside, expected, 0)
    # Pillow drops fractions, the luma's included, which contrast then multiplies.
    np.testing.assert_allclose(found, expected, atol=1.3)
    if name != "identity":
        assert np.abs(np.asarray(found)[:3] - images[:3]).mean() > 0.4


def test_operations_do_not_touch_other_images(apply: Callable[..., jax.Array]) -> None:
    images = jnp.float32(np.repeat(pictures()[:1], len(OPERATIONS), 0))
    level = jnp.full(len(OPERATIONS), -LEVEL)
    mixed = apply(images, jnp.arange(len(OPERATIONS)), level)
    np.testing.assert_array_equal(mixed[0], images[0])
    for number in range(len(OPERATIONS)):
        alone = apply(images, jnp.full(len(OPERATIONS), number), level)
        np.testing.assert_allclose(mixed[number], alone[number], atol=1e-4)


def test_equalize_of_few_values() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 0, 0] = 255
    expected = np.asarray(PIL.ImageOps.equalize(PIL.Image.fromarray(image[0])))
    np.testing.assert_array_equal(equalize(jnp.float32(image))[0], expected)


def test_draws_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(images: jax.Array, operations: jax.Array, level: jax.Array) -> jax.Array:
        drawn.append((np.asarray(operations), np.asarray(level)))
        return images

    monkeypatch.setattr(randaugment, "apply_operations", record)
    keys = example_keys(jax.random.key(0), 0, jnp.arange(4096))
    rand_augment(jnp.zeros((4096, 1, 1, 3)), keys, 2, 9.0)
    (first, level), (second, _) = drawn
    for operations in (first, second):
        counts = Counter(operations.tolist())
        assert sorted(counts) == list(range(len(OPERATIONS)))
        assert min(counts.values()) > 220 and max(counts.values()) < 370  # 293 each
    assert 0.05 < np.mean(first == second) < 0.09  # 1/14: independent of each other
    np.testing.assert_allclose(np.abs(level), 0.3, rtol=1e-6)
    assert abs(np.sign(level).mean()) < 0.05
