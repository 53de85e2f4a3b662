"""Age and gender of the faces in files, folders and patterns of picture files.

agenet predict PATH [PATH ...] [--csv FILE] [--jsonl FILE] [--annotated FOLDER]
"""

import dataclasses
import io
import itertools
import os
import signal
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from agenet.cli.options import add_flags, load_predictor
from agenet.errors import ArgumentParser, UserError, one_line_errors, printable
from agenet.faces.detectors import create_detector
from agenet.faces.drawing import draw_faces
from agenet.faces.face import Box, Detection, Face, FacePredictor, Prediction
from agenet.faces.image_io import (
    FORMATS,
    FULL_SIZE_PIXELS,
    ImageFileError,
    read_image_reduced,
    write_image,
)
from agenet.inference.inputs import common_folder, find_pictures
from agenet.inference.results import (
    LISTED,
    CsvWriter,
    JsonLinesWriter,
    Result,
    Summary,
    TableWriter,
    Writer,
    open_output,
)
from agenet.runs.logging import log_to

EPILOG = f"""\
A folder is searched with all folders below it for names that end in
{", ".join(FORMATS)}; hidden ones are
left out. A pattern in quotes is expanded here, ** to folders at any depth.

A file that cannot be read is reported and passed over. A picture of more than
{FULL_SIZE_PIXELS // 10**6} million pixels is looked at in half its size; boxes are told in the
file's pixels, as the picture stands upright. Annotated copies have the names
that the pictures have below the folder that holds them all. In CSV, what
cannot be printed of a name is escaped; JSON lines have it exactly.

Exit status: 0 if a picture could be read, 1 if none could, 130 if
interrupted; what was done by then is kept.
"""
CROPS_AT_ONCE = 32
READ_AHEAD = 2  # pictures

Annotate = Callable[[str, np.ndarray, Sequence[Face]], str]


