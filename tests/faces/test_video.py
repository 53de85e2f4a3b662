import os
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces import decoding
from agenet.faces.camera import Camera
from agenet.faces.frames import DEFAULT_RATE
from agenet.faces.video import check_output, open_video
from tests.faces.clips import read_all, write_clip


class FakeCapture:
    """Stands in for a camera: gives so many frames, then fails as `end` says."""

    def __init__(self, frames: int, end: Exception | None = None, rate: float = 0.0) -> None:
        self.left, self.end, self.rate, self.released = frames, end, rate, False

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.left:
            self.left -= 1
            return True, np.full((48, 64, 3), (255, 0, 0), np.uint8)
        if self.end:
            raise self.end
        return False, None

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: self.rate, cv2.CAP_PROP_FRAME_COUNT: -1.0}.get(what, 0.0)

    def release(self) -> None:
        self.released = True


def film(path: Path) -> Path:
    return write_clip(path, [number / 10 for number in range(20)])


def refusal(text: str | Path) -> str:
    with pytest.raises(UserError) as refused:
        open_video(str(text))
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Files.


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".ts"])
def test_truncated_video_returns_its_frames(tmp_path: Path, suffix: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    times = [number / 10 for number in range(20)]
    path = write_clip(tmp_path / f"film{suffix}", times, images=images)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert 3 <= len(read_all(open_video(str(path)))) <= 15


def test_truncated_clip(real_data: Path, tmp_path: Path) -> None:
    content = (real_data / "media" / "classroom.gif").read_bytes()
    path = tmp_path / "cut.gif"
    path.write_bytes(content[: len(content) // 2])
    assert 10 < len(read_all(open_video(str(path)))) < 35
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match=f"{path} returns no frame .*is it complete"):
        open_video(str(path))


def test_files_that_are_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    assert "does not exist" in refusal(path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(b"no film" * 100)
    assert "cannot be read as a video" in refusal(path)
    whole = film(tmp_path / "whole.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # Its index stands at its end.
    assert "is it one, and complete?" in refusal(path)
    assert "is a folder" in refusal(tmp_path) and "is a folder" in refusal("")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")
    assert "does not exist" in refusal("-1")


# Cameras.


@pytest.mark.parametrize("number", ["97", "1234", "9" * 5000, "/dev/video97"])
def test_no_such_camera(number: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(number).startswith(f"camera {number} cannot be opened: this machine has")
    assert capfd.readouterr() == ("", "")


def test_device_file_is_a_camera() -> None:
    assert "camera /dev/null cannot be opened" in refusal("/dev/null")


def test_error_lists_known_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    glob = Path.glob
    found = [Path("/dev/video2"), Path("/dev/video0")]
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: found if pattern == "video*" else glob(self, pattern)
    )
    assert "this machine has /dev/video0, /dev/video2; give another number" in refusal("97")


def test_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.5, 101.25])
    capture = FakeCapture(3)
    source = Camera(capture, "camera 0", lambda: next(times))
    assert source.live and source.count is None and source.rate == DEFAULT_RATE
    frames = read_all(source)
    assert [(frame.number, frame.seconds) for frame in frames] == [(0, 0), (1, 0.5), (2, 1.25)]
    assert (frames[0].image == [0, 0, 255]).all()  # RGB
    assert capture.released


@pytest.mark.parametrize("end", [None, cv2.error("unplugged")])
def test_camera_that_is_disconnected(end: Exception | None) -> None:
    source = Camera(FakeCapture(2, end), "camera 0", lambda: 0.0)
    assert len(read_all(source)) == 2
    assert source.read() is None


@pytest.mark.parametrize("end", [None, cv2.error("in use")])
def test_camera_without_frames(end: Exception | None) -> None:
    capture = FakeCapture(0, end)
    with pytest.raises(UserError, match="camera 0 returns no frame: is another program using it"):
        Camera(capture, "camera 0", lambda: 0.0)
    assert capture.released


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_camera_rate_without_sense(rate: float) -> None:
    assert Camera(FakeCapture(1, rate=rate), "camera 0", lambda: 0.0).rate == DEFAULT_RATE


# Streams.


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            path, _, how = self.path.partition("?")
            if not how:
                return super().do_GET()
            content = (tmp_path / path[1:]).read_bytes()
            self.send_response(200)  # Without a length.
            self.end_headers()
            self.wfile.write(content[: 300 if how == "stalls" else None])
            if how == "stalls":
                released.wait(10)

        def log_message(self, format: str, *args: object) -> None:
            pass

    released = Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        released.set()
        server.shutdown()
        thread.join()


def test_video_file_on_a_server(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    film(tmp_path / "film.mp4")
    source = open_video(f"{address}/film.mp4")
    assert not source.live and len(read_all(source)) == 20


def test_unreachable_stream(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert "cannot be opened as a video within 10 s" in refusal(f"{address}/film.mp4")
    message = refusal("rtsp://me:se@cret@127.0.0.1:1/stream")
    assert message.startswith("rtsp://***@127.0.0.1:1/stream cannot") and "cret" not in message


def test_stream_without_an_end_is_live(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    write_clip(tmp_path / "film.ts", [n / 25 for n in range(30)], codec="mpeg2video", rate=25)
    times = iter(np.arange(100.0, 200.0, 0.5))
    source = open_video(f"{address}/film.ts?endless", lambda: next(times))
    frames = read_all(source)
    assert source.live and source.seconds is None and source.count is None
    assert len(frames) == 30
    assert set(np.diff([frame.seconds for frame in frames])) == {0.5}  # As they arrive.


def test_stream_that_stalls(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(decoding, "TIMEOUT", 0.5)
    write_clip(tmp_path / "film.ts", [0, 0.04], codec="mpeg2video", rate=25)
    began = time.monotonic()
    assert "cannot be opened as a video within 0.5 s" in refusal(f"{address}/film.ts?stalls")
    assert time.monotonic() - began < 8


# Where to write.


def test_output_that_would_overwrite_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = film(Path("film.mp4"))
    for output, source, overwrite, message in (
        (path, "film.mp4", True, "is the video that is read"),
        (path, f"{tmp_path}/film.mp4", True, "is the video that is read"),
        (path, "0", False, "exists: name another file, or add --overwrite"),
        (tmp_path, "0", True, "is a folder: name a file in it"),
        (tmp_path / "gone" / "film.mp4", "0", True, "gone: no such folder, create it first"),
    ):
        with pytest.raises(UserError, match=message):
            check_output(output, source, overwrite)
    check_output(path, "rtsp://film.mp4", True)
    check_output(Path("new.mp4"), "film.mp4", False)
