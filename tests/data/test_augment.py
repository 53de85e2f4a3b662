import dataclasses
import warnings
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.stats

from agenet.data.augment import (
    Augmentation,
    brightness_contrast,
    center_crop,
    example_keys,
    make_eval_transform,
    make_train_transform,
    make_views_transform,
    normalize,
    random_colors,
    random_crop,
    random_erase,
    random_flip,
    random_halvings,
    random_warps,
    reduce_resolution,
    to_grey,
)
from agenet.distributed.mesh import batch_sharded, create_mesh

MEAN, STD = (100.0, 50.0, 25.0), (10.0, 20.0, 40.0)
SIZE = 6
WARPING = Augmentation(shift=0.03125, scale=0.2, rotate=20, brightness=0.2, contrast=0.2)


def coordinates(batch: int, height: int = 8, width: int = 9) -> np.ndarray:
    """Images whose pixels say where they are: (image, row, column), each modulo 256."""
    grid = np.stack(np.meshgrid(range(batch), range(height), range(width), indexing="ij"), -1)
    return grid.astype(np.uint8)


def keys(batch: int, epoch: int = 0) -> jax.Array:
    return example_keys(jax.random.key(0), epoch, jnp.arange(batch))


TRANSFORMS = {
    "normalize": lambda images, rngs: normalize(images, MEAN, STD),
    "center_crop": lambda images, rngs: center_crop(images, SIZE),
    "random_crop": lambda images, rngs: random_crop(images, SIZE, rngs),
    "random_flip": random_flip,
    "train": make_train_transform(SIZE, MEAN, STD),
    "warping": make_train_transform(SIZE, MEAN, STD, WARPING),
    "poor": make_train_transform(SIZE, MEAN, STD, Augmentation(grey=0.5, low_resolution=0.5)),
    "knobs": make_train_transform(SIZE, MEAN, STD, Augmentation(randaugment=1, erase=0.5)),
    "views": lambda images, rngs: make_views_transform(SIZE, MEAN, STD, 4)(images),
    "eval": lambda images, rngs: make_eval_transform(SIZE, MEAN, STD)(images),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_eager_compiled_and_sharded_agree(transform: Callable[..., jax.Array]) -> None:
    images = coordinates(16)
    eager = transform(jnp.asarray(images), keys(16))
    compiled = jax.jit(transform)(images, keys(16))
    mesh = create_mesh()
    on_all = jax.jit(
        transform,
        in_shardings=batch_sharded(mesh),
        out_shardings=batch_sharded(mesh),
    )
    divided = on_all(images, keys(16))
    assert len(divided.addressable_shards) == 8
    program = on_all.lower(images, keys(16)).compile().as_text()
    assert not any(name in program for name in ("all-reduce", "all-gather", "all-to-all"))
    # Values are 0 to 255, normalised; warps interpolate, so errors in positions matter.
    tolerance = {"rtol": 1e-6, "atol": 1e-4 if transform is TRANSFORMS["warping"] else 0}
    np.testing.assert_allclose(compiled, eager, **tolerance)
    np.testing.assert_allclose(divided, eager, **tolerance)


def test_views() -> None:
    images = jnp.asarray(coordinates(4))
    views = make_views_transform(SIZE, (0.0,) * 3, (1.0,) * 3, 4)(images)
    middle = make_eval_transform(SIZE, (0.0,) * 3, (1.0,) * 3)(images)
    np.testing.assert_array_equal(views[:, 0], middle)
    np.testing.assert_array_equal(views[:, 1], middle[:, :, ::-1])
    np.testing.assert_allclose(views[:, 3], views[:, 2, :, ::-1], rtol=1e-6)
    # The whole image: coordinates from edge to edge, with the same mean.
    np.testing.assert_allclose(views[:, 2].mean((1, 2)), images.mean((1, 2)), atol=0.1)
    assert np.ptp(views[0, 2, :, 0, 1]) > np.ptp(views[0, 0, :, 0, 1])


@pytest.mark.parametrize(
    "name", ["random_crop", "random_flip", "train", "warping", "poor", "knobs"]
)
def test_randomness_is_a_function_of_epoch_and_row(name: str) -> None:
    transform, images = TRANSFORMS[name], jnp.asarray(coordinates(16))
    first, again, other = (transform(images, keys(16, epoch)) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    rows = jnp.array([9, 2, 15])
    alone = transform(images[rows], example_keys(jax.random.key(0), 0, rows))
    np.testing.assert_allclose(alone, first[rows], rtol=1e-6, atol=1e-5)


def test_erasing_draws_rectangles_as_torchvision_does() -> None:
    side, count = 40, 3000
    erased = np.asarray(random_erase(jnp.ones((count, side, side, 3)), keys(count), 0.6, 0.33)) == 0
    assert np.array_equal(erased[..., 0], erased[..., 1])
    chosen = erased[..., 0][erased.any((1, 2, 3))]
    assert len(chosen) / count == pytest.approx(0.6, abs=0.03)
    heights, widths = chosen.any(2).sum(1), chosen.any(1).sum(1)
    np.testing.assert_array_equal(chosen.sum((1, 2)), heights * widths)  # rectangles, in one piece
    for lines, sizes in ((chosen.any(2), heights), (chosen.any(1), widths)):
        first, last = lines.argmax(1), side - 1 - lines[:, ::-1].argmax(1)
        np.testing.assert_array_equal(last - first + 1, sizes)
        # Anywhere, with equal probability.
        position = (first + 0.5) / (side - sizes + 1)
        assert scipy.stats.kstest(position, "uniform").statistic < 0.05
    assert max(heights.max(), widths.max()) < side
    # torchvision's loop, with NumPy's draws.
    rng, expected = np.random.default_rng(0), []
    while len(expected) < 3000:
        area = side * side * rng.uniform(0.02, 0.33)
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if h < side and w < side:
            expected.append((h * w, h / w))
    for found, right in zip(
        (heights * widths, heights / widths), np.transpose(expected), strict=True
    ):
        assert scipy.stats.ks_2samp(found, right).statistic < 0.05


def test_normalize() -> None:
    result = normalize(jnp.asarray(coordinates(2)), MEAN, STD)
    assert result.dtype == jnp.float32
    expected = (coordinates(2).astype(np.float64) - MEAN) / STD
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 9, 1, 1), (6, 6, 0, 0)])
def test_center_crop(height: int, width: int, top: int, left: int) -> None:
    images = coordinates(2, height, width)
    expected = images[:, top : top + SIZE, left : left + SIZE]
    np.testing.assert_array_equal(center_crop(jnp.asarray(images), SIZE), expected)


