"""`agenet train`: the same as `python -m agenet.main`."""

import runpy
import sys

import click

from agenet.cli import options


class PassThrough(click.Command):
    """Hands all arguments over as they are; its options are there for completion alone."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        context.args = list(arguments)
        return context.args


@click.command(cls=PassThrough, short_help="Train and test the experiment of a config.")
@options.config
@click.option("--workdir", type=options.PATH)
@click.option("--dry_run", is_flag=True)
@click.option("--profile")
@click.option("--processes")
@click.pass_context
def command(context: click.Context) -> None:
    # Help and mistakes are those of agenet.main, whose flags belong to absl and ml_collections.
    sys.argv[1:] = context.args
    try:
        runpy.run_module("agenet.main", run_name="__main__", alter_sys=True)
    except SystemExit:
        if {"--help", "-h"} & set(context.args):  # absl shows help and ends with 1.
            sys.exit(0)
        raise
