import numpy as np
import pytest

from agenet.data.order import (
    TrainingOrder,
    balanced_order,
    evaluation_batches,
    steps_per_epoch,
    training_batch,
)

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


# Common, middle, rare, and without a label.
STRATA = np.repeat([2, 0, 5, -1], [600, 250, 50, 100])


def test_balanced_epochs() -> None:
    orders = [balanced_order(STRATA, 0, epoch) for epoch in range(3)]
    counts = []
    for order in orders:
        assert order.shape == STRATA.shape
        drawn = np.bincount(STRATA[order] + 1, minlength=7)
        assert drawn.tolist() == [100, 300, 0, 300, 0, 0, 300]  # Those without keep their share.
        counts.append(np.bincount(order, minlength=len(STRATA)))
        assert set(counts[-1][STRATA == 2]) == {0, 1}
        assert set(counts[-1][STRATA == 0]) == {1, 2}
        assert set(counts[-1][STRATA == 5]) == {6}
        # Mixed well: in every tenth of an epoch.
        for part in np.array_split(order, 10):
            assert 15 < (STRATA[part] == 5).sum() < 45
    assert (counts[0] != counts[1]).any() and (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(orders[2], balanced_order(STRATA.copy(), 0, 2))
    assert (orders[0] != balanced_order(STRATA, 1, 0)).any()
    assert sorted(balanced_order(STRATA[-100:], 0, 0)) == list(range(100))


def test_balanced_batches_continue_at_any_step() -> None:
    rows = np.arange(5000, 6000)
    order = TrainingOrder(rows, 64, seed=3, strata=STRATA)
    assert order.steps_per_epoch == 15
    batches = order.batches(0)
    first = [next(batches) for _ in range(40)]
    np.testing.assert_array_equal(np.concatenate(first[15:30]), order.epoch(1)[: 15 * 64])
    for step in (0, 14, 15, 22, 39):
        np.testing.assert_array_equal(next(order.batches(step)), first[step])
