import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenet.errors import UserError
from agenet.faces.selection import FaceSelection
from agenet.server import decoders, worker
from agenet.server.decoders import Decoders
from agenet.server.worker import Task
from tests.conftest import ROOT
from tests.server.running import PHOTO, png

SMALL = Task(PHOTO.read_bytes(), 64, False, FaceSelection(), 50_000_000, 10.0)


def task(content: bytes, seconds: float = 10.0) -> Task:
    return Task(content, 64, False, FaceSelection(), 50_000_000, seconds)


@pytest.fixture
def restarts() -> list[None]:
    return []


@pytest.fixture
def pool(restarts: list[None]) -> Iterator[Decoders]:
    found = Decoders(1, "auto", lambda: restarts.append(None))
    yield found
    found.stop()


def pid(pool: Decoders) -> int:
    (decoder,) = pool._all
    return decoder._started.result()


def ends(process: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_process_that_dies_costs_one_image(pool: Decoders, restarts: list[None]) -> None:
    async def main() -> None:
        victim = pid(pool)
        lost = asyncio.create_task(pool.find_faces(task(png(6000, 6000))))
        after = asyncio.create_task(pool.find_faces(SMALL))
        await asyncio.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        assert (await lost).error == "ended the process that decoded it"
        assert len((await after).detections) == 1 and len(restarts) == 1
        assert pid(pool) != victim

    asyncio.run(main())


def test_a_process_that_hangs_is_replaced(
    pool: Decoders, restarts: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "_GRACE_SECONDS", 0.2)

    async def main() -> None:
        victim = pid(pool)
        os.kill(victim, signal.SIGSTOP)
        found = await pool.find_faces(task(PHOTO.read_bytes(), seconds=0.1))
        assert found.error == "not processed in time"
        monkeypatch.setattr(decoders, "_GRACE_SECONDS", 30)
        assert len((await pool.find_faces(SMALL)).squares) == 1 and len(restarts) == 1
        assert ends(victim)

    asyncio.run(main())


def test_a_cancelled_image_keeps_its_process_busy(pool: Decoders, restarts: list[None]) -> None:
    async def main() -> None:
        abandoned = asyncio.create_task(pool.find_faces(task(png(3000, 3000))))
        await asyncio.sleep(0.1)
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        assert pool._idle.empty()
        assert len((await pool.find_faces(SMALL)).detections) == 1 and not restarts

    asyncio.run(main())


def test_memory_is_bounded(pool: Decoders, restarts: list[None]) -> None:
    """The process may not take more than an image needs, nor write files, nor hear signals."""

    def limits(name: str) -> str:
        text = Path(f"/proc/{pid(pool)}/limits").read_text()
        return next(line for line in text.splitlines() if line.startswith(name)).split()[-3]

    assert int(limits("Max data size")) < worker.MEMORY + 1_000_000_000
    assert limits("Max file size") == "0"
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid(pool), number)
    # The largest image that is accepted still fits.
    found = asyncio.run(pool.find_faces(task(png(7000, 7000), seconds=60)))
    assert found.size == (7000, 7000) and not found.error and not restarts


def test_too_much_memory_is_an_error() -> None:
    code = """
from agenet.server import worker
from tests.server.test_decoders import task
from tests.server.running import png
content = png(5000, 5000)
worker.MEMORY = 50_000_000
worker._limit()
print(worker.find_faces(task(content)).error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("too large for"), done.stdout


def test_no_such_detector() -> None:
    with pytest.raises(UserError, match='"yunett" is not one of'):
        Decoders(1, "yunett")


def test_processes_end_with_a_parent_that_is_killed() -> None:
    code = """
import sys, time
from agenet.server.decoders import Decoders
if __name__ == "__main__":
    pool = Decoders(1, "auto")
    (decoder,) = pool._all
    print(decoder._started.result(), flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    os.kill(orphan, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ends(orphan)
