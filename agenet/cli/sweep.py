"""`agenet sweep`: trains the variants that a sweep file lists."""

from pathlib import Path

import click

from agenet.cli import options
from agenet.errors import require_packages

EPILOG = "--config.FIELD=VALUE changes a field of all runs that do not vary it."


@click.command(context_settings=options.FIELDS, epilog=EPILOG)
@click.option(
    "--sweep",
    metavar="NAME|FILE",
    required=True,
    shell_complete=options.complete_files("configs/sweeps"),
    help="The variants: a shipped sweep such as report or age_heads, or a file; what follows a "
    "colon is its argument, as in report:lite0.",
)
@options.workdir("Folder for all runs.")
@options.fields
def command(sweep: str, workdir: Path, fields: tuple[str, ...]) -> None:
    """Train the variants of a sweep file and compare them.

    Variants of several tables that have the same config are one run. The runs are trained one after
    the other, each in a process and a folder of its own. The tables are in DIR/sweep.md and
    DIR/sweep.json. The same command again resumes what was interrupted and repeats what failed.
    """
    require_packages("train", "agenet sweep", "array_record", "clu", "jinja2", "matplotlib")
    from agenet.main import read_config
    from agenet.runs.sweep import run_sweep

    run_sweep(sweep, workdir, fields, read_config=read_config)
