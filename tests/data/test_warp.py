import itertools
import warnings

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from agenet.data.warp import shift_scale_rotate, warp

SIZE = 48
# Shifts in whole and in half pixels at all corners of the usual limits; then exact warps.
LIMITS = [*itertools.product([(3, -2), (-1.5, 1.5)], [0.8, 1.2], [-20.0, 20.0], [False, True])]
EXACT = [*itertools.product([(0, 0), (5, -3), (SIZE, 0)], [1.0], [0.0], [False, True])]
CASES = LIMITS + EXACT  # (right and down in pixels, factor, degrees, mirrored)
# OpenCV 4 rounds positions to 1/32 pixel, an error of up to 1/64 in each direction, at edges of up
# to 255; it and OpenCV 5 also round the result.
OPENCV_ERROR = 2 * 255 / 64 + 0.51


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth and not dark, so that the border shows."""
    noise = np.random.default_rng(0).integers(60, 256, (6, 6, 3), np.uint8)
    return cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def matrices_of(cases: list[tuple[tuple[float, float], float, float, bool]]) -> jax.Array:
    shift, scale, rotate, flip = (jnp.array(values) for values in zip(*cases, strict=True))
    return shift_scale_rotate(shift / SIZE, scale, rotate, flip, SIZE)


@pytest.fixture(scope="module")
def warped(image: np.ndarray) -> np.ndarray:
    images = jnp.tile(image, (len(CASES), 1, 1, 1))
    return np.asarray(jax.jit(warp, static_argnums=2)(images, matrices_of(CASES), SIZE))


def test_interpolation_is_bilinear_with_black_border(image: np.ndarray, warped: np.ndarray) -> None:
    grid = np.stack([*np.meshgrid(range(SIZE), range(SIZE)), np.ones((SIZE, SIZE))])
    for matrix, result in zip(np.asarray(matrices_of(CASES), np.float64), warped, strict=True):
        x, y = np.einsum("ij,jyx->iyx", matrix, grid)
        for channel in range(3):
            expected = scipy.ndimage.map_coordinates(
                image[..., channel].astype(np.float64), [y, x], order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(result[..., channel], expected, atol=0.02)


def test_repeated_edges(image: np.ndarray, warped: np.ndarray) -> None:
    images, asked = jnp.tile(image, (len(CASES), 1, 1, 1)), jnp.arange(len(CASES)) % 2 == 0
    mixed = np.asarray(jax.jit(warp, static_argnums=2)(images, matrices_of(CASES), SIZE, asked))
    grid = np.stack([*np.meshgrid(range(SIZE), range(SIZE)), np.ones((SIZE, SIZE))])
    for row, matrix in enumerate(np.asarray(matrices_of(CASES), np.float64)):
        if not asked[row]:
            np.testing.assert_array_equal(mixed[row], warped[row])
            continue
        x, y = np.einsum("ij,jyx->iyx", matrix, grid)
        expected = scipy.ndimage.map_coordinates(
            image[..., 0].astype(np.float64), [y, x], order=1, mode="nearest"
        )
        np.testing.assert_allclose(mixed[row, ..., 0], expected, atol=0.02)


def test_same_warps_as_opencv(image: np.ndarray, warped: np.ndarray) -> None:
    for (shift, scale, rotate, flip), result in zip(CASES, warped, strict=True):
        matrix = cv2.getRotationMatrix2D(((SIZE - 1) / 2,) * 2, rotate, scale)
        matrix[:, 2] += shift
        expected = cv2.warpAffine(image, matrix, (SIZE, SIZE))
        error = np.abs(result - (expected[:, ::-1] if flip else expected))
        assert error.max() < OPENCV_ERROR and error.mean() < 0.5


def test_same_warps_as_albumentations(
    image: np.ndarray, warped: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        albumentations = pytest.importorskip("albumentations")
        for (shift, scale, rotate, flip), result in zip(LIMITS, warped, strict=False):
            if shift != tuple(map(round, shift)):
                continue  # Version 2 shifts by whole pixels only.
            # Half a pixel more, because it rounds towards zero.
            x, y = ((value + np.sign(value) / 2) / SIZE for value in shift)
            transform = albumentations.Compose(
                [
                    albumentations.ShiftScaleRotate(
                        shift_limit_x=(x, x),
                        shift_limit_y=(y, y),
                        scale_limit=(scale - 1, scale - 1),
                        rotate_limit=(rotate, rotate),
                        border_mode=cv2.BORDER_CONSTANT,
                        p=1,
                    ),
                    albumentations.HorizontalFlip(p=float(flip)),
                ]
            )
            error = np.abs(result - transform(image=image)["image"])
            assert error.max() < OPENCV_ERROR and error.mean() < 0.5


def test_whole_pixels_are_exact_and_the_border_black(image: np.ndarray, warped: np.ndarray) -> None:
    shifted = np.zeros_like(image)
    shifted[:-3, 5:] = image[3:, :-5]
    expected = [image, image[:, ::-1], shifted, shifted[:, ::-1], 0 * image, 0 * image]
    np.testing.assert_array_equal(warped[-len(EXACT) : -4], expected[:2])
    np.testing.assert_allclose(warped[-4:], expected[2:], atol=0.01)


def test_compiled_equals_eager(image: np.ndarray, warped: np.ndarray) -> None:
    images = jnp.tile(image, (len(CASES), 1, 1, 1))
    np.testing.assert_allclose(warp(images, matrices_of(CASES), SIZE), warped, atol=1e-2)


def test_noise_at_almost_integer_positions() -> None:
    # Noise shows whether a pixel and its weight are rounded consistently.
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    rows = jnp.array([[1 / 3, 1 / 3, 0.1], [-1 / 7, 2 / 7, 20.2]])
    matrices = jnp.stack([rows, rows[::-1]])
    compiled = jax.jit(lambda images: warp(images, matrices, 64))(images)
    x, y = np.einsum(
        "ij,jyx->iyx",
        np.asarray(rows, np.float64),
        np.stack([*np.meshgrid(range(64), range(64)), np.ones((64, 64))]),
    )
    for result, image, places in zip(compiled, images, ([y, x], [x, y]), strict=True):
        for channel in range(3):
            expected = scipy.ndimage.map_coordinates(
                image[..., channel].astype(np.float64), places, order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(result[..., channel], expected, atol=0.02)
