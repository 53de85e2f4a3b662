import itertools

import numpy as np
import pytest

from agenet.faces.pyramid import MAX_SIDE, OVERLAP, levels, reduce_image, tiles


def blob(shape: tuple[int, int], x: float, y: float, width: float) -> np.ndarray:
    """An image with a bright spot about (x, y)."""
    rows, columns = (np.arange(length) + 0.5 for length in shape)
    spot = np.exp(-((rows[:, None] - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
    return np.repeat((250 * spot).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("shape", [(3001, 4003), (1500, 2000), (999, 1281), (960, 1280)])
@pytest.mark.parametrize("place", [(0.1, 0.9), (0.93, 0.5)])
def test_reduced_images_do_not_shift(shape: tuple[int, int], place: tuple[float, float]) -> None:
    x, y = place[0] * shape[1], place[1] * shape[0]
    image, scale = reduce_image(blob(shape, x, y, 12), (1280, round(1280 * shape[0] / shape[1])))
    values = image[..., 0].astype(float)
    rows, columns = (np.arange(length) + 0.5 for length in values.shape)
    found = (values.sum(0) @ columns * scale[0], values.sum(1) @ rows * scale[1])
    assert found / values.sum() == pytest.approx((x, y), abs=0.1)


@pytest.mark.parametrize("size", [(1280, 960), (1999, 1500), (500, 370)])
def test_reduced_images_are_hardly_aliased(size: tuple[int, int]) -> None:
    board = (np.indices((3000, 4000)).sum(0) % 2 * 255).astype(np.uint8)
    image, _ = reduce_image(np.repeat(board[..., None], 3, axis=2), size)
    assert image.mean() == pytest.approx(127.5, abs=1)
    assert image.std() < 20  # 127 with interpolation alone


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((480, 640), [(480, 640), (240, 320)]),
        ((224, 224), [(224, 224)]),
        ((40, 60), [(64, 96)]),
        ((3000, 4000), [(960, 1280), (240, 320)]),
        ((3072, 4096), [(960, 1280), (240, 320)]),
        ((1000, 16_000), [(500, 8000), (125, 2000), (31, 500), (20, 320)]),
        ((6000, 8000), [(3000, 4000), (750, 1000), (240, 320)]),
        ((20, 50_000), [(10, 25_000)]),
        ((1, 1_000_000), []),
    ],
)
def test_levels(shape: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    found = list(levels(np.zeros((*shape, 3), np.uint8)))
    assert [level.image.shape[:2] for level in found] == sizes
    for level in found:
        covered = np.multiply(level.image.shape[1::-1], level.scale)
        assert covered == pytest.approx(shape[::-1], abs=8)  # without the last odd columns


@pytest.mark.parametrize("length", [1, 800, 1280, 1281, 2368, 2369, 5000, 31_250])
def test_tiles(length: int) -> None:
    image = np.arange(length)[None]
    parts = list(tiles(image))
    assert parts[0][0] == 0 and parts[-1][2][0, -1] == length - 1
    for left, top, part in parts:
        assert top == 0 and part[0, 0] == left and part.shape[1] <= MAX_SIDE
    for (_, _, before), (_, _, after) in itertools.pairwise(parts):
        assert before[0, -1] - after[0, 0] + 1 >= OVERLAP
    assert len(parts) <= length / (MAX_SIDE - OVERLAP) + 1
