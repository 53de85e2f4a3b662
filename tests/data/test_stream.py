import dataclasses
import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from agenet.data import stream
from agenet.data.order import evaluation_batches, training_batch
from agenet.data.records import Records, open_records
from agenet.data.resident import BatchRows, ResidentImages
from agenet.data.stream import AHEAD, StreamedImages
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError

SIZE, BATCH = 20, 16


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records(200)


def create(records: Records, devices: int = 8) -> StreamedImages:
    return StreamedImages(records, size=SIZE, mesh=create_mesh(jax.devices()[:devices]))


def training(count: int, *, first: int = 0) -> list[BatchRows]:
    rows = np.arange(3, 200)
    return [(training_batch(rows, BATCH, seed=1, step=step), None) for step in range(first, count)]


def assert_same(one: dict[str, jax.Array], other: dict[str, jax.Array]) -> None:
    assert one.keys() == other.keys()
    for name, column in one.items():
        assert column.dtype == other[name].dtype and column.sharding == other[name].sharding
        np.testing.assert_array_equal(column, other[name])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("on_device", [True, False])
def test_same_batches_as_resident_images(records: Records, devices: int, on_device: bool) -> None:
    mesh = create_mesh(jax.devices()[:devices])
    resident = ResidentImages(records, size=SIZE, mesh=mesh, on_device=on_device)
    # More than an epoch, all held at once, so that no buffer may be reused.
    parts = [*training(30), *evaluation_batches(np.arange(100, 141), BATCH)]
    streamed = list(create(records, devices).batches(parts))
    for one, other in zip(streamed, resident.batches(parts), strict=True):
        assert_same(one, other)


def test_batches_of_a_prepared_data_set(drawn_faces: Path) -> None:
    records = open_records("drawn_faces/faces", str(drawn_faces))
    size, mesh = 64, create_mesh(jax.devices()[:1])
    resident = ResidentImages(records, size=size, mesh=mesh, on_device=True)
    again = pickle.loads(pickle.dumps(records))
    parts = [*evaluation_batches(np.random.default_rng(0).permutation(len(records.fold)), 32)]
    streamed = StreamedImages(again, size=size, mesh=mesh).batches(parts)
    for one, other in zip(streamed, resident.batches(parts), strict=True):
        assert_same(one, other)


def test_resumes_from_any_step(records: Records) -> None:
    whole = list(create(records).batches(training(20)))
    for step in (1, 7, 19):
        for one, other in zip(
            create(records).batches(training(20, first=step)), whole[step:], strict=True
        ):
            assert_same(one, other)


def counted(parts: Sequence[BatchRows], taken: list[int]) -> Iterator[BatchRows]:
    for number, part in enumerate(parts):
        taken.append(number)
        yield part


@pytest.mark.parametrize(
    ("nbytes", "cores", "ahead"),
    [(1 << 30, 1, AHEAD), (1 << 30, 5, 10), (3 * 19200, 5, 3), (1, 5, 2)],
)
def test_number_of_batches_made_ahead(
    records: Records, monkeypatch: pytest.MonkeyPatch, nbytes: int, cores: int, ahead: int
) -> None:
    monkeypatch.setattr(stream, "AHEAD_BYTES", nbytes)
    monkeypatch.setattr(stream, "available_cores", lambda: cores)
    taken: list[int] = []
    batches = create(records).batches(counted(training(40), taken))
    for number, _ in enumerate(batches):
        assert len(taken) == min(max(number, 0) + ahead, 40)
    assert len(taken) == 40


def test_buffers_are_reused(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    allocate_images = stream.allocate_images
    monkeypatch.setattr(
        stream, "allocate_images", lambda *args: made.append(0) or allocate_images(*args)
    )
    monkeypatch.setattr(stream, "available_cores", lambda: 2)
    streamed = create(records, devices=1)
    for _ in range(3):
        for _ in streamed.batches(training(30)):
            pass
    gc.collect()
    assert len(made) <= AHEAD + 3


def threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("decoder", "placer"))]


def test_no_thread_outlives_its_iterator(records: Records) -> None:
    for _ in create(records).batches(training(5)):
        assert threads()
    assert not threads()
    batches = create(records).batches(training(5))
    next(batches)
    batches.close()
    assert not threads()

    def fail() -> None:
        for _ in create(records).batches(training(5)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    gc.collect()
    assert not threads()


class Faulty(Sequence[bytes]):
    """Images whose reads, from number 40 on, fail or are slow."""

    def __init__(self, images: Sequence[bytes], fault: Callable[[], None]):
        self._images, self._fault, self._reads = images, fault, 0

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row):
        self._reads += 1
        if self._reads >= 40:
            self._fault()
        return self._images[row]


def test_closing_does_not_wait_for_batches(records: Records) -> None:
    slow = Faulty(records.images, lambda: time.sleep(0.01))
    batches = create(dataclasses.replace(records, images=slow)).batches(training(1000))
    for _ in range(3):
        next(batches)
    reads = slow._reads
    batches.close()
    assert not threads() and slow._reads < reads + 3 * stream._CHUNK * 16


def test_errors_of_workers_are_raised(records: Records) -> None:
    def fail() -> None:
        raise UserError("image 7 of noise/faces/1.0.0 cannot be read")

    faulty = dataclasses.replace(records, images=Faulty(records.images, fail))
    with pytest.raises(UserError, match="image 7 of noise/faces"):
        list(create(faulty).batches(training(40)))
    assert not threads()


def test_broken_images_are_listed(records: Records) -> None:
    images = [*records.images]
    images[7], images[30] = b"", images[30][:40]
    broken = create(dataclasses.replace(records, images=images))
    parts: list[BatchRows] = [(np.arange(start, start + 32), None) for start in (100, 0, 32)]
    batches = broken.batches(parts)
    next(batches)
    with pytest.raises(UserError, match=r"2 of 32 prepared images do not decode \(rows 7, 30\)"):
        next(batches)
    assert not threads()
