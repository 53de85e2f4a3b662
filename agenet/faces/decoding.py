"""Reads frames from video files and network streams, which may come from strangers."""

import itertools
import math
import re
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import cv2  # noqa: F401 (before PyAV: its windows hang otherwise)
import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from agenet.errors import UserError, printable
from agenet.faces.frames import DEFAULT_RATE, TIMEOUT, Frame, VideoSource, plausible_rate
from agenet.faces.timeline import LONGEST_GAP, Timeline

MAX_PIXELS = 40_000_000  # of a frame; 8K video has 35 million
MAX_SIDE = 16_384  # pixels
MAX_STRETCH = 8  # of a pixel's width to its height; beyond, the header is not believed
MAX_DAMAGED = 1000  # packets in a row that cannot be decoded, after which a video has ended
PLAYLISTS = {"dash", "hls"}  # formats whose file names the files of the video
CONVERT = "convert it, as by: ffmpeg -i VIDEO -c:v libx264 converted.mp4"
_MAX_PIXELS = {"max_pixels": str(MAX_PIXELS)}
# Opens no further file: a video from a stranger might name one, or an address.
_FILE_OPTIONS = _MAX_PIXELS | {"protocol_whitelist": "none"}
_STREAM_OPTIONS = _MAX_PIXELS | {"rtsp_transport": "tcp"}  # UDP loses packets.


