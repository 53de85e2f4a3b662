"""`agenet webcam`: age and gender of the faces of a camera, a video file or a stream."""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from agenet.cli import options
from agenet.errors import UserError, discard_stdout, say

if TYPE_CHECKING:
    from agenet.faces.frames import VideoSource

EPILOG = """\
Keys in the window: q or Esc quits, space pauses, s saves a snapshot in the folder from which the
command was started.

A camera or stream is shown in a window, and written to --output, --json and --tracks at the same
time, as long as it lasts. A video file is shown in a window, too; with one of these it is processed
frame by frame without one.

A camera or stream that stops is opened again, after pauses that grow from 1 to 30 seconds, until
Ctrl-C or for --give-up SECONDS; 0 ends at once.

--tracks has a row for each face, once it is missing for a second or the video ends: when it was
found first and last, in how many frames, the mean score, and age with its interval and gender by
the average of all its predictions.

Exit status: 0 at the end of the source or after q, 1 after a mistake, 130 if a file was
interrupted; output written until then is kept.
"""


@click.command(epilog=EPILOG)
@click.argument("source", metavar="[SOURCE]", default="0", type=click.Path())
@click.option(
    "--output",
    metavar="FILE",
    type=options.PATH,
    help="Write the video with labels: .mp4, .mov, .mkv or .avi.",
)
@click.option(
    "--json",
    metavar="FILE",
    type=click.Path(),
    help="Write a line of JSON for each frame; - for stdout.",
)
@click.option(
    "--tracks",
    metavar="FILE",
    type=options.PATH,
    help="Write a summary of each face that was tracked: .csv or .json.",
)
@click.option(
    "--crops",
    metavar="FOLDER",
    type=options.PATH,
    help="With --tracks: write the largest and sharpest crop of each face.",
)
@options.overwrite
@click.option("--no-window", is_flag=True, help="Do not open a window.")
@click.option("--mirror", is_flag=True, help="Show the image mirrored.")
@click.option("--max-frames", type=int, metavar="N", help="Stop after this many frames.")
@click.option(
    "--give-up",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End when a camera or stream is gone for so long; by default it is opened again until "
    "Ctrl-C.",
)
@options.selection
@options.predictor
def command(
    source: str,
    output: Path | None,
    json: str | None,
    tracks: Path | None,
    crops: Path | None,
    overwrite: bool,
    no_window: bool,
    mirror: bool,
    max_frames: int | None,
    give_up: float | None,
    min_score: float,
    min_size: float,
    max_faces: int | None,
    model: str,
    detector: str,
    engine: str,
    age_groups: str,
    threads: int | None,
) -> None:
    """Predict age and gender live, from a camera, video or stream.

    SOURCE is the number of a camera (default: 0), a video file, or an address such as
    rtsp://host/stream.
    """
    if max_frames is not None and max_frames < 1:
        raise UserError("--max-frames: give 1 or more")
    writes = any(file is not None for file in (output, json, tracks))
    if no_window and not writes:
        raise UserError(
            "--no-window leaves nothing to do: add --output FILE or --json FILE, or --tracks FILE"
        )
    if crops is not None and tracks is None:
        raise UserError("--crops goes with --tracks FILE: name one")

    from agenet.faces import detectors
    from agenet.faces.display import Window
    from agenet.faces.encoding import VideoWriter
    from agenet.faces.reconnecting import Reconnecting
    from agenet.faces.selection import FaceSelection, SelectiveDetector
    from agenet.faces.track_summaries import TrackWriter, check_tracks
    from agenet.faces.video import open_video
    from agenet.faces.webcam import Lines, run
    from agenet.files import LineFile
    from agenet.runs.logging import log_to

    files = {"--output": output, "--tracks": tracks}
    files["--json"] = None if json in (None, "-") else Path(str(json))
    _check_files(source, files, overwrite)
    if tracks:
        check_tracks(tracks, overwrite, crops)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to())
        opening = stack.enter_context(contextlib.ExitStack())
        opened = opening.enter_context(contextlib.closing(open_video(source)))
        if opened.live:
            opened = Reconnecting(opened, lambda: open_video(source), give_up)
        screen = Window("agenet") if _wants_window(opened, writes, no_window) else None
        found = SelectiveDetector(
            detectors.create_detector(detector), FaceSelection(min_score, min_size, max_faces)
        )
        # After a SIGTERM, too, the video can be played.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        lines: Lines | None = None
        if json == "-":
            lines = _stdout()
        elif json is not None:
            lines = stack.enter_context(LineFile(Path(json), overwrite))
        summaries = None
        if tracks:
            summaries = stack.enter_context(TrackWriter(tracks, overwrite, crops))
        writer = VideoWriter(output, opened.rate, overwrite) if output else None
        opening.pop_all()  # Both are closed by `run`.
        try:
            summary = run(
                opened,
                found,
                lambda: options.load_predictor(model, found, engine, age_groups, threads),
                screen=screen,
                writer=writer,
                lines=lines,
                tracks=summaries,
                mirror=mirror,
                max_frames=max_frames,
            )
        except BrokenPipeError:  # As after `| head`.
            discard_stdout()
            return
    say(summary)


def _stdout() -> TextIO:
    """The standard output; raises `UserError` if it is closed."""
    if getattr(sys.stdout, "name", "") == os.devnull:  # As `one_line_errors` replaces it.
        raise UserError("--json -: stdout is closed: name a file")
    return sys.stdout


def _check_files(source: str, files: Mapping[str, Path | None], overwrite: bool) -> None:
    """Checks the files to write, which are named by their options."""
    from agenet.faces.encoding import CODECS
    from agenet.faces.video import check_output

    output = files["--output"]
    if output and output.suffix.lower() not in CODECS:
        raise UserError(f"--output {output}: name a file that ends in {', '.join(CODECS)}")
    options: dict[Path, str] = {}
    for option, path in files.items():
        if path:
            check_output(path, source, overwrite)
            if (other := options.setdefault(path.absolute(), option)) != option:
                raise UserError(f"{other} and {option} name the same file: name two")


def _wants_window(source: "VideoSource", writes: bool, no_window: bool) -> bool:
    """Whether frames are shown; while recording a live source, only where it is possible.

    Raises:
        UserError: there is nothing else to do, and no window can be opened.
    """
    from agenet.faces.display import check_window

    if no_window or (writes and not source.live):
        return False
    try:
        check_window()
    except UserError:
        if not writes:
            raise
        return False
    return True