class PicturePredictor(FacePredictor, Protocol):
    """Tells of faces in pictures, and of pictures that are faces."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...


def main(
    arguments: Sequence[str] | None = None,
    load: Callable[[Namespace], PicturePredictor] | None = None,
) -> None:
    """Parses the command line, checks what it names, predicts and exits.

    Args:
        arguments: instead of those of the process.
        load: makes the predictor from the flags.
    """
    with one_line_errors():
        args = _parse(arguments)
        found = _check(args)
        stdout_is_taken = "-" in (args.csv, args.jsonl)
        shows_table = not stdout_is_taken and sys.stdout.isatty()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        # Ended by the system, too, it keeps what is done.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ExitStack() as stack:
            stack.enter_context(log_to())
            writers: list[Writer] = [] if stdout_is_taken else [TableWriter(sys.stdout)]
            for name, make in ((args.csv, CsvWriter), (args.jsonl, JsonLinesWriter)):
                if name:
                    writers.append(make(stack.enter_context(open_output(name))))
            predictor = (load or _load_predictor)(args)
            annotate = _annotator(args) if args.annotated else None
            progress = stack.enter_context(
                tqdm(unit=" pictures", disable=shows_table or not sys.stderr.isatty())
            )
            summary = predict_files(
                found, predictor, writers, args.cropped, annotate, progress.update
            )
        print(summary, file=sys.stderr)
        if summary.stopped is KeyboardInterrupt:
            sys.exit(130)
        if summary.stopped is BrokenPipeError:  # As `| head` does; exit would write to it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0 if summary.pictures else 1)


def predict_files(
    found: Iterable[Result],
    predictor: PicturePredictor,
    writers: Sequence[Writer],
    cropped: bool = False,
    annotate: Annotate | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Summary:
    """Reads, predicts and writes, in order; Ctrl-C ends it early and keeps what is done.

    Args:
        found: the files, see `find_pictures`.
        cropped: each picture is one face.
        annotate: writes a picture with its faces drawn in; gives back why it did not, or "".
        advance: told how many files were done.
    """
    summary = Summary()
    try:
        with closing(_read_ahead(found)) as pictures:
            for batch in _batches(pictures, CROPS_AT_ONCE if cropped else 1):
                images = [picture.image for picture in batch if picture.image is not None]
                faces = iter(_predict(images, predictor, cropped))
                for picture in batch:
                    found_in_it = () if picture.image is None else next(faces)
                    result = _tell(picture, found_in_it, annotate)
                    for writer in writers:
                        writer.write(result)
                    summary.add(result)
                advance(len(batch))
    except (KeyboardInterrupt, BrokenPipeError) as end:
        summary.stopped = type(end)
    return summary


@dataclass(frozen=True)
class _Picture:
    """A file as read: `image` is None where `result` has an error."""

    result: Result
    image: np.ndarray | None = None
    reduction: int = 1


def _read(found: Result) -> _Picture:
    if found.error:
        return _Picture(found)
    try:
        image, reduction = read_image_reduced(found.path)
    except ImageFileError as error:
        return _Picture(dataclasses.replace(found, error=error.reason))
    size = (image.shape[1] * reduction, image.shape[0] * reduction)
    return _Picture(dataclasses.replace(found, size=size), image, reduction)


def _read_ahead(found: Iterable[Result]) -> Generator[_Picture, None, None]:
    """Reads the next pictures in a thread of its own while the network looks at the last."""
    waiting: deque[Future[_Picture]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for item in found:
            waiting.append(pool.submit(_read, item))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(pictures: Iterable[_Picture], most: int) -> Iterator[list[_Picture]]:
    """Up to `most` pictures at a time, fewer where they are large."""
    batch: list[_Picture] = []
    pixels = 0
    for picture in pictures:
        batch.append(picture)
        pixels += (
            picture.image.shape[0] * picture.image.shape[1] if picture.image is not None else 0
        )
        if len(batch) == most or pixels >= FULL_SIZE_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _predict(
    images: Sequence[np.ndarray], predictor: PicturePredictor, cropped: bool
) -> list[list[Face]]:
    """The faces of each picture."""
    if not cropped:
        return [predictor.predict_faces(image) for image in images]
    predictions = predictor.predict(images) if images else []
    boxes = [Box(0, 0, image.shape[1], image.shape[0]) for image in images]
    return [
        [Face(Detection(box, score=1.0), prediction)]
        for box, prediction in zip(boxes, predictions, strict=True)
    ]


def _tell(picture: _Picture, faces: Sequence[Face], annotate: Annotate | None) -> Result:
    if picture.image is None:
        return picture.result
    error = annotate(picture.result.path, picture.image, faces) if annotate else ""
    enlarged = [_enlarged(face, picture.reduction) for face in faces]
    return dataclasses.replace(picture.result, faces=enlarged, error=error)


def _enlarged(face: Face, times: int) -> Face:
    """The face in the pixels of the file."""
    if times == 1:
        return face
    box = Box(*(times * side for side in face.detection.box))
    return dataclasses.replace(face, detection=dataclasses.replace(face.detection, box=box))


def _annotator(args: Namespace) -> Annotate:
    base, folder = common_folder(args.paths), Path(args.annotated)

    def annotate(path: str, image: np.ndarray, faces: Sequence[Face]) -> str:
        copy = folder / os.path.relpath(path, base)
        if copy.exists() and not args.overwrite:
            return "annotated copy not written: it exists; add --overwrite"
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_image(copy, draw_faces(image, faces))
        except ImageFileError as error:
            return f"annotated copy not written: {error.reason}"
        except OSError as error:
            return f"annotated copy not written: {error.strerror or error}"
        return ""

    return annotate


def _load_predictor(args: Namespace) -> PicturePredictor:
    detector = None if args.cropped else create_detector(args.detector)
    return load_predictor(args, detector)


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        prog="agenet predict",
        description="Tells age and gender of the faces in pictures.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", help="file, folder, or pattern in quotes")
    add("--csv", metavar="FILE", help="write a row for each face; - for stdout, without the table")
    add("--jsonl", metavar="FILE", help="write a line of JSON for each picture; - likewise")
    add("--annotated", metavar="FOLDER", help="write copies with the faces drawn in")
    add("--overwrite", action="store_true", help="files that exist")
    add("--cropped", action="store_true", help="each picture is one face: find none in it")
    add_flags(parser)
    return parser.parse_args(arguments)


def _check(args: Namespace) -> Iterator[Result]:
    """The files to read, once one is found and all output can begin."""
    files = [name for name in (args.csv, args.jsonl) if name]
    if len({Path(name).resolve() for name in files}) < len(files):
        raise UserError("--csv and --jsonl name the same file: name two")
    for path in (Path(name) for name in files if name != "-"):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file: name one")
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists: name another file, or add --overwrite")
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} is no folder: make it, or name another file")
    if args.annotated:
        base = Path(common_folder(args.paths)).resolve()
        if base.is_relative_to(Path(args.annotated).resolve()):
            raise UserError(
                f"--annotated {args.annotated}: copies could take the place of the pictures; "
                "name another folder"
            )
        Path(args.annotated).mkdir(parents=True, exist_ok=True)
    found = find_pictures(args.paths, leave_out=args.annotated)
    first: list[Result] = []
    for item in found:
        first.append(item)
        if not item.error:
            return itertools.chain(first, found)
    problems = [f"{printable(item.path, 1000)}: {item.error}" for item in first[:LISTED]]
    raise UserError("; ".join(problems))


if __name__ == "__main__":
    main()
