import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces import reconnecting
from agenet.faces.frames import Frame, VideoSource
from agenet.faces.reconnecting import Reconnecting
from agenet.faces.video import open_video
from agenet.faces.webcam import run
from tests.faces.clips import read_all, write_clip
from tests.faces.test_pipeline import Camera, Fake, go
from tests.faces.test_webcam import FakeScreen, read_film, status


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.04)


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Stream"]:
    monkeypatch.setenv("no_proxy", "*")
    path = tmp_path / "film.ts"
    write_clip(path, [n / 25 for n in range(30)], codec="mpeg2video", rate=25)
    server = Stream(path.read_bytes())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Stream(ThreadingHTTPServer):
    """Is cut after 30 frames each time, and then refuses twice."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.content, self.asked, self.served = content, 0, 0
        self.address = f"http://127.0.0.1:{self.server_port}/live"


class Answers(BaseHTTPRequestHandler):
    server: Stream

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.asked % 3 != 1:
            return self.send_error(503)
        self.server.served += 1
        self.send_response(200)  # Without a length.
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_stream_that_is_cut_is_opened_again(
    stream: Stream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, film = tmp_path / "faces.jsonl", tmp_path / "film.avi"
    arguments = ["--json", lines, "--output", film, "--no-window", "--max-frames=70"]
    # As fast as it comes, frames that nobody waits for are dropped.
    assert status(stream.address, *arguments, fake=Fake(1)) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    numbers = [line["frame"] for line in found]
    assert len(numbers) == 70 and numbers == sorted(set(numbers)) and numbers[-1] >= 69
    times = [line["seconds"] for line in found]
    assert times == sorted(times)
    assert stream.served >= 3 and stream.asked == 3 * stream.served - 2
    assert read_film(film)  # As long as it took: many frames at once are one in an AVI.
    error = capsys.readouterr().err
    assert error.count("returns no more frames: opening it again until Ctrl-C\n") >= 2
    assert error.count("/live is back after ") >= 2


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_stream_is_given_up(
    stream: Stream, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    stream.asked = 0
    source = Reconnecting(open_video(stream.address), refuse, seconds)
    began = time.monotonic()
    summary = run(source, Fake(1), Fake(1).load, lines=io.StringIO())
    assert summary.endswith("/live returns no more frames")
    assert seconds <= time.monotonic() - began < seconds + 8
    assert capsys.readouterr().err.count("opening it again until") == (seconds > 0)


def refuse() -> VideoSource:
    raise UserError("it cannot be opened")


def test_option_to_give_up(stream: Stream, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(stream.address, "--json=-", "--give-up=0", fake=Fake(1)) == 0
    assert "/live returns no more frames" in capsys.readouterr().err
    assert stream.served == 1


def test_pauses_grow_and_frames_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[float] = []
    sources = [Camera(3), Camera(2)]
    now = [100.0]

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        assert timeout is not None
        now[0] += timeout
        return False

    def reopen() -> VideoSource:
        attempts.append(round(now[0] - 100, 2))
        if len(attempts) in (5, 6):
            return sources.pop()
        raise UserError("not yet")

    monkeypatch.setattr(threading.Event, "wait", wait)
    source = Reconnecting(sources.pop(0), reopen, 5.0, lambda: now[0])
    sources.append(Camera(1))
    frames = read_all(source)
    assert [frame.number for frame in frames] == [0, 1, 2, *range(3, 6)]
    # Twice as long each time; what ended at once is not asked for more often.
    assert attempts[:7] == [0.01, 0.03, 0.07, 0.11, 0.15, 0.19, 0.23]
    assert [round(frame.seconds, 2) for frame in frames] == [0, 0, 0, 0.15, 0.19, 0.19]
    assert attempts[-1] == pytest.approx(5.19, abs=0.05)


def test_one_that_lasted_is_opened_soon_again() -> None:
    now = [0.0]

    class Lasts(Camera):
        def read(self) -> Frame | None:
            now[0] += 1.0
            return super().read()

    pauses: list[float] = []

    def reopen() -> VideoSource:
        pauses.append(source._pause)
        if len(pauses) < 3:
            raise UserError("not yet")
        return Lasts(1)

    source = Reconnecting(Lasts(1), reopen, None, lambda: now[0])
    assert source.read() and source.read() and len(pauses) == 3
    assert source.read() and pauses == [0.02, 0.04, 0.04, 0.02]


def test_quitting_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenet.faces.pipeline.POLL", 0.02)
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 600.0)
    began = time.monotonic()
    camera = Camera(3)
    source = Reconnecting(camera, refuse)
    screen = FakeScreen({12: "quit"})
    run(source, Fake(1), Fake(1).load, screen=screen)
    assert screen.asked == 12 and camera.closed and time.monotonic() - began < 8
    assert (screen.shown[-1] != screen.shown[0]).any()  # It says that it waits.


def test_it_is_waited_for_longer_than_for_a_camera_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in ("POLL", 0.02), ("TIMEOUT", -1.9):
        monkeypatch.setattr(f"agenet.faces.pipeline.{name}", seconds)
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.5)
    source = Reconnecting(Camera(3), lambda: Camera(3), give_up=2.0)
    sources = iter([Camera(3)])
    source._reopen = lambda: next(sources, None) or refuse()
    frames = go(source, Fake(1))
    assert max(frame.number for frame, _ in frames) == 5
    assert all(isinstance(frame.image, np.ndarray) for frame, _ in frames)
