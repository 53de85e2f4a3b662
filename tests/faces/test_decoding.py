import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from agenet.errors import UserError
from agenet.faces.decoding import MAX_PIXELS, MAX_SIDE, open_file, square_pixels, turned
from agenet.faces.frames import Frame
from agenet.faces.image_io import read_image
from agenet.faces.video import open_video
from tests.faces.clips import read_all, write_clip

CLIPS = {  # frames and seconds, as a browser plays them
    "classroom": (45, 3.0),
    "face-demographics-walking": (35, 2.9),
    "head-pose-face-detection-female-and-male": (56, 4.66),
}


def seconds(frames: list[Frame]) -> list[float]:
    return [round(frame.seconds, 3) for frame in frames]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_all(open_video(str(path)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("clip", CLIPS)
def test_real_clips(real_data: Path, clip: str) -> None:
    path = real_data / "media" / f"{clip}.gif"
    source = open_video(str(path))
    frames = read_all(source)
    count, length = CLIPS[clip]
    assert source.count == len(frames) == count and not source.live
    assert [frame.number for frame in frames] == [*range(count)]
    times = [frame.seconds for frame in frames]
    assert times[0] == 0 and (np.diff(times) > 0).all()
    assert times[-1] + frames[-1].duration == pytest.approx(length, abs=0.02)
    assert source.seconds == pytest.approx(length, abs=0.02)
    np.testing.assert_array_equal(frames[0].image, read_image(path))


# Pixels that are not square, and videos that are turned.


def test_anamorphic_video_shows_what_the_square_one_shows(real_data: Path) -> None:
    narrow, square = (
        read_all(open_video(str(real_data / "cases" / f"{name}.mp4"))) for name in ("dvd", "square")
    )
    for one, other in zip(narrow, square, strict=True):
        assert one.image.shape == other.image.shape == (576, 1024, 3)
        assert np.abs(one.image.astype(int) - other.image).mean() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        ((64, 45), (1024, 576)),  # PAL, 16:9
        ((16, 15), (768, 576)),  # PAL, 4:3
        ((8, 9), (720, 648)),  # higher than wide
        ((1, 1), (720, 576)),
    ],
)
def test_frames_have_square_pixels(
    tmp_path: Path, suffix: str, aspect: tuple[int, int], size: tuple[int, int]
) -> None:
    path = tmp_path / f"clip{suffix}"
    write_clip(path, [0, 0.1], size=(720, 576), aspect=Fraction(*aspect))
    frames = read_all(open_video(str(path)))
    assert {frame.image.shape for frame in frames} == {(size[1], size[0], 3)}
    # The white corner is a third of each side.
    white = (frames[0].image > 128).all(-1)
    assert white.any(0).sum() == pytest.approx(size[0] / 3, abs=3)
    assert white.any(1).sum() == pytest.approx(size[1] / 3, abs=3)


def test_absurd_pixels() -> None:
    for aspect in (0.0, 1e-9, 1 / 9, 9.0, 1e9, float("nan"), float("inf")):
        assert square_pixels(640, 480, aspect) == (640, 480)
    for size in ((7680, 4320), (16384, 2), (2, 16384), (1, 1)):
        for aspect in (1 / 8, 0.7, 1.4, 8.0):
            width, height = square_pixels(*size, aspect)
            assert max(width, height) <= MAX_SIDE and width * height <= 1.001 * MAX_PIXELS


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_turned_videos_are_upright(tmp_path: Path, rotation: int, flipped: bool) -> None:
    plain = read_all(open_video(str(write_clip(tmp_path / "a.mp4", [0]))))[0].image
    path = write_clip(tmp_path / "b.mp4", [0], rotation=rotation, flipped=flipped)
    expected = np.rot90(plain, rotation // 90)
    expected = expected[:, ::-1] if flipped else expected
    np.testing.assert_array_equal(read_all(open_video(str(path)))[0].image, expected)


def test_turned_and_anamorphic(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [0], size=(64, 48), aspect=Fraction(2), rotation=-90)
    image = read_all(open_video(str(path)))[0].image
    assert image.shape == (128, 48, 3)
    assert (image[:40, 34:] > 128).all() and (image[50:] < 128).all()


def test_display_matrix_without_sense() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(turned(image, np.zeros(9, np.int32)), image)
    lowest = turned(image, np.full(9, -(2**31), np.int32))
    np.testing.assert_array_equal(lowest, image[::-1, ::-1])


# Times.


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".ts"])
@pytest.mark.parametrize(
    "times",
    [
        [0, 0.1, 0.6, 0.7, 1.2, 3.0],  # uneven
        [0, 5, 10, 15],  # a time-lapse
        [n / 500 for n in range(40)],  # slow motion
        [0],
    ],
)
def test_times_are_those_of_the_file(tmp_path: Path, suffix: str, times: list[float]) -> None:
    codec = "libvpx" if suffix == ".webm" else "mpeg4"
    path = write_clip(tmp_path / f"clip{suffix}", times, codec=codec)
    source = open_video(str(path))
    assert seconds(read_all(source)) == pytest.approx(times, abs=0.001)
    assert not source.live


