"""Predicts age and gender of the faces of a camera, a video file or a stream, as it runs."""

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np
from tqdm import tqdm

from agenet.faces.display import Display, Screen
from agenet.faces.drawing import draw_faces
from agenet.faces.face import Detector, FacePredictor
from agenet.faces.pipeline import Pipeline
from agenet.faces.tracking import TrackedFace
from agenet.faces.video import Frame, VideoSource, VideoWriter

LONGEST_GAP = 1.0  # seconds; a longer one in a recording, such as a pause, is left out
EARLY = 0.9  # part of the frames that a file tells of, below which its end is told as early


def run(
    source: VideoSource,
    detector: Detector,
    load: Callable[[], FacePredictor],
    *,
    screen: Screen | None = None,
    writer: VideoWriter | None = None,
    lines: TextIO | None = None,
    mirror: bool = False,
    max_frames: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Goes through a source to its end, or until the user quits.

    Args:
        load: makes the predictor.
        screen: shows the frames.
        writer: takes them with what is drawn on them; closed whatever happens.
        lines: takes one JSON object a frame: `frame` (from 0), `seconds`, `faces`.

    Returns:
        A line that sums up.

    Raises:
        UserError: what went wrong in any thread.
    """
    every_frame = not source.live and (writer is not None or lines is not None)
    display = screen and Display(screen, paced=not source.live and not every_frame, clock=clock)
    shown_at: deque[float] = deque(maxlen=30)
    recorded, before = 0.0, 0.0  # seconds in the recording; time of the frame before
    count, began, ending = 0, clock(), ""
    total = source.count if max_frames is None else min(source.count or max_frames, max_frames)
    with (
        contextlib.closing(writer) if writer else contextlib.nullcontext(),
        Pipeline(source, detector, load, every_frame=every_frame, mirror=mirror) as pipeline,
        # Without a window only; disable=None: nor where nobody looks.
        tqdm(total=total, unit=" frames", disable=True if display else None) as progress,
    ):
        try:
            for item in pipeline:
                if item is None:
                    if display and not display.idle(f"waiting for {source.name}"):
                        break
                    continue
                frame, faces = item
                count += 1
                progress.update()
                shown_at.append(clock())
                if lines:
                    _write_line(lines, frame, faces)
                drawn = frame.image
                if display or writer:
                    status = display.notice if display else ""
                    # In a file's own pace, how fast this machine is says nothing.
                    if not status and not every_frame:
                        status = _status(shown_at, pipeline.loaded)
                    drawn = draw_faces(
                        frame.image,
                        [tracked.face for tracked in faces],
                        numbers=[tracked.number for tracked in faces],
                        status=status,
                    )
                if writer and source.live:
                    recorded += min(frame.seconds - before, LONGEST_GAP)
                    before = frame.seconds
                    writer.write_until(drawn, recorded)
                elif writer:
                    writer.write(drawn)
                if display and not display.show(frame, drawn):
                    break
                if max_frames is not None and count >= max_frames:
                    break
            else:
                ending = f"; {source.name} gives no more pictures" if source.live else ""
                if not source.live and count < EARLY * (source.count or 0):
                    ending = f"; {source.name} ends early, it tells of {source.count} frames"
        except KeyboardInterrupt:
            if not source.live:  # A camera has no other end.
                raise
    seconds = max(clock() - began, 1e-9)
    faces_followed = pipeline.tracker.count
    return (
        f"{source.name}: {count} {'frame' if count == 1 else 'frames'} in {seconds:.1f} s "
        f"({count / seconds:.1f} per second), "
        f"{faces_followed} {'face' if faces_followed == 1 else 'faces'} followed"
        + (f", written to {writer.path}" if writer and writer.count else "")
        + ending
    )


def _status(shown_at: Sequence[float], loaded: bool) -> str:
    gaps = np.diff(shown_at)
    gaps = gaps[gaps < LONGEST_GAP]  # Not the pauses.
    told = [f"{len(gaps) / max(gaps.sum(), 1e-3):.1f} fps"] if len(gaps) else []
    return ", ".join(told + ([] if loaded else ["loading the network"]))


def _write_line(lines: TextIO, frame: Frame, faces: Sequence[TrackedFace]) -> None:
    told = {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    lines.write(json.dumps(told | {"faces": [face.asdict() for face in faces]}) + "\n")
    lines.flush()
