"""`agenet push`: publishes a finished run on a hub of models."""

from pathlib import Path

import click

from agenet.cli import options

EPILOG = """\
RUN is the folder of a finished run, or where it is in a store; ADDRESS is hf://user/name, or
hf://user/name@branch. The repository is created if it is missing. It gets, in one commit, the
weights in agenet's format, the same network as ONNX, a model card, the metrics of the report, and
agenet.json, the list of these files with their hashes. No image of the data set is sent, no folder
of this machine, and nothing that the report says about the machine. The weights' file lists the
subjects of their training by their numbers, so that nobody tests on them.

Predictor.load("hf://user/name") and agenet predict --model=hf://user/name download the weights,
verify their hash and keep them in $AGENET_CACHE/hub.

The account is that of HF_TOKEN or of `hf auth login`, the hub that of HF_ENDPOINT if it is set.
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=options.PLACE)
@click.argument("address")
@click.option(
    "--licence",
    default="",
    metavar="NAME",
    help='Of the weights, such as "CC BY 4.0"; the terms of the data allow which.',
)
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option(
    "--dry-run",
    "folder",
    metavar="FOLDER",
    type=options.PATH,
    help="Write the files to this folder, and send nothing.",
)
def command(run: Path, address: str, licence: str, private: bool, folder: Path | None) -> None:
    """Publish a finished run on a hub.

    Predictor.load("hf://user/name") and --model=hf://user/name load it from there.
    """
    from agenet.weights.hub import parse_address

    parsed = parse_address(address)
    from agenet.inference.hub_push import push

    push(run, parsed, licence=licence, private=private, folder=folder)
