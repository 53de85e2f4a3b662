"""Options that several commands share, and values that the shell can complete."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from agenet.files import is_address, not_here

if TYPE_CHECKING:
    from agenet.faces.face import Detector
    from agenet.inference.predictor import Predictor


class LocalPath(click.Path):
    """A path on this machine; an address is a mistake."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value):
            raise not_here(value)
        return super().convert(value, param, ctx)


PATH = LocalPath(path_type=Path)
PLACE = click.Path(path_type=Path)  # or an address, see agenet.places

# For commands that pass --config.FIELD=VALUE on to the training.
FIELDS = {"ignore_unknown_options": True}
fields = click.argument(
    "fields", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE ...]"
)

overwrite = click.option("--overwrite", is_flag=True, help="Replace files that exist.")


def workdir(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --workdir, which is required."""
    return click.option("--workdir", type=PATH, metavar="DIR", required=True, help=help)


def complete_files(folder: str) -> Callable[..., list[CompletionItem]]:
    """Completes the names of Python files in a shipped folder, and paths.

    Args:
        folder: relative to the folder that holds configs/, such as "configs/sweeps".
    """

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from agenet.files import SHIPPED

        names = sorted(path.stem for path in (SHIPPED / folder).glob("[a-z]*.py"))
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]

    return complete


config = click.option(
    "--config",
    metavar="NAME|FILE",
    required=True,
    shell_complete=complete_files("configs"),
    help="The experiment: a shipped config such as quickstart, or a file; what follows a colon "
    "is its argument, as in effnet_adience:lite0.",
)


def predictor(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that choose weights, detector, engine and threads."""
    for option in reversed(_PREDICTOR):
        command = option(command)
    return command


def engine(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that choose detector, engine and threads."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that choose which faces are predicted, see `FaceSelection`."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


_ENGINE = (
    click.option(
        "--detector",
        metavar="auto|yunet|hog|FILE",
        default="auto",
        show_default=True,
        help="Face detector; FILE holds the weights of YuNet.",
    ),
    click.option(
        "--engine",
        metavar="auto|onnxruntime|jax",
        default="auto",
        show_default=True,
        help="What runs the network.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="CPU threads; by default one for each core that may be used.",
    ),
)
_PREDICTOR = (
    click.option(
        "--model",
        metavar="WEIGHTS",
        type=click.Path(),
        default="default",
        show_default=True,
        help='Weights: "default", a .safetensors file, the folder of a run, hf://user/name, or an '
        "address such as s3://bucket/runs/a.",
    ),
    click.option(
        "--age-groups",
        metavar="0-17,18-64,65-100",
        default="",
        help="Predict these age groups, in years.",
    ),
    *_ENGINE,
)
_SELECTION = (
    click.option(
        "--min-score",
        type=click.FloatRange(min=0),
        metavar="SCORE",
        default=0.0,
        help="Leave out faces that the detector is less sure of; YuNet's scores are 0.6 to 1.",
    ),
    click.option(
        "--min-size",
        type=click.FloatRange(min=0),
        metavar="PIXELS",
        default=0.0,
        help="Leave out faces that are less wide or high, in pixels of the image.",
    ),
    click.option(
        "--max-faces",
        type=click.IntRange(min=1),
        metavar="N",
        help="Predict the largest N faces of each image.",
    ),
)


def load_predictor(
    model: str,
    detector: "Detector | str | None",
    engine: str,
    age_groups: str,
    threads: int | None,
) -> "Predictor":
    """Loads the predictor that the options describe.

    Args:
        model: see --model.
        detector: a detector, its name or its file; None where the images are faces already.
        engine: see --engine.
        age_groups: see --age-groups.
        threads: see --threads.
    """
    # Imported here: neither help, mistakes nor the first frame wait for it.
    from agenet.faces.ages import split_groups
    from agenet.inference.predictor import Predictor

    return Predictor.load(
        model,
        detector=detector,
        engine=engine,
        age_groups=split_groups(age_groups),
        threads=threads,
    )
