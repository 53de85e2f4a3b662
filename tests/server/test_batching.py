import asyncio
import contextlib
import threading

import numpy as np
import pytest

from agenet.inference.engines import MAX_BATCH
from agenet.server.batching import Batcher
from agenet.weights.spec import WeightsSpec


class Recorder:
    """An engine that returns the first value of each image, when it is let."""

    name = "recorder"
    spec: WeightsSpec

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        values = images[:, 0, 0, :1]
        self.batches.append(values[:, 0].tolist())
        assert self.may_run.wait(10)
        if 99 in values:
            raise ValueError("99")
        return {"age": values}


def face(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


async def running(engine: Recorder, seconds: float) -> tuple[Batcher, asyncio.Task[None]]:
    batcher = Batcher(engine, seconds)
    return batcher, asyncio.create_task(batcher.run())


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_faces_of_several_requests_are_predicted_at_once() -> None:
    async def main() -> None:
        engine = Recorder()
        batcher, task = await running(engine, 5)

        async def request(number: int) -> list[int]:
            with batcher.announce():
                await asyncio.sleep(0.05 * number)
            found = await batcher.predict([face(3 * number), face(3 * number + 1)])
            return found["age"][:, 0].tolist()

        assert await asyncio.gather(*map(request, range(3))) == [[0, 1], [3, 4], [6, 7]]
        assert engine.batches == [[0, 1, 3, 4, 6, 7]]
        await stop(task)

    asyncio.run(main())


@pytest.mark.parametrize(("announces", "least"), [(True, 0.2), (False, 0)])
def test_waits_only_for_what_is_announced(announces: bool, least: float) -> None:
    async def main() -> None:
        batcher, task = await running(Recorder(), 0.2)
        loop = asyncio.get_running_loop()
        with batcher.announce() if announces else contextlib.nullcontext():
            start = loop.time()
            await batcher.predict([face(1)])
            took = loop.time() - start
        assert least - 0.01 < took < least + 0.15
        await stop(task)

    asyncio.run(main())


def test_large_batches_are_divided_and_filled_while_the_network_runs() -> None:
    async def main() -> None:
        engine = Recorder()
        batcher, task = await running(engine, 0)
        engine.may_run.clear()
        first = asyncio.create_task(batcher.predict([face(0)]))
        while not engine.batches:
            await asyncio.sleep(0.01)
        many = [batcher.predict([face(n)] * 20) for n in (1, 2)]
        rest = asyncio.gather(*many)
        await asyncio.sleep(0.05)
        engine.may_run.set()
        await first
        assert [len(r["age"]) for r in await rest] == [20, 20]
        assert list(map(len, engine.batches)) == [1, MAX_BATCH, 40 - MAX_BATCH]
        await stop(task)

    asyncio.run(main())


def test_abandoned_faces_are_not_predicted() -> None:
    async def main() -> None:
        engine = Recorder()
        batcher, task = await running(engine, 0)
        engine.may_run.clear()
        first = asyncio.create_task(batcher.predict([face(0)]))
        while not engine.batches:
            await asyncio.sleep(0.01)
        abandoned = asyncio.create_task(batcher.predict([face(1)]))
        kept = asyncio.create_task(batcher.predict([face(2)]))
        await asyncio.sleep(0.01)
        abandoned.cancel()
        await asyncio.sleep(0.01)
        engine.may_run.set()
        await asyncio.gather(first, kept)
        assert engine.batches == [[0], [2]]
        await stop(task)

    asyncio.run(main())


def test_an_error_reaches_those_it_concerns() -> None:
    async def main() -> None:
        batcher, task = await running(Recorder(), 0)
        with pytest.raises(ValueError, match="99"):
            await batcher.predict([face(99), face(98)])
        assert (await batcher.predict([face(5)]))["age"].tolist() == [[5]]
        await stop(task)

    asyncio.run(main())
