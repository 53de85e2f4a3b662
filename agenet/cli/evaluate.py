"""`agenet evaluate`: tests a run again from its checkpoint."""

from pathlib import Path

import click

from agenet.cli import options
from agenet.errors import require_packages


@click.command()
@options.workdir("Folder of the run.")
@click.option(
    "--data_dir",
    metavar="DIR",
    type=click.Path(),
    help="Folder of the prepared data sets, if it is not the one of the training.",
)
@click.option(
    "--test_views",
    metavar="N",
    type=int,
    help="Views of each face to average over, like config.test_views: 1, 2 or 4.",
)
def command(workdir: Path, data_dir: str | None, test_views: int | None) -> None:
    """Test a run's best state again and rewrite its report.

    Only the checkpoint and the data set are needed.
    """
    require_packages("train", "agenet evaluate", "array_record", "jinja2", "matplotlib")
    from agenet.distributed.compilation_cache import enable_compilation_cache
    from agenet.runs.logging import log_to
    from agenet.runs.reporting import report_again

    with log_to():
        enable_compilation_cache()
        report_again(workdir, data_dir, test_views)
