import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces.encoding import CODECS, MAX_AVI_GAP, VideoWriter
from agenet.faces.video import open_video
from tests.conftest import ROOT
from tests.faces.clips import drawn, read_all

SHAPES = [(48, 64), (49, 63), (1, 1), (2, 700), (1081, 3), (4, 4)]


def write(path: Path, times: list[float], last: float = 0.1, rate: float = 10.0) -> VideoWriter:
    """A film that grows redder."""
    writer = VideoWriter(path, rate)
    durations = [*np.diff(times), last]
    for image, seconds, duration in zip(drawn(len(times), (64, 48)), times, durations, strict=True):
        writer.write(image, seconds, duration)
    writer.close()
    return writer


@pytest.mark.parametrize("suffix", CODECS)
def test_written_video_is_readable(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"film{suffix}", [n / 10 for n in range(20)]).path
    source = open_video(str(path))
    frames = read_all(source)
    assert source.rate == pytest.approx(10) and len(frames) == source.count == 20
    assert source.seconds == pytest.approx(2, abs=0.01)
    red = [frame.image[30:, 30:, 0].mean() for frame in frames]
    assert red == pytest.approx([10 * number for number in range(20)], abs=8)
    assert frames[-1].image[30:, 30:, 2].mean() < 8
    assert (frames[-1].image[:12, :16] > 225).all()


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(
    ("times", "last", "rate"),
    [
        ([0, 0.1, 0.6, 0.7, 1.2, 3.0], 0.5, 10),  # uneven
        ([0, 5, 10], 5, 0.2),  # a time-lapse
        ([n / 480 for n in range(6)], 1 / 480, 480),  # slow motion
        ([n * 1001 / 30000 for n in range(40)], 1001 / 30000, 30000 / 1001),
        ([0], 3, 10),
    ],
)
def test_output_keeps_time(
    tmp_path: Path, suffix: str, times: list[float], last: float, rate: float
) -> None:
    path = write(tmp_path / f"film{suffix}", times, last, rate).path
    source = open_video(str(path))
    frames = read_all(source)
    found = [frame.seconds for frame in frames]
    if suffix == ".avi":  # At the end a frame is repeated, since it shows each for as long.
        found = found[: len(times)]
    assert found == pytest.approx(times, abs=0.0011)
    assert source.seconds == pytest.approx(times[-1] + last, abs=0.0011)
    assert frames[-1].seconds + frames[-1].duration <= times[-1] + last + 0.11


def test_avi_leaves_out_frames_of_the_same_time(tmp_path: Path) -> None:
    writer = write(tmp_path / "film.avi", [0, 0.01, 0.02, 0.5, 1.0, 1.01, 2.0])
    assert (writer.count, writer.dropped) == (4, 3)
    frames = read_all(open_video(str(writer.path)))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.5, 1, 2])


def test_long_gaps(tmp_path: Path) -> None:
    for suffix in CODECS:
        gap = 2.5 * MAX_AVI_GAP / 10  # 3.5 hours
        path = write(tmp_path / f"film{suffix}", [0, gap]).path
        frames = read_all(open_video(str(path)))
        assert frames[-1].seconds == pytest.approx(gap)
        assert path.stat().st_size < 10_000_000


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e9, 1e-9])
def test_rate_without_sense(tmp_path: Path, rate: float) -> None:
    path = write(tmp_path / "film.avi", [0, 0.04, 0.08], 0.04, rate).path
    assert len(read_all(open_video(str(path)))) == 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_odd_frame_sizes_can_be_written(
    tmp_path: Path, shape: tuple[int, int], suffix: str
) -> None:
    writer = VideoWriter(tmp_path / f"film{suffix}", 10.0)
    for number in range(3):
        writer.write(np.full((*shape, 3), 200, np.uint8), number / 10)
    writer.close()
    frames = read_all(open_video(str(writer.path)))
    assert len(frames) == 3
    even = tuple(max(16, side // 2 * 2) for side in shape)
    assert frames[0].image.shape == (*even, 3) and (frames[0].image > 180).all()


def test_frames_larger_than_the_codec_takes(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "film.mp4", 10.0)
    writer.write(np.full((20, 12_000, 3), 200, np.uint8), 0.0)
    writer.close()
    (frame,) = read_all(open_video(str(writer.path)))
    assert frame.image.shape == (16, 8190, 3)


def test_frames_of_other_shapes_are_not_distorted(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "film.avi", 10.0)
    for number, shape in enumerate([(60, 80), (30, 40), (80, 60), (60, 160)]):
        writer.write(np.full((*shape, 3), 200, np.uint8), number / 10)
    writer.close()
    frames = read_all(open_video(str(writer.path)))
    bright = [(frame.image > 100).all(-1) for frame in frames]
    sizes = [(int(b.any(1).sum()), int(b.any(0).sum())) for b in bright]
    assert sizes[:2] == [(60, 80)] * 2
    assert sizes[2] == pytest.approx((60, 45), abs=3) and sizes[3] == pytest.approx((30, 80), abs=3)


def test_no_frames_leave_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "film.mp4", 10.0).close()
    assert not list(tmp_path.iterdir())


def test_older_file_stays_until_published(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    path.write_bytes(b"old")

    def record(end: BaseException) -> None:
        with VideoWriter(path, 10.0) as writer:
            writer.publish()
            writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)
            assert path.read_bytes() == b"old"
            raise end

    with pytest.raises(UserError):
        record(UserError("the network cannot be loaded"))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt):
        record(KeyboardInterrupt())
    assert len(read_all(open_video(str(path)))) == 1


def test_avi_of_a_killed_program_is_readable(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "film.avi", 10.0)
    for number, image in enumerate(drawn(5, (64, 48))):
        writer.write(image, number / 10)
        writer.publish()
    (tmp_path / "killed.avi").write_bytes(writer.path.read_bytes())
    writer.close()
    assert len(read_all(open_video(str(tmp_path / "killed.avi")))) == 5


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"film.mp4 could not be written completely \(No such"):
        VideoWriter(tmp_path / "gone" / "film.mp4", 10.0)


@pytest.mark.parametrize("suffix", CODECS)
def test_full_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    path.write_bytes(b"old")
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from agenet.errors import one_line_errors
from agenet.faces.encoding import VideoWriter
# Stands in for a disk that is full after so many bytes.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
with one_line_errors(), VideoWriter(Path({str(path)!r}), 10.0) as writer:
    for number in range(9):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8), number / 10)
"""
    for room in (1, 1000, 20_000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(room)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.count("\n") == 1, done.stderr
        assert "could not be written completely (File too large): is the disk full" in done.stderr
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_playable_elsewhere(tmp_path: Path) -> None:
    """What other programs read of the header: size, rate and codec."""
    for suffix, (_, codec) in CODECS.items():
        path = write(tmp_path / f"film{suffix}", [n / 25 for n in range(10)], 0.04, 25).path
        with av.open(str(path)) as container:
            (stream,) = container.streams
            assert stream.codec_context.name == codec
            assert (stream.codec_context.width, stream.codec_context.height) == (64, 48)
            assert stream.average_rate == pytest.approx(25, abs=0.5)
