"""Collects faces of several requests and runs a network on them at once."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from agenet.inference.engines import MAX_BATCH, Engine

LogProbs = dict[str, np.ndarray]


class _Face(NamedTuple):
    square: np.ndarray
    result: asyncio.Future[LogProbs]
    since: float  # when it came, by the event loop's clock


class Batcher:
    """Runs a network on up to `MAX_BATCH` faces at a time; `run` it in a task.

    Args:
        engine: the network.
        seconds: that a face waits at most for others which were announced, while the network is
            idle.
        on_batch: called with the number of faces of each batch.
    """

    def __init__(
        self, engine: Engine, seconds: float, on_batch: Callable[[int], object] = lambda count: None
    ) -> None:
        self._engine, self._seconds, self._on_batch = engine, seconds, on_batch
        self._waiting: asyncio.Queue[_Face] = asyncio.Queue()
        self._announced = 0

    @contextlib.contextmanager
    def announce(self) -> Iterator[None]:
        """Says, during the block, that an image is decoded whose faces will come."""
        self._announced += 1
        try:
            yield
        finally:
            self._announced -= 1

    async def predict(self, squares: Sequence[np.ndarray]) -> LogProbs:
        """Log-probabilities {task: [N, C]} of N > 0 faces uint8 [S, S, 3], see `Engine`.

        Faces of a caller that is cancelled are not predicted.
        """
        loop = asyncio.get_running_loop()
        faces = [_Face(square, loop.create_future(), loop.time()) for square in squares]
        for face in faces:
            self._waiting.put_nowait(face)
        rows = await asyncio.gather(*(face.result for face in faces))
        return {task: np.stack([row[task] for row in rows]) for task in rows[0]}

    async def run(self) -> None:
        """Predicts what comes, until it is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                batch = await self._collect()
                if not batch:
                    continue
                self._on_batch(len(batch))
                try:
                    squares = np.stack([face.square for face in batch])
                    results = await loop.run_in_executor(thread, self._engine, squares)
                except Exception as error:
                    for face in batch:
                        if not face.result.done():
                            face.result.set_exception(error)
                    continue
                for row, face in enumerate(batch):
                    if not face.result.done():
                        face.result.set_result({task: v[row] for task, v in results.items()})

    async def _collect(self) -> list[_Face]:
        """The next faces that are still wanted; waits for the first."""
        faces = [await self._waiting.get()]
        with contextlib.suppress(TimeoutError):
            # Those that came while the network ran are taken even if this time is over.
            async with asyncio.timeout_at(faces[0].since + self._seconds):
                while len(faces) < MAX_BATCH and (self._announced or not self._waiting.empty()):
                    faces.append(await self._waiting.get())
        return [face for face in faces if not face.result.done()]
