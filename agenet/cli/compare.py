"""`agenet compare`: JAX, PyTorch and Keras with the same network, weights and faces."""

import signal
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import click

from agenet.cli import options

EPILOG = """\
Each framework runs in a process of its own. All start from the same weights and see the same images
in the same order. The same command again resumes an interrupted comparison; results that are there
are not measured again.

\b
agenet compare --out=runs/frameworks               an hour on a laptop
agenet compare --out=runs/report --scale=report    sizes of the report
agenet compare --out=runs/frameworks --page        the pages alone

NETWORK is levi_hassner, resnet50, efficientnet_lite0 or efficientnet_b0 to b7; SIZE is in pixels.
What is not given comes from --scale.
"""
_COUNTS = {
    "train_faces": "Faces to train on, drawn from the training set; 0: all.",
    "test_faces": "Faces to test on, drawn from the test fold; 0: all.",
    "agreement_batch": "Batch size of the agreement.",
    "results_batch": "Batch size of the results.",
    "cost_batch": "Batch size of the cost.",
    "epochs": "Epochs of a training.",
    "seeds": "Trainings of each framework; more can be added later.",
}


def _of_the_scale(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options whose defaults depend on --scale."""
    for name, text in reversed(_COUNTS.items()):
        command = click.option(f"--{name}", type=int, help=text)(command)
    for part in ("cost", "results", "agreement"):
        text = f"Networks of the part {part}."
        command = click.option(f"--{part}", metavar="NETWORK:SIZE,...", help=text)(command)
    return command


@click.command(epilog=EPILOG)
@click.option(
    "--out",
    type=options.PATH,
    metavar="DIR",
    required=True,
    help="Folder for results, pages, images and weights: 1 GB, or 20 GB with --scale=report.",
)
@click.option(
    "--scale",
    type=click.Choice(["laptop", "report"]),
    default="laptop",
    show_default=True,
    help="laptop: small, an hour on two cores; report: sizes, faces and epochs of the reference "
    "report, for a GPU.",
)
@click.option("--page", is_flag=True, help="Only write the pages again.")
@click.option("--parts", default="agreement,results,cost", show_default=True)
@click.option("--frameworks", default="jax,torch,keras", show_default=True)
@_of_the_scale
@click.option(
    "--steps",
    default="1,10,100",
    show_default=True,
    help="Steps of the agreement after which parameters are compared.",
)
@click.option("--dataset", default="adience/faces", show_default=True)
@click.option("--data_dir", default="", metavar="DIR", help="Folder of the prepared data sets.")
@click.option("--test_fold", type=int, default=0, show_default=True)
@click.option(
    "--init",
    type=click.Choice(["imagenet", "random"]),
    default="imagenet",
    show_default=True,
    help="Initial weights; imagenet: where a network has such weights.",
)
@click.option(
    "--platform", type=click.Choice(["cpu", "gpu"]), help="Default: a GPU if there is one."
)
@click.option("--variants", default="", help="Further variants of the cost, such as compiled.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Rounds of the cost.")
@click.option(
    "--seconds",
    type=float,
    default=3.0,
    show_default=True,
    help="Seconds of each framework in a round, at least one step.",
)
@click.option(
    "--limit",
    type=float,
    default=3600.0,
    show_default=True,
    help="Seconds after which a framework is given up.",
)
@click.pass_context
def command(context: click.Context, **_: Any) -> None:
    """Compare JAX, PyTorch and Keras: agreement, results and cost."""
    from agenet.frameworks.comparison.compare import compare

    # A SIGTERM ends the frameworks' processes, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    for path in compare(Namespace(**context.params)):
        print(path)
