import numpy as np
import pytest

from agenet.data.order import evaluation_batches, steps_per_epoch, training_batch

INDICES = np.arange(1000, 1023, dtype=np.int32)


def epoch(number: int, *, seed: int = 0, batch_size: int = 5) -> np.ndarray:
    steps = steps_per_epoch(len(INDICES), batch_size)
    return np.concatenate(
        [
            training_batch(INDICES, batch_size, seed=seed, step=number * steps + position)
            for position in range(steps)
        ]
    )


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_no_face_is_repeated_in_an_epoch(batch_size: int) -> None:
    drawn = epoch(3, batch_size=batch_size)
    assert len(drawn) == 23 // batch_size * batch_size
    assert len(np.unique(drawn)) == len(drawn) and np.isin(drawn, INDICES).all()


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch(0), epoch(1), epoch(2), epoch(0, seed=1), epoch(1, seed=1)]
    assert len({order.tobytes() for order in orders}) == len(orders)


def test_leftover_faces_differ_between_epochs() -> None:
    seen = np.unique(np.concatenate([epoch(number) for number in range(5)]))
    np.testing.assert_array_equal(seen, INDICES)


def test_order_is_a_function_of_seed_and_step() -> None:
    steps = [17, 3, 4, 0, 17, 9]  # in arbitrary order
    batches = {step: training_batch(INDICES, 5, seed=7, step=step) for step in range(18)}
    for step in steps:
        again = training_batch(INDICES.copy(), 5, seed=7, step=step)
        np.testing.assert_array_equal(again, batches[step])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 23])
def test_evaluation_sees_every_face_once_in_order(count: int) -> None:
    batches = list(evaluation_batches(INDICES[:count], 8))
    assert all(part.shape == mask.shape == (8,) and mask.dtype == bool for part, mask in batches)
    seen = np.concatenate([part[mask] for part, mask in batches])
    np.testing.assert_array_equal(seen, INDICES[:count])
    padding = np.concatenate([part[~mask] for part, mask in batches])
    assert np.isin(padding, INDICES).all()  # existing rows, so that they can be read
