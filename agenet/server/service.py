"""Predicts the images of requests: decodes them in processes, and runs networks on all at once."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from agenet.errors import UserError
from agenet.faces.face import Face
from agenet.faces.selection import FaceSelection
from agenet.inference.engines import Engine
from agenet.inference.postprocess import Postprocess
from agenet.inference.results import Result
from agenet.server.batching import Batcher
from agenet.server.bodies import Upload
from agenet.server.decoders import Decoders
from agenet.server.fetch import Fetcher, FetchError
from agenet.server.limits import Busy, Limits, Refused, Reservation
from agenet.server.metrics import Metrics
from agenet.server.schema import Options
from agenet.server.worker import Task

# Images whose faces are in memory, for each process that decodes: while the network runs on some,
# the next are decoded.
_AHEAD = 2


@dataclass(frozen=True)
class Wanted:
    """What a request asks for."""

    model: str
    select: FaceSelection
    postprocess: Postprocess
    cropped: bool


class Service:
    """Networks and the processes that decode images for them.

    Args:
        engines: the networks by name.
        decoders: are stopped with it.
        limits: for each request and all of them.
        select: the faces to predict where a request does not say.
        metrics: counts what is done.
        fetcher: fetches images by their addresses; None: they are refused.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        decoders: Decoders,
        limits: Limits,
        select: FaceSelection,
        metrics: Metrics,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.engines, self.limits, self.metrics = engines, limits, metrics
        self._decoders, self._select, self._fetcher = decoders, select, fetcher
        self._batchers = {
            name: Batcher(engine, limits.batch_seconds, metrics.batch.observe)
            for name, engine in engines.items()
        }
        self._places = asyncio.Semaphore(_AHEAD * decoders.count)
        self._admitted = 0
        self.is_running = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the networks in tasks, and stops everything at the end."""
        tasks = [asyncio.create_task(batcher.run()) for batcher in self._batchers.values()]
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._fetcher:
                await self._fetcher.close()
            self._decoders.stop()

    @property
    def default(self) -> str:
        """The network of requests that name none."""
        return "default" if "default" in self.engines else next(iter(self.engines))

    def wanted(self, options: Options) -> Wanted:
        """Checks the options of a request.

        Raises:
            Refused: there is no such network, or it does not predict these groups.
        """
        name = options.model or self.default
        if name not in self.engines:
            raise Refused(422, f"model: there is none of this name: {', '.join(self.engines)}")
        try:
            postprocess = Postprocess(self.engines[name].spec, options.groups)
        except UserError as error:
            raise Refused(422, f"age_groups: {str(error)[:200]}") from None
        given = self._select
        most = given.max_faces or self.limits.faces
        if options.max_faces is not None and options.max_faces > most:
            raise Refused(422, f"max_faces: {most} at most")
        select = FaceSelection(
            max(options.min_score, given.min_score),
            max(options.min_size, given.min_size),
            options.max_faces or most,
        )
        return Wanted(name, select, postprocess, options.cropped)

    def check_room(self, count: int = 1) -> None:
        """Raises `Busy` if there is no place for so many images."""
        if self._admitted + count > self.limits.queue:
            raise Busy("the queue is full")

    @contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        self.check_room(count)
        self._admitted += count
        self.metrics.queue.set(self._admitted)
        try:
            yield
        finally:
            self._admitted -= count
            self.metrics.queue.set(self._admitted)

    async def predict(
        self, uploads: Sequence[Upload], wanted: Wanted, memory: Reservation
    ) -> list[Result]:
        """Predicts images; what is cancelled leaves the queue.

        Args:
            uploads: the images.
            wanted: what is asked for.
            memory: takes what is fetched.

        Raises:
            Refused: addresses are not fetched.
            Busy: there is no place for them.
        """
        if self._fetcher is None and any(upload.url for upload in uploads):
            raise Refused(422, "url: this server fetches none: send the image, or see --allow-urls")
        with self._admit(len(uploads)):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._predict(u, wanted, memory)) for u in uploads]
        results = [task.result() for task in tasks]
        for result in results:
            self.metrics.images.labels(wanted.model, "error" if result.error else "ok").inc()
            self.metrics.faces.labels(wanted.model).inc(len(result.faces))
        return results

    async def _predict(self, upload: Upload, wanted: Wanted, memory: Reservation) -> Result:
        result, content = Result(upload.name or ""), upload.content
        if upload.url and self._fetcher:
            try:
                content = await self._fetcher.fetch(upload.url, memory)
            except FetchError as error:
                return replace(result, error=str(error))
        task = Task(
            content,
            self.engines[wanted.model].spec.stored_size,
            wanted.cropped,
            wanted.select,
            self.limits.pixels,
            self.limits.decode_seconds,
        )
        async with self._places:
            batcher = self._batchers[wanted.model]
            with batcher.announce():
                found = await self._decoders.find_faces(task)
            if found.error or not found.detections:
                return replace(result, size=found.size, error=found.error)
            log_probs = await batcher.predict(found.squares)
        predictions = wanted.postprocess(log_probs)
        faces = [Face(*pair) for pair in zip(found.detections, predictions, strict=True)]
        return replace(result, size=found.size, faces=faces)
