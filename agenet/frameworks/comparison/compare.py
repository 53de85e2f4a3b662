"""The same network, weights and faces in JAX, PyTorch and Keras: what differs, and what it costs.

agenet compare --out=runs/frameworks                  # a laptop: an hour
agenet compare --out=runs/report --scale=report       # as the report trained
agenet compare --out=runs/frameworks --page           # the pages alone

Every framework runs in a process of its own. All start from the same weights, which travel through
the name maps of `agenet.weights.names`, and see the same pictures in the same order. What is there
is not repeated: an interrupted comparison goes on with the same command. Everything that the pages
say is in results.json.
"""

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.comparison.data import prepare_data
from agenet.frameworks.comparison.engine import NETWORKS, VARIANTS
from agenet.frameworks.comparison.engines import ENGINES, not_installed
from agenet.frameworks.comparison.parts import agree, environment, measure, train
from agenet.frameworks.comparison.results import RESULTS, Results, log

# Settings by what there is time for; sizes in pixels by network.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "agreement": {"levi_hassner": 99, "efficientnet_lite0": 64},
        "results": {"efficientnet_lite0": 96},
        "cost": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "train_faces": 1920,
        "test_faces": 1500,
        "agreement_batch": 16,
        "results_batch": 32,
        "cost_batch": 8,
        "epochs": 5,
        "seeds": 4,  # with three, no difference could be seen to be more than chance
    },
    "report": {
        "agreement": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "results": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "cost": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "train_faces": 0,
        "test_faces": 0,
        "agreement_batch": 32,
        "results_batch": 50,
        "cost_batch": 50,
        "epochs": 5,
        "seeds": 5,
    },
}
PARTS = ("agreement", "results", "cost")
# So that a GPU that is there is not used.
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not there yet, and writes the pages.

    Raises:
        UserError: an option names what there is not, or the folder holds another comparison.
    """
    args = parse(arguments)
    if not args.page:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others share the device
        args.out.mkdir(parents=True, exist_ok=True)
        results = Results(args.out, settings_of(args))
        with environment(ON_CPU if args.platform == "cpu" else {}):
            run(results, args)
    # Imported here: what is measured needs no Matplotlib.
    from agenet.frameworks.comparison.page import write_pages

    for path in write_pages(args.out):
        print(path)


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The options, with lists as lists and what is not given from the scale."""
    parser = ArgumentParser(
        prog="agenet compare",
        description="Runs one network in JAX, PyTorch and Keras from the same weights on the same "
        "faces, and writes what differs and what it costs to results.json and two pages.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for results and pages, and for pictures and weights: 1 GB, or 20 at the "
        "scale of the report",
    )
    parser.add_argument(
        "--scale",
        choices=tuple(SCALES),
        default="laptop",
        help="laptop: small, an hour on two cores; report: sizes, faces and epochs of the "
        "reference report, for a GPU",
    )
    parser.add_argument("--page", action="store_true", help="only write the pages anew")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--frameworks", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}")
    for part in PARTS:
        parser.add_argument(
            f"--{part}", metavar="NETWORK:SIZE,...", help=f"networks of the part {part}"
        )
    for name, text in (
        ("train_faces", "to train on, drawn from the training set; 0: all"),
        ("test_faces", "to test on, drawn from the test fold; 0: all"),
        ("agreement_batch", "batch size of the agreement"),
        ("results_batch", "batch size of the results"),
        ("cost_batch", "batch size of the cost"),
        ("epochs", "of a training"),
        ("seeds", "trainings of each framework; more can be added later"),
    ):
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument(
        "--steps", default="1,10,100", help="of the agreement, where parameters are compared"
    )
    parser.add_argument("--dataset", default="adience/faces", help="default: adience/faces")
    parser.add_argument("--data_dir", default="", help="where it is prepared")
    parser.add_argument("--test_fold", type=int, default=0)
    parser.add_argument(
        "--init",
        choices=("imagenet", "random"),
        default="imagenet",
        help="imagenet: where there are such weights",
    )
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    parser.add_argument("--variants", default="", help="of the cost, besides the usual: compiled")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each in the cost")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least one step")
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds after which a framework is given up"
    )
    args = parser.parse_args(arguments)
    scale = SCALES[args.scale]
    for name, value in scale.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif name in PARTS:
            setattr(args, name, _networks(f"--{name}", getattr(args, name)))
    for name in ("agreement_batch", "results_batch", "cost_batch", "epochs", "seeds", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    for name in ("train_faces", "test_faces"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1, or 0 for all")
    try:
        args.steps = sorted({int(step) for step in args.steps.split(",")})
        if args.steps[0] < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--steps={args.steps} must be numbers from 1, such as 1,10,100") from None
    args.parts = _chosen("--parts", args.parts, PARTS)
    for part in sorted({"agreement", "results"} & {*args.parts}):
        batch = getattr(args, f"{part}_batch")
        if 0 < args.train_faces < batch:
            raise UserError(
                f"--train_faces={args.train_faces} is not even one batch: with --{part}_batch="
                f"{batch} it must be at least {batch}, or 0 for all"
            )
    args.frameworks = _chosen("--frameworks", args.frameworks, ENGINES)
    args.variants = _chosen("--variants", args.variants, {n for v in VARIANTS.values() for n in v})
    args.platform = args.platform or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    if args.page and not (args.out / RESULTS).is_file():
        raise UserError(f"--page: there is no {args.out / RESULTS}: leave --page out")
    return args


def _chosen(option: str, text: str, known: Any) -> list[str]:
    names = [name for name in map(str.strip, text.split(",")) if name]
    for name in names:
        if name not in known:
            raise UserError(f"{option}: {name!r} is not one of {', '.join(sorted(known))}")
    return names


def _networks(option: str, text: str) -> dict[str, int]:
    """From "levi_hassner:99,resnet50:64"."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in NETWORKS:
            raise UserError(
                f"{option}: {name!r} is not in every framework: levi_hassner, resnet50, "
                "efficientnet_lite0, efficientnet_b0 to b7"
            )
        if not size.isdecimal() or int(size) < 32:
            raise UserError(f"{option}: {part!r} must be NETWORK:SIZE, of at least 32 pixels")
        sizes[name] = int(size)
    return sizes


def settings_of(args: Namespace) -> dict[str, Any]:
    """All that a number can depend on, as JSON has it."""
    left_out = {"out", "page"}
    return json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in left_out}))


def run(results: Results, args: Namespace) -> None:
    """All parts that are asked for and not there."""
    content = results.content
    missing = {name: not_installed(name, "") for name in ENGINES if name in args.frameworks}
    content.setdefault("frameworks", {}).update({n: {"missing": m} for n, m in missing.items()})
    there = [name for name, module in missing.items() if not module]
    for name, module in missing.items():
        if module:
            log(f"{name}: left out, {module} is not installed")
    prepare_data(results, args)
    if "agreement" in args.parts:
        for model, size in args.agreement.items():
            for optimizer in ("sgd", "adam"):
                agree(results, args, there, model, size, optimizer)
    if "results" in args.parts:
        for model, size in args.results.items():
            for regular in (False, True):
                train(results, args, there, model, size, regular)
    if "cost" in args.parts:
        for model, size in args.cost.items():
            measure(results, args, there, model, size)


if __name__ == "__main__":
    with one_line_errors():
        main()
