"""Predicts the faces in a camera, video file or stream; shows, records and logs them."""

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

MAX_GAP = 1.0  # seconds; longer gaps between frames, such as pauses, are not recorded
MIN_COMPLETE = 0.9  # fraction of a file's frames below which its end is reported as early


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
    """Processes a source until it ends or the user quits.

    Args:
        source: closed at the end.
        detector: finds the faces.
        load: loads the predictor.
        screen: shows the frames.
        writer: records the frames with their drawings; closed at the end.
        lines: receives one JSON object for each frame: `frame` (from 0), `seconds`, `faces`.
        mirror: flip frames horizontally.
        max_frames: stop after so many frames.
        clock: seconds.

    Returns:
        A summary in one line.

    Raises:
        UserError: the error of any thread.
    """
    every_frame = not source.live and (writer is not None or lines is not None)
    display = screen and Display(screen, paced=not source.live and not every_frame, clock=clock)
    shown_at: deque[float] = deque(maxlen=30)
    recorded, before = 0.0, 0.0  # seconds recorded; time of the previous frame
    count, began, ending = 0, clock(), ""
    total = source.count if max_frames is None else min(source.count or max_frames, max_frames)
    with (
        contextlib.closing(writer) if writer else contextlib.nullcontext(),
        Pipeline(source, detector, load, every_frame=every_frame, mirror=mirror) as pipeline,
        # Only without a window, and only on a terminal (disable=None).
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
                    # The frame rate means nothing when every frame is waited for.
                    if not status and not every_frame:
                        status = _status(shown_at, pipeline.loaded)
                    drawn = draw_faces(
                        frame.image,
                        [tracked.face for tracked in faces],
                        numbers=[tracked.number for tracked in faces],
                        status=status,
                    )
                if writer and source.live:
                    recorded += min(frame.seconds - before, MAX_GAP)
                    before = frame.seconds
                    writer.write_until(drawn, recorded)
                elif writer:
                    writer.write(drawn)
                if display and not display.show(frame, drawn):
                    break
                if max_frames is not None and count >= max_frames:
                    break
            else:
                ending = f"; {source.name} returns no more frames" if source.live else ""
                if not source.live and count < MIN_COMPLETE * (source.count or 0):
                    ending = f"; {source.name} ends early, it should have {source.count} frames"
        except KeyboardInterrupt:
            if not source.live:  # This is the normal end of a camera.
                raise
    seconds = max(clock() - began, 1e-9)
    tracked_faces = pipeline.tracker.count
    return (
        f"{source.name}: {count} {'frame' if count == 1 else 'frames'} in {seconds:.1f} s "
        f"({count / seconds:.1f} per second), "
        f"{tracked_faces} {'face' if tracked_faces == 1 else 'faces'} tracked"
        + (f", written to {writer.path}" if writer and writer.count else "")
        + ending
    )


def _status(shown_at: Sequence[float], loaded: bool) -> str:
    gaps = np.diff(shown_at)
    gaps = gaps[gaps < MAX_GAP]  # Without pauses.
    parts = [f"{len(gaps) / max(gaps.sum(), 1e-3):.1f} fps"] if len(gaps) else []
    return ", ".join(parts + ([] if loaded else ["loading the network"]))


def _write_line(lines: TextIO, frame: Frame, faces: Sequence[TrackedFace]) -> None:
    fields = {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    lines.write(json.dumps(fields | {"faces": [face.asdict() for face in faces]}) + "\n")
    lines.flush()