def test_variable_frame_rate(real_data: Path) -> None:
    source = open_video(str(real_data / "cases" / "vfr.webm"))
    frames = read_all(source)
    assert len(frames) == 20 and source.seconds == pytest.approx(5.6)
    assert frames[-1].seconds + frames[-1].duration == pytest.approx(5.6, abs=0.01)
    gaps = np.diff(seconds(frames)).round(3)
    assert set(gaps) == {0.1, 0.5}


def test_variable_delays_of_a_gif(tmp_path: Path) -> None:
    images = [Image.new("RGB", (32, 32), (40 * n, 0, 0)) for n in range(4)]
    delays = [100, 500, 30, 2000]
    path = tmp_path / "a.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays)
    source = open_video(str(path))
    frames = read_all(source)
    assert seconds(frames) == [0, 0.1, 0.6, 0.63]
    assert frames[-1].duration == pytest.approx(2) and source.seconds == pytest.approx(2.63)


def test_webm_without_duration(tmp_path: Path) -> None:
    with (tmp_path / "a.webm").open("wb") as file:  # As it is written to a pipe.
        pipe = SimpleNamespace(write=file.write)
        write_clip(Path(), [0, 0.1, 0.4], codec="libvpx", file=pipe, format="webm")
    source = open_video(str(tmp_path / "a.webm"))
    assert source.seconds is None and not source.live
    assert seconds(read_all(source)) == [0, 0.1, 0.4]


def test_video_without_timestamps(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.m4v", [0, 0.1, 0.2, 0.3], format="m4v")
    frames = read_all(open_video(str(path)))
    steps = np.diff(seconds(frames))
    assert len(frames) == 4 and (steps > 0).all()


def test_joined_recordings(tmp_path: Path) -> None:
    first = write_clip(
        tmp_path / "a.ts", [9, 9.04, 9.08], codec="mpeg2video", rate=25, size=(64, 48)
    )
    second = write_clip(
        tmp_path / "b.ts", [0, 0.04, 0.08], codec="mpeg2video", rate=25, size=(96, 96)
    )
    path = tmp_path / "c.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames = read_all(open_video(str(path)))
    # FFmpeg drops the last frame before a change of size.
    assert [frame.image.shape for frame in frames] == 2 * [(48, 64, 3)] + 3 * [(96, 96, 3)]
    times = seconds(frames)
    assert times == sorted(set(times)) and times[-1] < 1


# Codecs and formats.


def test_av1(real_data: Path) -> None:
    frames = read_all(open_video(str(real_data / "cases" / "av1.mp4")))
    assert len(frames) == 20 and frames[-1].seconds == pytest.approx(1.9)


def test_codec_without_a_decoder_is_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [0, 0.1], codec="libvpx-vp9")
    path.write_bytes(path.read_bytes().replace(b"vp09", b"zz\x1b1"))
    message = refusal(path)
    assert "its codec, none (zz" in message and "\x1b" not in message
    assert "convert it, as by: ffmpeg -i VIDEO -c:v libx264 converted.mp4" in message


def test_sound_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    assert "holds no video, only sound or data" in refusal(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_still_image_is_one_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"frame%d{suffix}"  # FFmpeg reads other files for this name.
    Image.new("RGB", (33, 21), (200, 0, 0)).save(path)
    Image.new("RGB", (8, 8)).save(tmp_path / f"frame1{suffix}")
    (frame,) = read_all(open_video(str(path)))
    assert frame.image.shape == (21, 33, 3) and frame.image[..., 0].mean() > 180


def test_colours_are_those_that_the_file_names(tmp_path: Path) -> None:
    colour = (200, 60, 30)
    for space, tag, wide in ((1, "ITU709", 1), (6, "ITU601", 2)):
        path = tmp_path / f"{tag}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=10)
            context = stream.codec_context
            context.width = context.height = 64
            context.pix_fmt = "yuv420p"
            context.colorspace, context.color_range = space, wide
            image = np.full((64, 64, 3), colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(image).reformat(
                format="yuv420p", dst_colorspace=tag, dst_color_range=wide
            )
            container.mux([*stream.encode(frame), *stream.encode(None)])
        found = read_all(open_video(str(path)))[0].image.mean((0, 1))
        assert found == pytest.approx(colour, abs=4), tag


# Files from strangers.


def test_frames_that_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.new("RGB", (16, 16)).save(path)
    content = bytearray(path.read_bytes())
    content[6:10] = b"\xff\xff\xff\xff"  # The size of the screen.
    path.write_bytes(content)
    assert "with frames of at most 40 million pixels?" in refusal(path)
    began = time.monotonic()
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\x05\xf5\xe1\0\x08\0\0\0\0\xe5!p\x9e")
    assert "a.gif" in refusal(path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{other}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    ],
)
def test_no_further_file_or_address_is_opened(tmp_path: Path, content: str) -> None:
    other = write_clip(tmp_path / "other.ts", [0, 0.04], codec="mpeg2video", rate=25)
    path = tmp_path / "video.mp4"
    path.write_text(content.format(other=other.name))
    assert "video.mp4" in refusal(path)


def test_damaged_parts_are_skipped_and_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 48, 64, 3), np.uint8)
    path = write_clip(tmp_path / "a.avi", [n / 10 for n in range(20)], codec="mjpeg", images=images)
    content = bytearray(path.read_bytes())
    chunks = [i for i in range(len(content)) if content[i : i + 4] == b"00dc"]
    sizes = {i: int.from_bytes(content[i + 4 : i + 8], "little") for i in chunks}
    for start in [i for i in chunks if sizes[i]][5:8]:  # Others stand for times without a frame.
        content[start + 8 : start + 8 + sizes[start]] = bytes(sizes[start])
    path.write_bytes(content)
    source = open_video(str(path))
    frames = read_all(source)
    assert len(frames) == 17 and source.damaged == 3
    assert frames[-1].seconds == pytest.approx(1.9, abs=0.01)


def test_frame_rate_without_sense(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", [0, 0.1, 0.2], codec="mjpeg")
    content = bytearray(path.read_bytes())
    header = content.index(b"strh") + 8
    for scale, rate in ((0, 0), (0, 1), (1, 0), (1, 2**32 - 1), (2**32 - 1, 1)):
        content[header + 20 : header + 28] = scale.to_bytes(4, "little") + rate.to_bytes(
            4, "little"
        )
        path.write_bytes(content)
        try:
            source = open_video(str(path))
        except UserError:
            continue
        assert 0 < source.rate <= 1000
        times = seconds(read_all(source))
        assert len(times) == 3 and np.isfinite(times).all()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".ts", ".gif"])
def test_damaged_files_end_in_frames_or_one_line(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".gif":
        images = [Image.new("RGB", (32, 32), (40 * n, 0, 0)) for n in range(6)]
        images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    else:
        codec = {".webm": "libvpx", ".avi": "mjpeg"}.get(suffix, "mpeg4")
        write_clip(path, [n / 10 for n in range(6)], codec=codec)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(25):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 20)):
            content[place] = rng.integers(256)
        if rng.random() < 0.3:
            del content[rng.integers(1, len(content)) :]
        path.write_bytes(content)
        mistake, times = "", [0.0]
        try:
            times = seconds(read_all(open_video(str(path))))
        except UserError as error:
            mistake = str(error)
        assert "\n" not in mistake
        assert times == sorted(set(times)) and times[0] == 0
    assert capfd.readouterr() == ("", "")


def test_file_is_closed_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no film" * 100)
    with pytest.raises(UserError):
        open_file(path, "a", time.monotonic)