class Video(VideoSource):
    """An open video file or stream.

    Frames are returned as they are meant to be seen: upright, and with square pixels.

    Args:
        container: opened by PyAV; closed by `close`.
        name: for messages.
        live: see `VideoSource`.
        clock: seconds, for the timestamps of a live stream.
        file: what the container reads; closed by `close`.

    Raises:
        UserError: it has no video that can be decoded.
    """

    def __init__(
        self,
        container: InputContainer,
        name: str,
        live: bool,
        clock: Callable[[], float],
        file: BinaryIO | None = None,
    ) -> None:
        self.name, self.live = name, live
        self._container, self._clock, self._file = container, clock, file
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise UserError(f"{name} holds no video, only sound or data: name another file")
        if stream.codec_context is None:
            raise UserError(
                f"{name}: its codec, {_unknown_codec(container)}, cannot be decoded here: {CONVERT}"
            )
        self._stream, self._context = stream, stream.codec_context
        self._size = self._context.width, self._context.height
        self._check_size(*self._size)
        rates = map(plausible_rate, (stream.guessed_rate, stream.average_rate))
        self.rate = next((rate for rate in rates if rate), DEFAULT_RATE)
        if not live:
            self.seconds = _length(container, stream)
            estimate = (self.seconds or 0) * (plausible_rate(stream.average_rate) or 0)
            self.count = stream.frames or round(estimate) or None
        self._context.options = _MAX_PIXELS
        # Decoding frames in parallel delays each of them.
        self._context.thread_type = "SLICE" if live else "AUTO"
        self._reformatter = VideoReformatter()
        self._timeline = Timeline(self.rate)
        self._number, self._start = 0, 0.0
        self._decoded = self._decode()
        # Truncated files open without error and fail at the first frame.
        first = next(self._decoded, None)
        if first is None:
            raise UserError(
                f"{name} returns no frame of its video (codec {self._context.name}): is it "
                f"complete, with frames of at most {MAX_PIXELS / 1e6:g} million pixels? If so, "
                f"{CONVERT}"
            )
        self._frames = itertools.chain([first], self._decoded)

    def read(self) -> Frame | None:
        decoded = next(self._frames, None)
        if decoded is None:
            return None
        seconds, duration = self._time(decoded)
        frame = Frame(self._number, seconds, self._to_image(decoded), duration)
        self._number += 1
        return frame

    def close(self) -> None:
        self._decoded.close()
        self._container.close()
        if self._file:
            self._file.close()

    def _decode(self) -> Generator[av.VideoFrame, None, None]:
        """Yields frames until the end, a disconnection, or too much that cannot be decoded."""
        began, in_row = self._clock(), 0
        try:
            # Of all streams, so that a live one whose video stalls is noticed.
            for packet in self._container.demux():
                if self.live and not self._number and self._clock() - began > TIMEOUT:
                    return
                # Not `packet.stream_index`, which is 0 where a packet ends a stream.
                if packet.stream.index != self._stream.index:
                    continue
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self.damaged, in_row = self.damaged + 1, in_row + 1
                    if in_row == MAX_DAMAGED:
                        return
                    continue
                in_row = 0 if frames else in_row
                yield from frames
        except av.FFmpegError:
            self.damaged += 1
            with suppress(av.FFmpegError):  # The frames that the codec holds back.
                yield from self._context.decode(None)

    def _time(self, frame: av.VideoFrame) -> tuple[float, float]:
        """Seconds since the first frame, and until the next one if known, else 0."""
        if self.live:
            now = self._clock()
            self._start = self._start if self._number else now
            return now - self._start, 0.0
        unit = float(frame.time_base or self._stream.time_base or 0)
        stamp = frame.dts if frame.pts is None else frame.pts
        seconds = self._timeline.next(stamp * unit if stamp is not None and unit else None)
        duration = (frame.duration or 0) * unit
        return seconds, duration if 0 < duration <= LONGEST_GAP else 1 / self.rate

    def _to_image(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB uint8 [H, W, 3] of a frame, with square pixels and upright."""
        self._check_size(frame.width, frame.height)
        aspect = self._stream.sample_aspect_ratio
        if (frame.width, frame.height) != self._size:  # The container describes the first frames.
            aspect = self._context.sample_aspect_ratio
        width, height = square_pixels(frame.width, frame.height, float(aspect or 1))
        # Bilinear: of FFmpeg's ways to stretch it changes predicted ages least.
        image = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation="BILINEAR"
        ).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else turned(image, np.frombuffer(matrix, "=i4"))

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise UserError(
                f"{self.name}: frames of {width}x{height} are too large: shrink them, as by: "
                "ffmpeg -i VIDEO -vf scale=1920:-2 smaller.mp4"
            )


def square_pixels(width: int, height: int, aspect: float) -> tuple[int, int]:
    """The size at which a frame has square pixels; the side that is too short is lengthened.

    >>> square_pixels(720, 576, 64 / 45)
    (1024, 576)
    >>> square_pixels(720, 480, 8 / 9)
    (720, 540)

    Args:
        width, height: in pixels as stored.
        aspect: width of a pixel divided by its height.
    """
    if abs(aspect - 1) < 1e-3 or not 1 / MAX_STRETCH <= aspect <= MAX_STRETCH:
        return width, height
    wide, high = (width * aspect, float(height)) if aspect > 1 else (width, height / aspect)
    shrink = min(1.0, math.sqrt(MAX_PIXELS / (wide * high)), MAX_SIDE / max(wide, high))
    # Even, as codecs need it.
    return max(2, 2 * round(wide * shrink / 2)), max(2, 2 * round(high * shrink / 2))


def turned(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turns and mirrors an image uint8 [H, W, 3] as a display matrix says, to quarter turns.

    Args:
        image: as stored.
        matrix: int32 [9], the transformation matrix of ISO/IEC 14496-12, 8.2.2: a pixel (x, y)
            is shown at (x m[0] + y m[3], x m[1] + y m[4]).
    """
    a, b, c, d = matrix[[0, 1, 3, 4]].astype(float)
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        across, down = c, b
    image = image[:, ::-1] if across < 0 else image
    return np.ascontiguousarray(image[::-1] if down < 0 else image)


def open_file(path: Path, name: str, clock: Callable[[], float]) -> Video:
    """Opens a video file; raises `UserError` if it is none, or none that can be decoded."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        # Without its name, in which FFmpeg would see a pattern for the names of other files.
        nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
        try:
            container = stack.enter_context(
                av.open(nameless, options=_FILE_OPTIONS, metadata_errors="replace")
            )
        except av.FFmpegError as error:
            raise UserError(
                f"{name} cannot be read as a video: is it one, and complete?"
            ) from error
        if container.format.name in PLAYLISTS:
            raise UserError(f"{name} is a list of videos: give one of them, or the list's URL")
        video = Video(container, name, False, clock, file)
        video.truncated = container.format.name == "gif" and not _has_trailer(path)
        stack.pop_all()
        return video


def _has_trailer(path: Path) -> bool:
    """Whether a GIF ends as its specification (GIF89a, section 27) demands, but for zeros."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 64, 0))
        return file.read(64).rstrip(b"\0").endswith(b";")


def open_stream(address: str, clock: Callable[[], float]) -> Video:
    """Opens the URL of a stream or file; raises `UserError` if it holds no video, or not now."""
    name = re.sub(r"//[^/]*@", "//***@", address)
    with ExitStack() as stack:
        try:
            container = stack.enter_context(
                av.open(
                    address, options=_STREAM_OPTIONS, metadata_errors="replace", timeout=TIMEOUT
                )
            )
        except av.FFmpegError as error:
            raise UserError(
                f"{name} cannot be opened as a video within {TIMEOUT:g} s: is the URL right, and "
                "can this machine reach it?"
            ) from error
        # A file on a web server has a length.
        has_length = container.size > 0 and container.format.name not in PLAYLISTS
        live = container.duration is None and not has_length
        video = Video(container, name, live, clock)
        stack.pop_all()
        return video


def _length(container: InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds that a file claims its video to last."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska and WebM: what FFmpeg writes for each track, else the file's with its sound.
    tag = re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return 3600.0 * int(hours) + 60 * int(minutes) + float(seconds)
    return container.duration / 1e6 if container.duration else None  # AV_TIME_BASE


def _unknown_codec(container: InputContainer) -> str:
    """The name of the codec of a video without a decoder, as far as FFmpeg knows it."""
    av.logging.set_level(av.logging.INFO)
    try:
        described = container.dumps_format()  # type: ignore[attr-defined,unused-ignore]
    finally:
        av.logging.set_level(None)
    found = re.search(r"Video: ([^,\n]+)", described)
    return printable(found[1]) if found else "unknown"
