import os
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces import video
from agenet.faces.image_io import read_image
from agenet.faces.video import CODECS, Frame, VideoSource, VideoWriter, check_output, open_video

CLIPS = {  # frames and seconds, as a browser plays them
    "classroom": (45, 3.0),
    "face-demographics-walking": (35, 2.9),
    "head-pose-face-detection-female-and-male": (56, 4.66),
}


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


def read_all(source: VideoSource) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close()
    return frames


def write(
    path: Path, count: int = 20, shape: tuple[int, int] = (48, 64), rate: float = 10.0
) -> Path:
    """A film that grows redder."""
    writer = VideoWriter(path, rate)
    for number in range(count):
        image = np.zeros((*shape, 3), np.uint8)
        image[..., 0] = 10 * number
        writer.write(image)
    writer.close()
    return path


def refusal(text: str | Path) -> str:
    with pytest.raises(UserError) as refused:
        open_video(str(text))
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Files.


@pytest.mark.parametrize("clip", CLIPS)
def test_real_clips(real_data: Path, clip: str) -> None:
    path = real_data / "media" / f"{clip}.gif"
    source = open_video(str(path))
    frames = read_all(source)
    count, seconds = CLIPS[clip]
    assert source.count == len(frames) == count and not source.live
    assert [frame.number for frame in frames] == [*range(count)]
    times = [frame.seconds for frame in frames]
    assert times[0] == 0 and (np.diff(times) > 0).all()
    assert times[-1] + 1 / source.rate == pytest.approx(seconds, abs=0.15)
    np.testing.assert_array_equal(frames[0].image, read_image(path))


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("shape", [(48, 64), (49, 63)])
def test_written_video_is_readable(tmp_path: Path, ending: str, shape: tuple[int, int]) -> None:
    source = open_video(str(write(tmp_path / f"film{ending}", shape=shape)))
    frames = read_all(source)
    assert source.rate == pytest.approx(10) and len(frames) == 20
    assert frames[0].image.shape == (48, shape[1] // 2 * 2, 3)
    assert frames[-1].seconds == pytest.approx(1.9, abs=0.05)
    red = [frame.image[..., 0].mean() for frame in frames]
    assert red == pytest.approx([10 * number for number in range(20)], abs=12)
    assert frames[-1].image[..., 2].mean() < 12


@pytest.mark.parametrize("shape", [(1, 1), (2, 700), (1081, 3), (4, 4)])
def test_odd_frame_sizes_can_be_written(tmp_path: Path, shape: tuple[int, int]) -> None:
    for ending in (".avi", ".mp4"):
        assert len(read_all(open_video(str(write(tmp_path / f"film{ending}", 3, shape))))) == 3


def test_frames_of_other_sizes_are_resized(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "film.avi", 10.0)
    for side in (60, 30, 90):
        writer.write(np.full((side, side, 3), 200, np.uint8))
    writer.close()
    frames = read_all(open_video(str(writer.path)))
    assert [frame.image.shape for frame in frames] == [(60, 60, 3)] * 3


def test_uneven_frame_rate_is_recorded_at_true_speed(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "film.avi", 20.0)
    for seconds in (0.0, 0.01, 0.02, 0.5, 1.0, 1.01, 2.0):
        writer.write_until(np.zeros((48, 64, 3), np.uint8), seconds)
    writer.close()
    assert len(read_all(open_video(str(writer.path)))) == writer.count == 41


def test_no_frames_leave_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "film.mp4", 10.0).close()
    assert not list(tmp_path.iterdir())


def test_write_errors_are_reported(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "gone" / "film.mp4", 10.0)
    with pytest.raises(UserError, match=r"film.mp4 cannot be written: 64x48"):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.close()
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full, which stands in for a full disk")
    (tmp_path / "film.avi").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"could not be written completely: is the disk full"):
        write(tmp_path / "film.avi")


@pytest.mark.parametrize("ending", [".avi", ".mkv"])
def test_truncated_video_returns_its_frames(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    writer = VideoWriter(tmp_path / f"film{ending}", 10.0)
    for _ in range(20):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.close()
    content = writer.path.read_bytes()
    writer.path.write_bytes(content[: len(content) // 2])
    assert 3 <= len(read_all(open_video(str(writer.path)))) <= 15


def test_truncated_clip(real_data: Path, tmp_path: Path) -> None:
    content = (real_data / "media" / "classroom.gif").read_bytes()
    path = tmp_path / "cut.gif"
    path.write_bytes(content[: len(content) // 2])
    assert 10 < len(read_all(open_video(str(path)))) < 35
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match=f"{path}.*is it (a video|one), and complete"):
        open_video(str(path))


def test_files_that_are_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    assert "does not exist" in refusal(path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(b"no film" * 100)
    assert "cannot be read as a video" in refusal(path)
    film = write(tmp_path / "whole.mp4").read_bytes()
    path.write_bytes(film[: len(film) // 2])  # Its index stands at its end.
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
    source = VideoSource(capture, "camera 0", True, lambda: next(times))
    assert source.live and source.count is None and source.rate == video.DEFAULT_RATE
    frames = read_all(source)
    assert [(frame.number, frame.seconds) for frame in frames] == [(0, 0), (1, 0.5), (2, 1.25)]
    assert (frames[0].image == [0, 0, 255]).all()  # RGB
    assert capture.released


@pytest.mark.parametrize("end", [None, cv2.error("unplugged")])
def test_camera_that_is_disconnected(end: Exception | None) -> None:
    source = VideoSource(FakeCapture(2, end), "camera 0", True, lambda: 0.0)
    assert len(read_all(source)) == 2
    assert source.read() is None


@pytest.mark.parametrize("end", [None, cv2.error("in use")])
def test_camera_without_frames(end: Exception | None) -> None:
    capture = FakeCapture(0, end)
    with pytest.raises(UserError, match="camera 0 returns no frame: is another program using it"):
        VideoSource(capture, "camera 0", True, lambda: 0.0)
    assert capture.released


def test_video_without_timestamps_uses_its_rate() -> None:
    source = VideoSource(FakeCapture(3, rate=20.0), "film", False, lambda: 0.0)
    assert [frame.seconds for frame in read_all(source)] == pytest.approx([0, 0.05, 0.1])


# Streams.


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_video_file_on_a_server(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    write(tmp_path / "film.mp4")
    source = open_video(f"{address}/film.mp4")
    assert not source.live and len(read_all(source)) == 20


def test_unreachable_stream(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert "cannot be opened as a video within 10 s" in refusal(f"{address}/film.mp4")
    message = refusal("rtsp://me:se@cret@127.0.0.1:1/stream")
    assert message.startswith("rtsp://***@127.0.0.1:1/stream cannot") and "cret" not in message


def test_stream_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FakeCapture(1)
    monkeypatch.setattr(capture, "isOpened", lambda: True, raising=False)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: capture)
    assert open_video("rtsp://host/stream").live


# Where to write.


def test_output_that_would_overwrite_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    film = write(Path("film.mp4"), 2)
    for path, source, overwrite, message in (
        (film, "film.mp4", True, "is the video that is read"),
        (film, f"{tmp_path}/film.mp4", True, "is the video that is read"),
        (film, "0", False, "exists: name another file, or add --overwrite"),
        (tmp_path, "0", True, "is a folder: name a file in it"),
        (tmp_path / "gone" / "film.mp4", "0", True, "gone: no such folder, create it first"),
    ):
        with pytest.raises(UserError, match=message):
            check_output(path, source, overwrite)
    check_output(film, "rtsp://film.mp4", True)
    check_output(Path("new.mp4"), "film.mp4", False)
