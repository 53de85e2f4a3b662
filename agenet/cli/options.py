"""What both programs ask of the network and of the detector: their flags, and the two loaded."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from agenet.faces.face import Detector
from agenet.weights.bundled import DEFAULT

if TYPE_CHECKING:
    from agenet.inference.predictor import Predictor


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=DEFAULT, help="weights: a name, a file or the --workdir of a run")
    add("--detector", default="auto", metavar="auto|yunet|hog|FILE", help="what finds the faces")
    add("--engine", default="auto", metavar="auto|onnxruntime|jax", help="what runs the network")
    add(
        "--age-groups",
        default="",
        metavar="0-17,18-64,65-100",
        help="tell ages in these groups, in years",
    )


def load_predictor(args: Namespace, detector: Detector | None) -> "Predictor":
    """The predictor that the flags ask for; `detector` may be None where faces are given."""
    # Imported here, not above: neither help, mistakes nor the first picture wait for it.
    from agenet.inference.predictor import Predictor

    groups = [group.strip() for group in args.age_groups.split(",") if group.strip()]
    return Predictor.load(args.model, detector=detector, engine=args.engine, age_groups=groups)
