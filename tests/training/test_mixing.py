"""CutMix's box, and the choice between mixup and CutMix."""

import jax
import numpy as np
import pytest

from agenet.training.mixing import box, draw_mixing, mix


@pytest.mark.parametrize("centre", [(8, 8), (0, 15), (3, 10)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_box_is_that_of_the_paper(centre: tuple[int, int], share: float) -> None:
    size = 16
    cut = int(size * np.sqrt(share))
    y, x = centre
    expected = np.zeros((size, size), bool)
    rows = slice(np.clip(y - cut // 2, 0, size), np.clip(y + cut // 2, 0, size))
    columns = slice(np.clip(x - cut // 2, 0, size), np.clip(x + cut // 2, 0, size))
    expected[rows, columns] = True
    np.testing.assert_array_equal(box(np.array(centre), share, size), expected)


def draw(mixup: float, cutmix: float, count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(0), count)
    found = jax.vmap(lambda key: draw_mixing(key, 16, mixup, cutmix))(keys)
    return np.asarray(found[0]), np.asarray(found[1])


def test_labels_count_by_their_pixels() -> None:
    proportion, own = draw(0.0, 1.0)
    assert own.shape == (500, 16, 16, 1) and set(np.unique(own)) == {0, 1}
    np.testing.assert_allclose(proportion, own.mean((1, 2, 3)), rtol=1e-6)
    assert 0.55 < proportion.mean() < 0.75  # 1/2 but for what lies beyond the image
    assert len(np.unique(own.reshape(500, -1), axis=0)) > 300


def test_each_batch_takes_one_of_both() -> None:
    proportion, own = draw(1.0, 1.0)
    averaged = (own == proportion[:, None, None, None]).all((1, 2, 3))
    cut = (np.isin(own, (0, 1))).all((1, 2, 3)) & ~averaged
    assert (averaged | cut | np.isin(proportion, (0, 1))).all()
    assert 200 < averaged.sum() < 300
    np.testing.assert_allclose(proportion, own.reshape(500, -1).mean(1), rtol=1e-5)


def test_mix() -> None:
    images = np.arange(3.0).reshape(3, 1, 1, 1) * np.ones((3, 4, 4, 3))
    own = np.ones((4, 4, 1))
    own[:2] = 0
    labels = np.arange(3)
    found = mix({"image": 0, "row": 0, "age": labels, "teacher": {"age": labels}}, images, own)
    assert found.keys() == {"age", "teacher", "mixed", "partner"}
    np.testing.assert_array_equal(found["mixed"][:, 0, 0, 0], [2, 0, 1])
    np.testing.assert_array_equal(found["mixed"][:, 3, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(found["partner"]["teacher"]["age"], [2, 0, 1])
