"""`agenet evaluate`: any predictors on any labelled faces, or a run again from its checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from agenet.cli import options
from agenet.errors import UserError, require_packages, say

if TYPE_CHECKING:
    from agenet.evaluation.predictors.contents import Evaluation

EPILOG = """\
\b
agenet evaluate --data fairface/partial              the bundled weights
agenet evaluate --model runs/mine --table faces.csv  a run on your own faces
agenet evaluate --model mine.py:predict --model default --data adience/faces
agenet evaluate --predictions other=their.csv --table faces.csv --by race
agenet evaluate --workdir runs/mine                  the test of a run again

A PLUGIN is FILE.py:FUNCTION or MODULE:FUNCTION. The function takes a list of images, RGB uint8
arrays of shape [H, W, 3] with one face each, and returns a pair: ages in years and probabilities of
being male, each a sequence with a number or None for each image, or None in place of either.

SPLIT is test, train, fold_0, ... or all; by default test if there is one, else all. A table needs a
column of image files and an age, an age range or a gender; subject, split and a box are used where
they are. Several --model and --predictions are compared on one page, face by face.

Written are report.html, report.md, report.json and predictions.csv. The page contains faces:
publish it only where the data's terms allow it.
"""


@click.command(epilog=EPILOG)
@click.option(
    "--model",
    "models",
    metavar="[NAME=]default|FILE|RUN|PLUGIN",
    multiple=True,
    help="What to evaluate: bundled weights, a weights file, a run, an address of one, or a "
    "function; repeatable. "
    "Default without --predictions: default.",
)
@click.option(
    "--predictions",
    metavar="NAME=FILE",
    multiple=True,
    help="Predictions of another program: a table with age or gender by image file or row; "
    "repeatable.",
)
@click.option("--data", metavar="DATA_SET[/CONFIG][:SPLIT]", help="Faces of a prepared data set.")
@click.option(
    "--table",
    type=options.PLACE,
    metavar="FILE",
    help="Faces of a table of your own, or its address.",
)
@click.option("--out", type=options.PATH, metavar="DIR", help="Default: a folder in evaluation.")
@click.option(
    "--by",
    metavar="COLUMN",
    multiple=True,
    help="Also by race, or by this column of the table; repeatable.",
)
@click.option(
    "--conditions",
    is_flag=True,
    help="Also on changed images: mirrored, grey, rotated, "
    "of 24 pixels, cropped closer ... (eight times as long).",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Only N random faces.")
@click.option(
    "--faces",
    type=click.IntRange(0, 5000),
    default=1000,
    show_default=True,
    metavar="N",
    help="Faces on the page, at most; 3 to 5 KB each.",
)
@click.option("--split", metavar="SPLIT", help="Of the table.")
@click.option(
    "--images",
    type=options.PLACE,
    metavar="DIR",
    help="Folder of the table's images, or its address, if it is not that of the table.",
)
@click.option(
    "--detect",
    is_flag=True,
    help="Find the faces in the table's images, where it has no box: the largest of each.",
)
@click.option(
    "--detector",
    metavar="auto|yunet|hog|FILE",
    default="auto",
    show_default=True,
    help="For --detect.",
)
@click.option(
    "--data_dir",
    metavar="DIR",
    type=click.Path(),
    help="Folder of the prepared data sets or its address, if it is not the default or that of "
    "the training.",
)
@click.option(
    "--labels",
    type=click.Choice(["official", "extended"]),
    default="official",
    show_default=True,
    help="Which age labels of Adience count.",
)
@click.option(
    "--engine",
    metavar="auto|onnxruntime|jax",
    default="auto",
    show_default=True,
    help="What runs a network.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
@options.overwrite
@click.option(
    "--workdir",
    type=options.PLACE,
    metavar="DIR",
    help="Folder of a run to test again, or its address.",
)
@click.option(
    "--test_views",
    metavar="N",
    type=int,
    help="With --workdir: views of each face to average over, like config.test_views: 1, 2 or 4.",
)
def command(
    models: tuple[str, ...],
    predictions: tuple[str, ...],
    data: str | None,
    table: Path | None,
    out: Path | None,
    by: tuple[str, ...],
    conditions: bool,
    count: int | None,
    faces: int,
    split: str | None,
    images: Path | None,
    detect: bool,
    detector: str,
    data_dir: str | None,
    labels: Literal["official", "extended"],
    engine: str,
    threads: int | None,
    overwrite: bool,
    workdir: Path | None,
    test_views: int | None,
) -> None:
    """Evaluate predictors on labelled faces, or test a run again.

    Accuracy, age errors and calibration with intervals by subject, on all faces and by subgroup,
    and a page on which the most confident errors can be browsed.
    """
    if workdir:
        if models or predictions or data or table:
            raise UserError(
                "--workdir tests a run again as it was tested: to evaluate it on other faces, "
                f"give --model {workdir} instead"
            )
        _test_again(workdir, data_dir, test_views)
        return
    if bool(data) == bool(table):
        raise UserError(
            "name the faces: either --data DATA_SET or --table FILE (or, to test a run "
            "again, --workdir RUN)"
        )
    if test_views:
        raise UserError("--test_views goes with --workdir")
    if data and (detect or images or split):
        raise UserError("--detect, --images and --split go with --table; --data is DATA_SET:SPLIT")
    packages = ("array_record",) if data else ()
    require_packages("train", "agenet evaluate", *packages, "jinja2", "matplotlib")
    files = _files(predictions)

    from agenet.runs.evaluate_predictors import default_folder, evaluate
    from agenet.runs.evaluated_models import open_models
    from agenet.runs.labelled_faces import open_prepared, open_table
    from agenet.runs.logging import log_to
    from agenet.runs.series import command_line

    with log_to():
        chosen = models or (() if files else ("default",))
        if out:
            _check_folder(out, overwrite)
        if data:
            test = open_prepared(data, data_dir or "", labels, count or 0)
        else:
            assert table is not None
            test = open_table(
                table,
                split=split or "",
                images=images,
                by=by,
                detector=detector if detect else None,
                count=count or 0,
            )
        opened = open_models(chosen, engine, threads)
        if not out:
            out = default_folder(test, [*(m.name for m in opened), *(name for name, _ in files)])
            _check_folder(out, overwrite)
        evaluation = evaluate(
            test,
            opened,
            files,
            out=out,
            by=by,
            conditions=conditions,
            shown_faces=faces,
            command=command_line("evaluate", sys.argv[2:]),
        )
    _show(evaluation, out)
    if evaluation.failed:
        raise UserError(f"{'; '.join(evaluation.failed)} (left out of the report)")


def _test_again(workdir: Path, data_dir: str | None, test_views: int | None) -> None:
    """Only the checkpoint and the data set are needed."""
    require_packages("train", "agenet evaluate", "array_record", "jinja2", "matplotlib")
    from agenet.distributed.compilation_cache import enable_compilation_cache
    from agenet.places.working import open_workdir
    from agenet.runs.logging import log_to
    from agenet.runs.reporting import report_again

    with log_to():
        enable_compilation_cache()
        with open_workdir(workdir, exists=True) as place:
            report_again(place.folder, data_dir, test_views)


def _files(predictions: tuple[str, ...]) -> list[tuple[str, Path]]:
    files = []
    for argument in predictions:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = Path(argument).stem, argument
        if not Path(path).is_file():
            raise UserError(f"--predictions {argument}: no such file, give NAME=FILE")
        files.append((name, Path(path)))
    return files


def _check_folder(out: Path, overwrite: bool) -> None:
    if any(part.exists() and not part.is_dir() for part in (out, *out.parents)):
        raise UserError(f"--out {out} is not a folder")
    if (out / "checkpoints").exists():
        raise UserError(f"--out {out} is the folder of a run, whose report would be lost")
    if (out / "report.json").exists() and not overwrite:
        raise UserError(f"{out} has a report: name another folder with --out, or add --overwrite")


def _show(evaluation: "Evaluation", out: Path) -> None:
    """The main results, and where the report is."""
    from agenet.evaluation.predictors.contents import summary_table
    from agenet.runs.series import table

    for each in evaluation.measured:
        for note in each.predictions.notes:
            say(f"NOTE: {each.predictions.name}: {note}")
    for note in evaluation.notes:
        say(note)
    lines = table(*summary_table(evaluation)).splitlines()
    page = out / "report.html"
    say(evaluation.faces.name + ":", *lines, file=sys.stdout)
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)", file=sys.stdout)
