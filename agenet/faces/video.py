"""Opens cameras, video files and network streams, and checks where a video may be written."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from agenet import files
from agenet.errors import UserError
from agenet.faces.camera import open_camera
from agenet.faces.decoding import open_file, open_stream
from agenet.faces.frames import VideoSource


def open_video(text: str, clock: Callable[[], float] = time.monotonic) -> VideoSource:
    """Opens a camera, video file or stream.

    Args:
        text: a camera's number or device file, a video file, or the URL of a stream.
        clock: seconds, for the timestamps of live sources.

    Raises:
        UserError: it does not exist, or returns no frame.
    """
    if "://" in text:
        return open_stream(text, clock)
    path = Path(text)
    if text.isdecimal() or re.fullmatch(r"/dev/video\d+", text) or path.is_char_device():
        return open_camera(text, clock)
    if not path.exists():
        raise UserError(f"{text} does not exist: give a video file, a camera's number or a URL")
    if path.is_dir():
        raise UserError(
            f"{text} is a folder: give a video file, a camera's number or a URL; for images: "
            "agenet predict FOLDER"
        )
    if not path.is_file():
        raise UserError(f"{text} is not a file: give a video file, a camera's number or a URL")
    if not path.stat().st_size:
        raise UserError(f"{text} is empty: is it a video, and complete?")
    return open_file(path, text, clock)


def check_output(path: Path, source: str, overwrite: bool) -> None:
    """Raises `UserError` if a file cannot be written to `path`, or would replace another one."""
    if "://" not in source and path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"{path} is the video that is read: name another file to write")
    files.check_output(path, overwrite)
