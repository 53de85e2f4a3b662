"""`agenet folds`: cross-validation over the folds of a data set."""

from pathlib import Path

import click

from agenet.cli import options
from agenet.errors import require_packages

EPILOG = """\
--config.FIELD=VALUE changes a field of the config for all folds; {fold} in a
value stands for the number of the fold, as in
--config.init=runs/frozen/fold_{fold}.
"""


@click.command(context_settings=options.FIELDS, epilog=EPILOG)
@options.config
@options.workdir("Folder for all folds.")
@options.fields
def command(config: str, workdir: Path, fields: tuple[str, ...]) -> None:
    """Train and test a config on each fold: mean and deviation.

    The folds are trained one after the other, each in a process and a folder of its own, DIR/fold_0
    and so on. The tables are in DIR/folds.md and DIR/folds.json. The same command again resumes
    what was interrupted.
    """
    require_packages("train", "agenet folds", "array_record", "clu", "jinja2", "matplotlib")
    from agenet.main import read_config
    from agenet.runs.folds import run_folds

    run_folds(config, workdir, fields, read_config=read_config)
