"""Tells age and gender of the faces of a camera, a video or a stream, as it runs.

agenet webcam [SOURCE] [--output FILE] [--json FILE]
"""

import contextlib
import json
import os
import signal
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from agenet.cli.options import add_flags, load_predictor
from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.faces.detectors import create_detector
from agenet.faces.display import Display, Screen, Window, check_window
from agenet.faces.drawing import draw_faces
from agenet.faces.face import Detector, FacePredictor
from agenet.faces.pipeline import Pipeline
from agenet.faces.tracking import TrackedFace
from agenet.faces.video import CODECS, Frame, VideoSource, VideoWriter, check_output, open_video
from agenet.runs.logging import log_to

LONGEST_GAP = 1.0  # seconds; a longer one in a recording, such as a pause, is left out
EARLY = 0.9  # part of the frames that a file tells of, below which its end is told as early

EPILOG = """\
Keys in the window: q or Esc quits, space pauses, s saves a snapshot in the
folder from which the program was started.

A camera or stream is shown in a window, and written to --output and --json as
it is shown, as long as it lasts. A video file is shown too, or, with --output
or --json, worked on frame by frame without a window.

Exit status: 0 at the end of the source or if the user quits, 1 after a
mistake, 130 if a file was interrupted; what was written by then is kept.
"""


def main(
    arguments: Sequence[str] | None = None,
    load: Callable[[Namespace, Detector], FacePredictor] | None = None,
) -> None:
    """Parses the command line, checks what it names, runs and exits.

    Args:
        arguments: instead of those of the process.
        load: makes the predictor from the flags and the detector.
    """
    with one_line_errors():
        args = _parse(arguments)
        with contextlib.ExitStack() as stack:
            stack.enter_context(log_to())
            source = open_video(args.source)
            screen = Window("agenet") if _wants_window(args, source) else None
            detector = create_detector(args.detector)
            # Ended by the system, too, it leaves a video that can be played.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            lines = sys.stdout if args.json == "-" else None
            if lines is None and args.json is not None:
                lines = stack.enter_context(Path(args.json).open("w", encoding="ascii"))
            try:
                summary = run(
                    source,
                    detector,
                    lambda: (load or load_predictor)(args, detector),
                    screen=screen,
                    writer=VideoWriter(args.output, source.rate) if args.output else None,
                    lines=lines,
                    mirror=args.mirror,
                    max_frames=args.max_frames,
                )
            except BrokenPipeError:  # As `| head` does; exit would write to it again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(0)
        print(summary, file=sys.stderr)
        sys.exit(0)


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        prog="agenet webcam",
        description="Tells age and gender of the faces of a camera, a video file or a stream.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        nargs="?",
        default="0",
        help="a camera's number (0), a video file, or an address such as rtsp://host/stream",
    )
    endings = ", ".join(CODECS)
    add("--output", metavar="FILE", type=Path, help=f"write the video with labels: {endings}")
    add("--json", metavar="FILE", help="write a line of JSON for each frame; - for stdout")
    add("--overwrite", action="store_true", help="files that exist")
    add("--no-window", action="store_true", help="show nothing")
    add("--mirror", action="store_true", help="as a looking glass shows it")
    add("--max-frames", type=int, metavar="N", help="stop after that many")
    add_flags(parser)
    args = parser.parse_args(arguments)
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError("--max-frames: give 1 or more")
    if args.no_window and args.output is None and args.json is None:
        raise UserError("--no-window leaves nothing to do: add --output FILE or --json FILE")
    if args.output and args.output.suffix.lower() not in CODECS:
        raise UserError(f"--output {args.output}: name a file that ends in {endings}")
    files = [args.output] if args.output else []
    files += [Path(args.json)] if args.json not in (None, "-") else []
    for path in files:
        check_output(path, args.source, args.overwrite)
    if len(files) == 2 and files[0].absolute() == files[1].absolute():
        raise UserError("--output and --json name the same file: name two")
    return args


def _wants_window(args: Namespace, source: VideoSource) -> bool:
    """Whether frames are shown; a recording needs no window but has one where it can.

    Raises:
        UserError: there is nothing else to do, and no window to be had.
    """
    writes = args.output is not None or args.json is not None
    if args.no_window or (writes and not source.live):
        return False
    try:
        check_window()
    except UserError:
        if not writes:
            raise
        return False
    return True


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


if __name__ == "__main__":
    main()