def test_random_crop_is_uniform_over_all_positions() -> None:
    images = coordinates(4096)
    crops = np.asarray(random_crop(jnp.asarray(images), SIZE, keys(4096)))
    corners = crops[:, 0, 0, 1:].astype(int)
    for row in range(0, 4096, 512):
        top, left = corners[row]
        expected = images[row, top : top + SIZE, left : left + SIZE]
        np.testing.assert_array_equal(crops[row], expected)
    counts = np.zeros((8 - SIZE + 1, 9 - SIZE + 1))
    np.add.at(counts, tuple(corners.T), 1)
    expected_count = 4096 / counts.size
    chi_square = np.sum((counts - expected_count) ** 2) / expected_count
    assert chi_square < 31.3  # 0.1 % quantile of 11 degrees of freedom


def test_crop_of_the_whole_image() -> None:
    images = jnp.asarray(coordinates(3, SIZE, SIZE))
    np.testing.assert_array_equal(random_crop(images, SIZE, keys(3)), images)


def test_random_flip_mirrors_half() -> None:
    images = coordinates(4096)
    result = np.asarray(random_flip(jnp.asarray(images), keys(4096)))
    flipped = result[:, 0, 0, 2] == 8
    assert 0.46 < flipped.mean() < 0.54
    np.testing.assert_array_equal(result[flipped], images[flipped][:, :, ::-1])
    np.testing.assert_array_equal(result[~flipped], images[~flipped])


