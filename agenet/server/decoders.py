"""Processes that decode untrusted images; one that dies or hangs costs one image."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from agenet.errors import UserError
from agenet.server import worker
from agenet.server.worker import Found, Task

# Seconds for a process to start on a busy machine.
_START_SECONDS = 60.0
# Seconds beyond those in which decoding gives up by itself.
_GRACE_SECONDS = 10.0


def _context() -> Any:
    """How processes start: forked from one that has imported what they need, where that works."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__, "onnxruntime"])
    return context


class _Decoder:
    """A pool of one process: the standard library gives up a pool when a process of it dies."""

    def __init__(self, detector: str) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=_context())
        self._started = self._pool.submit(worker.start, detector)

    def wait(self) -> None:
        """Waits for the process to start; raises what went wrong."""
        self._started.result(_START_SECONDS)

    async def run(self, task: Task) -> Found:
        await asyncio.wrap_future(self._started)
        return await asyncio.wrap_future(self._pool.submit(worker.find_faces, task))

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._started.done() and not self._started.exception():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._started.result(), getattr(signal, "SIGKILL", signal.SIGTERM))
        self._pool.shutdown(wait=False, cancel_futures=True)


class Decoders:
    """A number of processes, each with one image at a time.

    Args:
        count: of processes.
        detector: finds the faces, see `create_detector`.
        on_restart: called when a process is replaced.

    Raises:
        UserError: there is no such detector.
    """

    def __init__(
        self, count: int, detector: str, on_restart: Callable[[], object] = lambda: None
    ) -> None:
        self.count, self._detector, self._on_restart = count, detector, on_restart
        self._idle: asyncio.LifoQueue[_Decoder] = asyncio.LifoQueue()
        self._running: set[asyncio.Task[Found]] = set()
        self._all = {_Decoder(detector) for _ in range(count)}
        for decoder in self._all:
            self._idle.put_nowait(decoder)
        try:
            for decoder in self._all:
                decoder.wait()
        except (BrokenProcessPool, TimeoutError) as error:
            self.stop()
            raise UserError("a process that decodes images does not start: free memory") from error
        except BaseException:
            self.stop()
            raise

    async def find_faces(self, task: Task) -> Found:
        """Has a process decode an image, when one is free; in the order of the calls.

        If the caller is cancelled meanwhile, the process works to the end, and only then takes
        the next image.
        """
        decoder = await self._idle.get()
        running = asyncio.create_task(self._run(decoder, task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    async def _run(self, decoder: _Decoder, task: Task) -> Found:
        try:
            async with asyncio.timeout(2 * task.seconds + _GRACE_SECONDS):
                return await decoder.run(task)
        except TimeoutError:
            decoder = self._replace(decoder)
            return Found(error="not processed in time")
        except (BrokenProcessPool, UserError):  # The latter if it did not start.
            decoder = self._replace(decoder)
            return Found(error="ended the process that decoded it")
        finally:
            self._idle.put_nowait(decoder)

    def _replace(self, decoder: _Decoder) -> _Decoder:
        self._all.discard(decoder)
        decoder.stop()
        new = _Decoder(self._detector)
        self._all.add(new)
        self._on_restart()
        return new

    def stop(self) -> None:
        """Ends all processes."""
        for decoder in self._all:
            decoder.stop()
