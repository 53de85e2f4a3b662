"""`agenet predict`: age and gender of the faces in image files."""

import functools
import itertools
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agenet.cli import options
from agenet.errors import UserError, discard_stdout, native_messages_hidden, say
from agenet.files import check_output

if TYPE_CHECKING:
    from agenet.inference.inputs import ImageSearch
    from agenet.inference.results import Result, Writer

EPILOG = """\
A folder is searched, with all folders below it, for files that end in .jpg, .jpeg, .jpe, .jfif,
.mpo, .png, .apng, .webp, .gif, .bmp, .dib, .tif, .tiff, .avif, .heic, .heif or .hif (the last three
after pip install pillow-heif); hidden files are left out, and other files and linked folders are
counted. A pattern in quotes is expanded by agenet; ** in it stands for folders at any depth.

A file that cannot be read is reported and skipped. An image of more than 52 million pixels is
processed at a reduced size; boxes are in pixels of the file, with the image upright. Annotated
copies are named like the images below the folder that holds them all. In CSV, unprintable
characters of a name are escaped; JSON lines keep names exactly. Results are in the file once an
image is processed; --overwrite replaces a file when the first result is there. Parquet can only be
read when it is complete: it has its name at the end, also after Ctrl-C.

The group is the most probable one, and the age lies in it; "80 %" are the years that hold 80 % of
the probability, age_low and age_high in CSV, age_interval in JSON lines.

--out predicts any number of images on Apache Beam (the extra beam): PATH may then be a pattern on
any file system that Beam knows, such as gs://bucket/**.jpg, or a folder there that ends in /.
Results are in faces-00000.jsonl and so on, for 1,000 images each, images that cannot be read in
bad-00000.jsonl. The same command resumes a run that was ended, and adds new images.

Exit status: 0 if an image could be read, 1 if none could or a copy could not be written, 130 if
interrupted; results written until then are kept.
"""


@click.command(epilog=EPILOG)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--csv",
    metavar="FILE",
    type=click.Path(),
    help="Write a row for each face; - for stdout, without the table.",
)
@click.option(
    "--jsonl",
    metavar="FILE",
    type=click.Path(),
    help="Write a line of JSON for each image; - for stdout, without the table.",
)
@click.option(
    "--parquet",
    metavar="FILE",
    type=click.Path(),
    help="Write the rows of --csv as a table in Parquet; needs pyarrow.",
)
@click.option(
    "--distribution",
    is_flag=True,
    help="Write the probability of each year to the JSON lines, too.",
)
@click.option(
    "--annotated",
    metavar="FOLDER",
    type=options.LocalPath(),
    help="Write copies with the faces drawn in.",
)
@click.option(
    "--out",
    metavar="FOLDER",
    help="For millions of images: predict on Apache Beam, and write to this folder.",
)
@click.option(
    "--out-format",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="With --out: as --jsonl or as --parquet.",
)
@click.option(
    "--beam_options",
    metavar="OPTIONS",
    help="With --out: pipeline options of Beam, such as "
    '"--runner=DirectRunner --direct_num_workers=4".',
)
@options.overwrite
@click.option("--cropped", is_flag=True, help="Each image is one face: do not look for faces.")
@options.selection
@options.predictor
def command(
    paths: tuple[str, ...],
    csv: str | None,
    jsonl: str | None,
    parquet: str | None,
    distribution: bool,
    annotated: str | None,
    out: str | None,
    out_format: str,
    beam_options: str | None,
    overwrite: bool,
    cropped: bool,
    min_score: float,
    min_size: float,
    max_faces: int | None,
    model: str,
    detector: str,
    engine: str,
    age_groups: str,
    threads: int | None,
) -> None:
    """Predict age and gender of the faces in image files.

    PATH is an image file, a folder, or a pattern in quotes.
    """
    if distribution and not (jsonl or (out and out_format == "jsonl")):
        raise UserError("--distribution goes with --jsonl FILE: name one")
    if cropped and (min_score or min_size or max_faces):
        raise UserError(
            "--cropped takes each image as one face: leave out --min-score, --min-size, --max-faces"
        )
    if beam_options is not None and not out:
        raise UserError("--beam_options goes with --out FOLDER: name one")
    if out:
        if csv or jsonl or parquet or annotated or overwrite:
            raise UserError(
                "--out FOLDER writes files of its own and resumes what was ended: leave out --csv, "
                "--jsonl, --parquet, --annotated, --overwrite"
            )
        _predict_with_beam(
            paths,
            out,
            beam_options or "",
            (model, None if cropped else detector, engine, age_groups, threads),
            format=out_format,
            cropped=cropped,
            selection=(min_score, min_size, max_faces),
            distribution=distribution,
        )
        return
    _check_files(paths, {"--csv": csv, "--jsonl": jsonl, "--parquet": parquet}, overwrite)
    search, found = _find(paths, annotated)

    from tqdm import tqdm

    from agenet.faces.image_formats import describe_unread
    from agenet.faces.selection import FaceSelection
    from agenet.inference.image_files import Annotator, predict_files
    from agenet.inference.results import CsvWriter, JsonLinesWriter, TableWriter, open_output
    from agenet.runs.logging import log_to

    stdout_is_taken = "-" in (csv, jsonl)
    shows_table = not stdout_is_taken and sys.stdout.isatty()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    # A SIGTERM, too, keeps what is done.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(native_messages_hidden())
        stack.enter_context(log_to())
        writers: list[Writer] = [] if stdout_is_taken else [TableWriter(sys.stdout)]
        if csv:
            writers.append(CsvWriter(stack.enter_context(open_output(csv, overwrite))))
        if jsonl:
            lines = stack.enter_context(open_output(jsonl, overwrite))
            writers.append(JsonLinesWriter(lines, distribution=distribution))
        if parquet:
            from agenet.inference.parquet import ParquetWriter

            writers.append(stack.enter_context(ParquetWriter(Path(parquet), overwrite)))
        predictor = options.load_predictor(
            model, None if cropped else detector, engine, age_groups, threads
        )
        annotate = Annotator(paths, Path(annotated), overwrite) if annotated else None
        progress = stack.enter_context(
            tqdm(unit=" images", disable=shows_table or not sys.stderr.isatty())
        )
        select = FaceSelection(min_score, min_size, max_faces)
        summary = predict_files(
            found, predictor, writers, cropped, annotate, progress.update, select, threads
        )
    say(*summary.lines())
    if unread := describe_unread(search.unread):
        say(f"not read: {unread}")
    if summary.stopped is KeyboardInterrupt:
        sys.exit(130)
    if summary.stopped is BrokenPipeError:
        discard_stdout()
    sys.exit(0 if summary.images and not (annotate and annotate.failed) else 1)