@pytest.mark.parametrize("warping", [{}, {"shift": 1e-9}], ids=["cropping", "warping"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("crop", ["random", "center"])
def test_crop_and_flip_with_and_without_warp(
    crop: str, flip: float, warping: dict[str, float]
) -> None:
    images = jnp.asarray(coordinates(16))
    augmentation = Augmentation(crop=crop, flip=flip, **warping)
    transform = make_train_transform(SIZE, (0, 0, 0), (1, 1, 1), augmentation)
    crop_rngs = jax.vmap(lambda rng: jax.random.split(rng, 3)[0])(keys(16))
    expected = (
        random_crop(images, SIZE, crop_rngs) if crop == "random" else center_crop(images, SIZE)
    )
    expected = expected[:, :, ::-1] if flip else expected
    np.testing.assert_allclose(transform(images, keys(16)), expected, atol=1e-4)


def test_training_crops_flips_and_normalises() -> None:
    images = coordinates(64)
    result = np.asarray(make_train_transform(SIZE, MEAN, STD)(jnp.asarray(images), keys(64)))
    pixels = np.rint(result * STD + MEAN).astype(int)
    rows, columns = pixels[..., 1], pixels[..., 2]
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    steps = np.diff(columns, axis=2)
    assert (np.abs(steps) == 1).all() and len(np.unique(steps[:, 0, 0])) == 2
    # Crop and flip are independent: both directions occur with every left edge.
    edges = {(int(c.min()), int(s)) for c, s in zip(columns, steps[:, 0, 0], strict=True)}
    assert len(edges) == 4 * 2


def test_training_and_evaluation_normalise_alike() -> None:
    images = jnp.full((2, SIZE, SIZE, 3), 77, jnp.uint8)
    train = make_train_transform(SIZE, MEAN, STD)(images, keys(2))
    np.testing.assert_array_equal(train, make_eval_transform(SIZE, MEAN, STD)(images))


def parameters(augmentation: Augmentation, batch: int = 4096) -> dict[str, np.ndarray]:
    """The parameters that `random_warps` and `random_colors` drew, from the matrices."""
    size = 101
    matrices = np.asarray(random_warps(keys(batch), size, augmentation), np.float64)
    scale = np.abs(np.linalg.det(matrices[:, :, :2])) ** -0.5
    middle = np.array([50.0, 50.0, 1.0])
    # Undoes rotation and scale of the shift of the centre.
    shift = np.linalg.solve(matrices[:, :, :2], (50 - matrices @ middle)[..., None])[..., 0] / size
    mirror = np.sign(np.linalg.det(matrices[:, :, :2]))
    brightness, contrast = random_colors(keys(batch, 1), augmentation)
    return {
        "shift_x": shift[:, 0],
        "shift_y": shift[:, 1],
        "scale": scale - 1,
        "rotate": -np.rad2deg(np.arctan2(matrices[:, 0, 1], matrices[:, 1, 1])),
        "mirror": mirror,
        "brightness": np.asarray(brightness),
        "contrast": np.asarray(contrast),
    }


LIMITS = {
    "shift_x": 0.03125,
    "shift_y": 0.03125,
    "scale": 0.2,
    "rotate": 20,
    "brightness": 0.2,
    "contrast": 0.2,
}


def test_parameters_are_uniform_and_independent() -> None:
    drawn = parameters(dataclasses.replace(WARPING, color_probability=1))
    assert 0.46 < np.mean(drawn["mirror"] == 1) < 0.54
    for name, limit in LIMITS.items():
        assert np.abs(drawn[name]).max() < limit * 1.001
        assert scipy.stats.kstest(drawn[name] / limit, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    correlation = np.corrcoef(list(drawn.values())) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 0.07


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_probability_applies_to_all_parameters_together(probability: float) -> None:
    drawn = parameters(
        dataclasses.replace(WARPING, warp_probability=probability, color_probability=probability)
    )
    changed = {name: np.abs(drawn[name]) > limit / 1e3 for name, limit in LIMITS.items()}
    assert abs(changed["scale"].mean() - probability) < 0.03
    assert abs(changed["contrast"].mean() - probability) < 0.03
    for first, second in [("scale", "rotate"), ("scale", "shift_x"), ("contrast", "brightness")]:
        assert np.mean(changed[first] != changed[second]) < 0.01


def test_disabled_transforms_cost_nothing() -> None:
    def program(augmentation: Augmentation) -> str:
        transform = make_train_transform(SIZE, MEAN, STD, augmentation)
        return str(jax.make_jaxpr(transform)(jnp.asarray(coordinates(2)), keys(2)))

    plain = program(Augmentation())
    off = dataclasses.replace(WARPING, warp_probability=0, color_probability=0)
    assert program(off) == program(Augmentation(brightness=0, rotate=0)) == plain
    assert "floor" not in plain and "clamp" not in plain
    still = program(Augmentation(crop="center", flip=0))
    assert not any(name in still for name in ("gather", "select", "reverse", "floor"))


def test_warp_uses_the_stored_image_around_the_crop() -> None:
    augmentation = Augmentation(crop="center", shift=0.03125, scale=0.2, rotate=20)
    transform = jax.jit(make_train_transform(32, (0, 0, 0), (1, 1, 1), augmentation))
    for size, black in ((64, False), (32, True)):
        result = np.asarray(transform(np.full((64, size, size, 3), 200, np.uint8), keys(64)))
        assert np.any(result == 0) == black
        assert result.max() <= 200.001 and np.all(result[:, 8:24, 8:24] > 199.9)


@pytest.mark.parametrize("brightness", [-0.2, 0.0, 0.2])
@pytest.mark.parametrize("contrast", [-0.2, 0.0, 0.2])
def test_brightness_and_contrast(brightness: float, contrast: float) -> None:
    values = np.arange(256, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    expected = np.clip(values * (1 + contrast) + 255 * brightness, 0, 255)
    changes = jnp.array([[brightness, 0.0], [contrast, 0.0]])
    for apply in (brightness_contrast, jax.jit(brightness_contrast)):
        result = apply(jnp.stack([values, values]), *changes)
        np.testing.assert_allclose(result[0], expected, atol=1e-4)
        np.testing.assert_array_equal(result[1], values)


@pytest.mark.parametrize("brightness", [-0.2, 0.2])
@pytest.mark.parametrize("contrast", [-0.2, 0.0, 0.2])
def test_same_colours_as_albumentations(
    brightness: float, contrast: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    values = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = pytest.importorskip("albumentations").RandomBrightnessContrast(
            (brightness, brightness), (contrast, contrast), p=1
        )
        expected = transform(image=values)["image"]
    result = brightness_contrast(values[None], jnp.array([brightness]), jnp.array([contrast]))
    error = np.asarray(result[0]) - expected
    assert error.min() > -1e-3 and error.max() < 1.001  # It rounds down.


def test_grey_equals_opencv() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    result = np.asarray(to_grey(images, jnp.array([True, False])))
    expected = cv2.cvtColor(images[0].astype(np.float32), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(result[0], expected[..., None].repeat(3, -1), atol=1e-3)
    np.testing.assert_array_equal(result[1], images[1])


def test_reduced_resolution_equals_shrinking_and_enlarging() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    result = np.asarray(reduce_resolution(images, jnp.array([0.0, 1.0, 2.0])))
    np.testing.assert_array_equal(result[0], images[0])
    for image, lost, by in zip(images[1:], result[1:], (2, 4), strict=True):
        with PIL.Image.fromarray(image) as pil_image:
            small = pil_image.resize((24 // by, 16 // by), PIL.Image.Resampling.BILINEAR)
            expected = small.resize((24, 16), PIL.Image.Resampling.BILINEAR)
        assert np.abs(lost - np.asarray(expected)).max() < 2  # It rounds twice.
    halfway = reduce_resolution(images[:1].repeat(2, 0), jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(halfway[0], (images[0] + halfway[1]) / 2, atol=1e-3)


def test_probabilities_of_grey_and_low_resolution() -> None:
    halvings = np.asarray(random_halvings(keys(4096), 0.25))
    lost = halvings[halvings > 0]
    assert abs(len(lost) / 4096 - 0.25) < 0.03
    assert scipy.stats.kstest(lost / 2, scipy.stats.uniform(0, 1).cdf).pvalue > 1e-3
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(512, 0)
    augmentation = Augmentation(crop="center", flip=0, grey=0.25)
    shown = make_train_transform(8, (0, 0, 0), (1, 1, 1), augmentation)(images, keys(512))
    grey = np.all(np.ptp(np.asarray(shown), -1) < 1e-3, (1, 2))
    assert abs(grey.mean() - 0.25) < 0.06
