"""`agenet prepare`: prepares a data set for training."""

import signal
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from agenet.cli import options
from agenet.errors import native_messages_hidden


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from agenet.data.prepare import data_set_names

    names = [*data_set_names(), "images"]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Prepare(click.Command):
    """Lists in its help the data sets that there are; `images` has options of its own."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] == ["images"]:
            from agenet.cli import prepare_images

            name = f"{info_name} images"
            return prepare_images.command.make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from agenet.data.prepare import data_set_names

        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"Data sets: {', '.join(data_set_names())}.")
            formatter.write_paragraph()
            formatter.write_text("Your own images: see agenet prepare images --help.")


@click.command(cls=Prepare)
@click.argument("name", metavar="DATA_SET", shell_complete=_complete_name)
@click.option(
    "--manual_dir",
    metavar="DIR",
    type=options.PATH,
    help="Folder with the files that you obtained from the data set's authors (default: "
    "DATA_DIR/downloads/manual). Drawn data sets need none.",
)
@click.option(
    "--data_dir",
    metavar="DIR",
    type=options.PLACE,
    help="Folder for prepared data sets, or an address such as s3://bucket/data (default: "
    "TFDS_DATA_DIR or ~/tensorflow_datasets).",
)
@click.option("--config", default="", help="The builder config (default: the first one).")
@click.option("--overwrite", is_flag=True, help="Prepare it again if it is prepared already.")
@click.option(
    "--beam_options",
    metavar="OPTIONS",
    help="Prepare on Apache Beam with these pipeline options, such as "
    '"--runner=DirectRunner --direct_num_workers=4"; for data sets too large for one machine.',
)
def command(
    name: str,
    manual_dir: Path | None,
    data_dir: Path | None,
    config: str,
    overwrite: bool,
    beam_options: str | None,
) -> None:
    """Prepare a data set for training.

    The images are checked and stored as a TensorFlow data set, from which training reads them.
    """
    from agenet.data.prepare import prepare

    # A SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with native_messages_hidden():
        prepare(name, manual_dir, data_dir, config, overwrite, beam_options)
