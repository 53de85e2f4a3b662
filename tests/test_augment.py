from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.data.augment import (
    center_crop,
    make_eval_transform,
    make_train_transform,
    normalize,
    random_crop,
    random_flip,
)
from agenet.sharding import batch_sharded, create_mesh, replicated

MEAN, STD = (100.0, 50.0, 25.0), (10.0, 20.0, 40.0)
SIZE = 6


def coordinates(batch: int, height: int = 8, width: int = 9) -> np.ndarray:
    """Pictures whose pixels say where they are: (picture, row, column), each modulo 256."""
    grid = np.stack(np.meshgrid(range(batch), range(height), range(width), indexing="ij"), -1)
    return grid.astype(np.uint8)


def key(number: int = 0) -> jax.Array:
    return jax.random.key(number)


TRANSFORMS = {
    "normalize": lambda images, rng: normalize(images, MEAN, STD),
    "center_crop": lambda images, rng: center_crop(images, SIZE),
    "random_crop": lambda images, rng: random_crop(images, SIZE, rng),
    "random_flip": random_flip,
    "train": make_train_transform(SIZE, MEAN, STD),
    "eval": lambda images, rng: make_eval_transform(SIZE, MEAN, STD)(images),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_eager_compiled_and_divided_agree(transform: Callable[..., jax.Array]) -> None:
    images = coordinates(16)
    eager = transform(jnp.asarray(images), key())
    compiled = jax.jit(transform)(images, key())
    mesh = create_mesh()
    divided = jax.jit(
        transform,
        in_shardings=(batch_sharded(mesh), replicated(mesh)),
        out_shardings=batch_sharded(mesh),
    )(images, key())
    assert len(divided.addressable_shards) == 8
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)
    np.testing.assert_allclose(divided, eager, rtol=1e-6)


@pytest.mark.parametrize("name", ["random_crop", "random_flip", "train"])
def test_chance_is_a_function_of_the_key(name: str) -> None:
    transform, images = TRANSFORMS[name], jnp.asarray(coordinates(16))
    first, again, other = (transform(images, key(number)) for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


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


def test_random_crop_is_uniform_over_all_places() -> None:
    images = coordinates(4096)
    crops = np.asarray(random_crop(jnp.asarray(images), SIZE, key()))
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


def test_crop_of_the_whole_picture() -> None:
    images = jnp.asarray(coordinates(3, SIZE, SIZE))
    np.testing.assert_array_equal(random_crop(images, SIZE, key()), images)


def test_random_flip_mirrors_half() -> None:
    images = coordinates(4096)
    result = np.asarray(random_flip(jnp.asarray(images), key()))
    flipped = result[:, 0, 0, 2] == 8
    assert 0.46 < flipped.mean() < 0.54
    np.testing.assert_array_equal(result[flipped], images[flipped][:, :, ::-1])
    np.testing.assert_array_equal(result[~flipped], images[~flipped])


def test_training_crops_flips_and_normalises() -> None:
    images = coordinates(64)
    result = np.asarray(make_train_transform(SIZE, MEAN, STD)(jnp.asarray(images), key()))
    pixels = np.rint(result * STD + MEAN).astype(int)
    rows, columns = pixels[..., 1], pixels[..., 2]
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    steps = np.diff(columns, axis=2)
    assert (np.abs(steps) == 1).all() and len(np.unique(steps[:, 0, 0])) == 2
    # Crop and flip are drawn apart: both directions occur with every left edge.
    edges = {(int(c.min()), int(s)) for c, s in zip(columns, steps[:, 0, 0], strict=True)}
    assert len(edges) == 4 * 2


def test_training_and_evaluation_normalise_alike() -> None:
    images = jnp.full((2, SIZE, SIZE, 3), 77, jnp.uint8)
    train = make_train_transform(SIZE, MEAN, STD)(images, key())
    np.testing.assert_array_equal(train, make_eval_transform(SIZE, MEAN, STD)(images))
