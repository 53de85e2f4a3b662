"""Predicts the faces in a camera, video file or stream; shows, records and logs them."""

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from tqdm import tqdm

from agenet.errors import UserError
from agenet.faces.display import Display, Screen
from agenet.faces.drawing import draw_faces
from agenet.faces.encoding import VideoWriter
from agenet.faces.face import Detector, FacePredictor
from agenet.faces.frames import Frame, VideoSource
from agenet.faces.pipeline import Pipeline
from agenet.faces.track_summaries import TrackSummaries, TrackWriter
from agenet.faces.tracking import TrackedFace

MAX_GAP = 1.0  # seconds; longer gaps between a camera's frames, such as pauses, are not recorded
MIN_COMPLETE = 0.9  # fraction of a file's length below which its end is reported as early


class Lines(Protocol):
    """Takes text, such as a text file."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


def run(
    source: VideoSource,
    detector: Detector,
    load: Callable[[], FacePredictor],
    *,
    screen: Screen | None = None,
    writer: VideoWriter | None = None,
    lines: Lines | None = None,
    tracks: TrackWriter | None = None,
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
        writer: records the frames with their drawings; closed at the end, and published once the
            predictor is loaded, so that an older file stays if that fails.
        lines: receives one JSON object for each frame: `frame` (from 0), `seconds`, `faces`; the
            first ones, too, once the predictor is loaded.
        tracks: receives a summary of each face, once it has left.
        mirror: flip frames horizontally.
        max_frames: stop after so many frames.
        clock: seconds.

    Returns:
        A summary in one line.

    Raises:
        UserError: the error of any thread.
    """
    writes = writer is not None or lines is not None or tracks is not None
    every_frame = not source.live and writes
    summaries = TrackSummaries(detector.name if tracks and tracks.crops else None)
    display = screen and Display(screen, paced=not source.live and not every_frame, clock=clock)
    shown_at: deque[float] = deque(maxlen=30)
    recorded, before, end = 0.0, 0.0, 0.0  # seconds recorded; time and end of the previous frame
    held: list[str] = []  # lines that are not written yet
    count, began, ending = 0, clock(), ""
    total = source.count if max_frames is None else min(source.count or max_frames, max_frames)
    with (
        _completed(tracks, summaries),  # once the threads have ended
        writer or contextlib.nullcontext(),
        Pipeline(
            source,
            detector,
            load,
            every_frame=every_frame,
            mirror=mirror,
            recorder=summaries if tracks else None,
        ) as pipeline,
        # Only without a window, and only on a terminal (disable=None); there may be no stderr.
        tqdm(
            total=total, unit=" frames", disable=True if display or not sys.stderr else None
        ) as progress,
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
                    held.append(_json_line(frame, faces))
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
                    writer.write(drawn, recorded)
                elif writer:
                    writer.write(drawn, frame.seconds, frame.duration)
                end = frame.seconds + frame.duration
                if pipeline.loaded:
                    _write(lines, held)
                    _write_tracks(tracks, summaries)
                    if writer:
                        writer.publish()
                if display and not display.show(frame, drawn):
                    break
                if max_frames is not None and count >= max_frames:
                    break
            else:
                ending = _ending(source, end)
        except KeyboardInterrupt:
            if not source.live:  # This is the normal end of a camera.
                raise
        _write(lines, held)
    seconds = max(clock() - began, 1e-9)
    tracked_faces = pipeline.tracker.count
    return (
        f"{source.name}: {count} {'frame' if count == 1 else 'frames'} in {seconds:.1f} s "
        f"({count / seconds:.1f} per second), "
        f"{tracked_faces} {'face' if tracked_faces == 1 else 'faces'} tracked"
        + (f", written to {writer.path}" if writer and writer.count else "")
        + (_left_out(writer) if writer and writer.dropped and not source.live else "")
        + ending
    )


def _ending(source: VideoSource, end: float) -> str:
    """What a user should know about a source that has ended at `end` seconds."""
    if source.live:
        return f"; {source.name} returns no more frames"
    parts = []
    if end < MIN_COMPLETE * (source.seconds or 0):
        parts.append(f"; {source.name} ends early, after {end:.1f} of {source.seconds:.1f} s")
    elif source.truncated:
        parts.append(f"; {source.name} ends early: the file is cut short")
    if source.damaged:
        parts.append(f"; {source.damaged} damaged parts of {source.name} were skipped")
    return "".join(parts)


def _left_out(writer: VideoWriter) -> str:
    return (
        f"; {writer.dropped} frames are not in it, because AVI has one frame rate: name an .mkv to "
        "have all"
    )


def _status(shown_at: Sequence[float], loaded: bool) -> str:
    gaps = np.diff(shown_at)
    gaps = gaps[gaps < MAX_GAP]  # Without pauses.
    parts = [f"{len(gaps) / max(gaps.sum(), 1e-3):.1f} fps"] if len(gaps) else []
    return ", ".join(parts + ([] if loaded else ["loading the network"]))


def _json_line(frame: Frame, faces: Sequence[TrackedFace]) -> str:
    fields = {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    return json.dumps(fields | {"faces": [face.asdict() for face in faces]}) + "\n"


def _write(lines: Lines | None, held: list[str]) -> None:
    """Writes lines, and removes them from `held`."""
    if lines is None or not held:
        return
    with _errors_explained("--json"):
        lines.write("".join(held))
        lines.flush()
    held.clear()


@contextlib.contextmanager
def _completed(tracks: TrackWriter | None, summaries: TrackSummaries) -> Iterator[None]:
    """Writes the faces that are still there at the end, also after Ctrl-C."""
    try:
        yield
    except Exception:
        if tracks and tracks.has_begun:
            with contextlib.suppress(OSError):
                tracks.finish()
        raise
    except BaseException:
        _write_last(tracks, summaries)
        raise
    _write_last(tracks, summaries)


def _write_last(tracks: TrackWriter | None, summaries: TrackSummaries) -> None:
    summaries.end_all()
    _write_tracks(tracks, summaries)
    if tracks:
        with _errors_explained("--tracks"):
            tracks.finish()


def _write_tracks(tracks: TrackWriter | None, summaries: TrackSummaries) -> None:
    """Writes the summaries of tracks that have ended."""
    with _errors_explained("--tracks"):
        while tracks and summaries.ended:
            tracks.write(summaries.ended.popleft())


@contextlib.contextmanager
def _errors_explained(option: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{option} could not be written completely ({error.strerror}): is the disk full?"
        ) from error
