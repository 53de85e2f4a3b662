"""The comparison of JAX, PyTorch and Keras: settings by scale, and the order of its parts."""

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from agenet.errors import UserError, extra_of, needs_extra
from agenet.frameworks.comparison.data import prepare_data
from agenet.frameworks.comparison.engine import NETWORKS, VARIANTS
from agenet.frameworks.comparison.engines import ENGINES, not_installed
from agenet.frameworks.comparison.parts import agree, environment, measure, train
from agenet.frameworks.comparison.results import RESULTS, Results, log

# Settings by the time that they take; sizes in pixels by network.
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
        "seeds": 4,  # Three could not show a difference to be significant.
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
# Hides a GPU.
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def compare(args: Namespace) -> list[Path]:
    """Measures what is missing and writes the pages.

    Args:
        args: the options of `agenet compare`, None for those that come from the scale.

    Returns:
        The pages.

    Raises:
        UserError: an option has an unknown value, or the folder holds another comparison.
    """
    args = complete(args)
    if not args.page:
        # Several frameworks share the device.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        args.out.mkdir(parents=True, exist_ok=True)
        results = Results(args.out, settings_of(args))
        with environment(ON_CPU if args.platform == "cpu" else {}):
            run(results, args)
    # Imported here because measuring needs no Matplotlib.
    from agenet.frameworks.comparison.page import write_pages

    return list(write_pages(args.out))


def complete(args: Namespace) -> Namespace:
    """Checks the options, parses lists, and fills what is not given from the scale.

    Raises:
        UserError: an option has an unknown value.
    """
    scale = SCALES[args.scale]
    for name, value in scale.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif name in PARTS:
            setattr(args, name, _networks(f"--{name}", getattr(args, name)))
    counts = ("agreement_batch", "results_batch", "cost_batch", "epochs", "seeds", "rounds")
    for name, least in {**dict.fromkeys(counts, 1), "train_faces": 0, "test_faces": 0}.items():
        if (count := getattr(args, name)) < least:
            or_all = ", or 0 for all" * (least == 0)
            raise UserError(f"--{name}={count} must be at least 1{or_all}")
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
    """All settings that a result can depend on, as in JSON."""
    left_out = {"out", "page"}
    return json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in left_out}))


def run(results: Results, args: Namespace) -> None:
    """Measures the requested parts that are missing."""
    content = results.content
    missing = {name: not_installed(name) for name in ENGINES if name in args.frameworks}
    content.setdefault("frameworks", {}).update({n: {"missing": m} for n, m in missing.items()})
    there = [name for name, module in missing.items() if not module]
    for name, module in missing.items():
        if module:
            error = needs_extra(extra_of(module) or "compare", name, f"{module} is not installed")
            log(f"left out: {error}")
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
