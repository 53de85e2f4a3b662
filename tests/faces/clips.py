"""Writes the clips that tests read: with timestamps, pixels and headers of all kinds."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from agenet.faces.frames import Frame, VideoSource

TICK = Fraction(1, 1000)  # seconds


def write_clip(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    aspect: Fraction = Fraction(1),
    rotation: float = 0.0,
    flipped: bool = False,
    images: Iterable[np.ndarray] | None = None,
    rate: int = 10,
    file: Any = None,
    format: str | None = None,
) -> Path:
    """Writes a clip that grows redder, whose upper left corner is white.

    Args:
        path: what is written, unless `file` is.
        times: of each frame, in seconds.
        codec: by FFmpeg's name.
        size: (width, height) of the frames as stored.
        aspect: width of a pixel divided by its height.
        rotation: in degrees counterclockwise, of the display matrix.
        flipped: mirror from left to right by the display matrix.
        images: the frames instead, RGB uint8 [H, W, 3].
        rate: frames per second as claimed; MPEG-2 has few, and then rounds times to them.
        file: a file object to write to, which may lack `seek`.
        format: by FFmpeg's name; None goes by the path.
    """
    tick = Fraction(1, rate) if codec == "mpeg2video" else TICK
    options = {} if codec.startswith("libvpx") else {"qmin": "2", "qmax": "2"}  # Clear colours.
    images = drawn(len(times), size) if images is None else images
    with av.open(file or str(path), "w", format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        context = stream.codec_context
        context.width, context.height = size
        context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        context.time_base = tick
        context.sample_aspect_ratio = aspect
        if rotation or flipped:
            stream.set_display_rotation(rotation, hflip=flipped)
        for time, image in zip(times, images, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def drawn(count: int, size: tuple[int, int]) -> Iterable[np.ndarray]:
    width, height = size
    for number in range(count):
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = min(10 * number, 200)
        image[: height // 3, : width // 3] = 255
        yield image


def read_all(source: VideoSource) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close()
    return frames