def _predict_with_beam(
    paths: tuple[str, ...],
    out: str,
    beam_options: str,
    loading: tuple[str, str | None, str, str, int | None],
    *,
    format: str,
    cropped: bool,
    selection: tuple[float, float, int | None],
    distribution: bool,
) -> None:
    """Predicts on Beam; `loading` are the arguments of `options.load_predictor`."""
    from agenet.distributed.beam import parse_beam_options

    parsed = parse_beam_options(beam_options)
    if format == "parquet":
        from agenet.inference.parquet import check_parquet

        check_parquet(out)
    from agenet.faces.selection import FaceSelection
    from agenet.files import hash_file
    from agenet.inference.beam import Work, predict_with_beam
    from agenet.runs.logging import log_to
    from agenet.weights.hub import find_weights

    model, detector, engine, age_groups, threads = loading
    weights = find_weights(model)
    settings = {
        "model": hash_file(weights) if weights.is_file() else str(weights.absolute()),
        "detector": detector,
        "age_groups": age_groups,
        "out_format": format,
        "cropped": cropped,
        "selection": list(selection),
        "distribution": distribution,
    }
    load = functools.partial(options.load_predictor, model, detector, engine, age_groups, threads)
    work = Work(load, FaceSelection(*selection), format, cropped, distribution, threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log_to():
        for line in predict_with_beam(paths, out, work, settings, parsed):
            say(line)


def _check_files(paths: tuple[str, ...], outputs: dict[str, str | None], overwrite: bool) -> None:
    """Checks the outputs, which are named by their options."""
    files: dict[Path, str] = {}
    for option, name in outputs.items():
        if name and (other := files.setdefault(Path(name).resolve(), option)) != option:
            raise UserError(f"{other} and {option} name the same file: name two")
    read = {Path(path).resolve() for path in paths}
    for name in filter(None, outputs.values()):
        if name != "-":
            check_output(Path(name), overwrite)
            if Path(name).resolve() in read:
                raise UserError(f"{name} is an image that is read: name another file to write")
    if name := outputs["--parquet"]:
        from agenet.inference.parquet import check_parquet

        check_parquet(name)


def _find(paths: tuple[str, ...], annotated: str | None) -> "tuple[ImageSearch, Iterator[Result]]":
    """The search for files, and what it finds, once there is a file."""
    from agenet.inference.inputs import ImageSearch, common_folder
    from agenet.inference.results import LISTED

    if annotated:
        base = Path(common_folder(paths)).resolve()
        if base.is_relative_to(Path(annotated).resolve()):
            raise UserError(
                f"--annotated {annotated}: copies could replace the images; name another folder"
            )
        Path(annotated).mkdir(parents=True, exist_ok=True)
    search = ImageSearch(paths, leave_out=annotated)
    found = iter(search)
    first: list[Result] = []
    for item in found:
        first.append(item)
        if not item.error:
            return search, itertools.chain(first, found)
    problems = [f"{item.path}: {item.error}" for item in first[:LISTED]]
    raise UserError("; ".join(problems))
