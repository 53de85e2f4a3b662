"""`agenet sweep`: trains the variants of a sweep file, or searches the space it describes."""

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
    help="The variants: a shipped sweep such as report or age_heads, a search such as heads, or a "
    "file; what follows a colon is its argument, as in report:lite0.",
)
@options.workdir("Folder for all runs.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Trials of a search, all workers together; by default as many as its file says.",
)
@click.option(
    "--storage",
    metavar="FILE|URL",
    default="",
    help="Where the workers of a search share their study: a journal file, by default "
    "DIR/study.journal, or a database such as sqlite:///study.db.",
)
@click.option(
    "--study", metavar="NAME", default="", help="Its name there; by default that of the sweep file."
)
@options.fields
def command(
    sweep: str,
    workdir: Path,
    trials: int | None,
    storage: str,
    study: str,
    fields: tuple[str, ...],
) -> None:
    """Train variants, or search hyper-parameters.

    Each run has a process and a folder of its own. Variants of several tables that have the same
    config are one run. The tables are in DIR/sweep.md and DIR/sweep.json; a search adds
    DIR/sweep.html with the importance of each parameter.

    The same command again resumes what was interrupted; typed while it runs, on this machine or on
    another one that shares DIR, it is one more worker, and any of them may die.
    """
    require_packages("train", "agenet sweep", "array_record", "clu", "jinja2", "matplotlib")
    from agenet.main import read_config
    from agenet.runs.sweep import run_sweep

    run_sweep(
        sweep,
        workdir,
        fields,
        read_config=read_config,
        storage=storage,
        study=study,
        trials=trials,
    )
