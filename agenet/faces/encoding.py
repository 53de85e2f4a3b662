"""Writes video files."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import av
import numpy as np
from av.video.reformatter import VideoReformatter

from agenet.errors import UserError
from agenet.faces.frames import DEFAULT_RATE, plausible_rate
from agenet.faces.output import OutputFile, keep_after

# Formats and codecs that are part of FFmpeg itself. An AVI file is playable even if the program
# that wrote it was killed.
CODECS = {
    ".mp4": ("mp4", "mpeg4"),
    ".mov": ("mov", "mpeg4"),
    ".mkv": ("matroska", "mpeg4"),
    ".avi": ("avi", "mjpeg"),
}
PIXELS = {"mpeg4": "yuv420p", "mjpeg": "yuvj420p"}
MIN_SIDE, MAX_SIDE = 16, 8190  # pixels; MPEG-4 has 13 bits for a side, and codecs need even ones
QUANTIZER = "3"  # of these codecs, from 1, the best, to 31
TICKS = 60_000  # per second; MPEG-4 video can have 65,535
MAX_AVI_GAP = 50_000  # frames of an AVI file that are left out in a row; FFmpeg takes 60,000


class VideoWriter:
    """Writes a video file whose frames have the times that they are given.

    AVI has one frame rate: there times are rounded to it, and a frame is left out where another
    one has its time.

    Args:
        path: a file with one of the suffixes in `CODECS`; an older one stays until `publish`.
        rate: usual number of frames per second.
        overwrite: whether an older file is replaced.

    Attributes:
        count: number of frames written.
        dropped: number of frames left out.

    Raises:
        UserError: the file cannot be written; also from the methods.
    """

    def __init__(self, path: Path, rate: float, overwrite: bool = True) -> None:
        self.path = path
        self.count = self.dropped = 0
        self._format, self._codec = CODECS[path.suffix.lower()]
        self._rate = Fraction(plausible_rate(rate) or DEFAULT_RATE).limit_denominator(1001)
        self._tick = 1 / self._rate if self._format == "avi" else Fraction(1, TICKS)
        self._last, self._end = -1, 0  # start of the latest frame and its end, in ticks
        self._latest: av.VideoFrame | None = None
        self._shape = self._size = (0, 0)
        self._failed = False
        self._reformatter = VideoReformatter()
        self._container: av.container.OutputContainer | None = None
        with self._errors_explained():
            self._output = OutputFile(path, overwrite)

    def write(self, image: np.ndarray, seconds: float, duration: float = 0.0) -> None:
        """Adds a frame.

        Args:
            image: RGB uint8 [H, W, 3]; shown within the size of the first one.
            seconds: its time since the first frame, which is not before that of the previous one.
            duration: seconds until the next frame if known, else 0.
        """
        tick = round(Fraction(seconds) / self._tick)
        if tick <= self._last:
            self.dropped += 1
            return
        with self._errors_explained():
            if self._container is None:
                self._open(*image.shape[:2])
            frame = self._reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(self._fitted(image), "rgb24"),
                format=PIXELS[self._codec],
                interpolation="BICUBIC",
            )
            if self._format == "avi" and self._latest:
                while tick - self._last > MAX_AVI_GAP:
                    self._encode(self._latest, self._last + MAX_AVI_GAP)
            lasts = Fraction(duration) if duration else 1 / self._rate
            ticks = max(1, round(lasts / self._tick))
            self._encode(frame, tick, ticks)
        self._latest, self._end = frame, tick + ticks
        self.count += 1

    def publish(self) -> None:
        """Puts the file in the place of an older one, from now on."""
        if self.count:
            with self._errors_explained():
                self._output.publish()

    def close(self, keep: bool = True) -> None:
        """Completes the file and gives it its name, or removes it: see `OutputFile.close`."""
        try:
            if self._container and not self._failed:
                with self._errors_explained():
                    if self._format == "avi" and self._latest and self._end - 1 > self._last:
                        self._encode(self._latest, self._end - 1)
                    self._encode(None)
                    self._container.close()
        finally:
            if self._container:  # Else it would write when it is garbage.
                with contextlib.suppress(OSError, av.FFmpegError):
                    self._container.close()
            self._container = self._latest = None
            with self._errors_explained():
                self._output.close(keep and self.count > 0 and not self._failed)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(keep_after(kind))

    def _open(self, height: int, width: int) -> None:
        """Begins the file, for frames of this size."""
        self._shape = (height, width)
        shrink = min(1.0, MAX_SIDE / max(height, width))
        across, down = (max(MIN_SIDE, int(side * shrink) // 2 * 2) for side in (width, height))
        self._size = (across, down)
        # Each frame is in the file at once, for its readers and after kills.
        options = {"flush_packets": "1"}
        # A file, even where the name looks like the address of something else.
        name = f"file:{self._output.temporary.absolute()}"
        self._container = av.open(name, "w", self._format, container_options=options)
        quality = {"qmin": QUANTIZER, "qmax": QUANTIZER}  # The same at every frame rate.
        self._stream = self._container.add_stream(self._codec, rate=self._rate, options=quality)
        context = self._stream.codec_context
        context.width, context.height = self._size
        context.pix_fmt = PIXELS[self._codec]
        context.time_base = self._tick
        context.thread_count = 1  # Other threads find faces meanwhile.

    def _encode(self, frame: av.VideoFrame | None, tick: int = 0, ticks: int = 1) -> None:
        """Writes a frame, from a tick on for so many; None writes what the codec holds back."""
        if frame:
            frame.pts, frame.time_base = tick, self._tick
            self._last = tick
        assert self._container
        for packet in self._stream.encode(frame):
            packet.duration = ticks
            self._container.mux(packet)

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        """A frame at the size of the video; one of another shape with black bars."""
        (height, width), (across, down) = image.shape[:2], self._size
        if (height, width) == self._shape:
            return resized(image, across, down)
        scale = min(across / width, down / height)
        inner = resized(image, max(1, round(width * scale)), max(1, round(height * scale)))
        top, left = (down - inner.shape[0]) // 2, (across - inner.shape[1]) // 2
        frame = np.zeros((down, across, 3), np.uint8)
        frame[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return frame

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            self._failed = True
            raise UserError(
                f"{self.path} could not be written completely ({error.strerror}): is the disk "
                "full, and may this program write there?"
            ) from error


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape[1::-1] == (width, height):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
