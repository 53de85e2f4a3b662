"""`agenet prepare images`: prepares a folder and a table of one's own for training."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agenet.cli import options
from agenet.errors import UserError, native_messages_hidden

if TYPE_CHECKING:
    from agenet.data.prepare_images import PreparedImages


@click.command(
    "images",
    epilog="\b\nExamples:\n"
    "  agenet prepare images --table=faces.csv --images=FOLDER --name=mine\n"
    "  agenet prepare images --images=FOLDER --name=mine --detect\n"
    "  agenet prepare images --images=FOLDER --name=mine \\\n"
    "      --pattern={subject}A{age}.jpg",
)
@click.option(
    "--name",
    required=True,
    help="Name of the data set; training calls it NAME/faces.",
    metavar="NAME",
)
@click.option(
    "--images",
    type=options.PLACE,
    metavar="DIR",
    help="Folder of the images, or its address (default: that of the table). Without a table the "
    "labels are taken from the names of folders such as female/25-32.",
)
@click.option(
    "--table",
    type=options.PLACE,
    metavar="FILE",
    help="A file or its address: CSV, TSV, JSON lines or Parquet, with a row for each image: path, "
    "and any of age or age range, gender, subject, split or fold, box of the face.",
)
@click.option(
    "--pattern",
    default="",
    metavar="TEXT",
    help='Takes labels from file names such as "{age}_{gender}_{race}_{date}.jpg".',
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="The column that holds a field: path, age, age_low, age_high, gender, subject, split or "
    "box (one column or four, with commas). Nothing after the = means none. The others are "
    "guessed, and the guess is printed.",
)
@click.option(
    "--gender",
    "genders",
    multiple=True,
    metavar="TEXT=female|male",
    help="What a spelling or number in the table means.",
)
@click.option(
    "--unknown", multiple=True, metavar="TEXT", help="A value that means unknown, such as -1."
)
@click.option(
    "--box-format",
    type=click.Choice(["corners", "size"]),
    help="Whether boxes are left, top, right, bottom or left, top, width, height (default: by the "
    "names of the columns).",
)
@click.option("--strip-prefix", default="", metavar="TEXT", help="Removed from the table's paths.")
@click.option(
    "--detect",
    is_flag=True,
    help="Find faces and cut them out upright, as at prediction: for photographs. Otherwise boxes "
    "are cut out, and images without boxes are taken for faces.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 1024),
    default=256,
    show_default=True,
    help="Shorter side of the stored faces in pixels, at most.",
)
@click.option(
    "--folds",
    type=click.IntRange(2, 100),
    default=5,
    show_default=True,
    help="Number of folds, where the table has no splits.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the folds."
)
@click.option("--allow-missing", is_flag=True, help="Leave out rows whose images are missing.")
@click.option(
    "--data_dir",
    metavar="DIR",
    type=options.PLACE,
    help="Folder for prepared data sets, or an address such as s3://bucket/data (default: "
    "TFDS_DATA_DIR or ~/tensorflow_datasets).",
)
@click.option("--overwrite", is_flag=True, help="Prepare it again if it is prepared already.")
def command(
    columns: Sequence[str],
    genders: Sequence[str],
    unknown: Sequence[str],
    box_format: str | None,
    data_dir: Path | None,
    **settings: Any,
) -> None:
    """Prepare a folder of your own images for training.

    Faces of one subject stay in one fold; without subjects near-duplicates do. A report of the data
    set, report.html, is written beside it.
    """
    from agenet.data.prepare_images import ImagesOptions, prepare_images
    from agenet.data.table_columns import ColumnOptions
    from agenet.labels import GENDERS

    means = _pairs("--gender", genders)
    if wrong := [text for text in means.values() if text not in GENDERS]:
        raise UserError(f"--gender: {wrong[0]!r} is neither {' nor '.join(GENDERS)}")
    # A SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with native_messages_hidden():
        column_options = ColumnOptions(
            names=_pairs("--column", columns),
            box_format=box_format or "",  # type: ignore[arg-type]
            genders={text: GENDERS.index(gender) for text, gender in means.items()},
            unknown=unknown,
        )
        prepare_images(
            ImagesOptions(columns=column_options, data_dir=data_dir, **settings), _write_report
        )


def _write_report(prepared: "PreparedImages") -> Path:
    from agenet.evaluation.data_report import write_data_report

    return write_data_report(prepared)


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{option} {text}: write it as {option} NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs
