"""Converts weights: files of other frameworks into agenet's format, runs into either."""

import difflib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agenet.errors import UserError, one_line
from agenet.files import hash_file, is_address
from agenet.frameworks import networks
from agenet.frameworks.port_out import check_answers, export, fill_network, write
from agenet.frameworks.targets import TARGETS
from agenet.places.weights import find_weights as find_at
from agenet.runs.logging import log_to
from agenet.training.checkpoints import Checkpoints
from agenet.training.finished_run import read_run_weights
from agenet.training.losses import estimate_age_distribution
from agenet.weights import bundled
from agenet.weights.cache import find_file
from agenet.weights.known import KNOWN
from agenet.weights.load import Weights, read_weights, save_weights
from agenet.weights.spec import RGB


def port(
    source: str,
    output: Path,
    to: str | None = None,
    *,
    model: str = "",
    flavour: str = "",
    size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
    check: bool = False,
    half: bool = False,
    balance: float = 0.0,
    licence: str = "",
) -> None:
    """Writes weights of a run or a file, and prints what was written.

    Args:
        source: the folder of a run, a file, the address of one, or a name of known weights.
        output: the file to write.
        to: the framework whose format the file has; by default agenet's own.
        model: the network of a file that is not known.
        flavour: its variant, if the file leaves it open.
        size: side of its input in pixels, if the file does not say.
        mean, std: that it subtracts from and divides R, G, B by, from 0 to 255, likewise.
        check: run the other framework's network, too, and write only if the answers agree.
        half: store weights in 16 bits; in agenet's format only.
        balance: see `balance_ages`; of runs only.
        licence: of the weights of a run.

    Raises:
        UserError: an option does not apply, the weights cannot be written in that format, or the
            answers differ.
    """
    if is_address(source):
        source = str(find_at(source))
    is_run = Path(source).is_dir()
    given = {"size": size, "mean": mean, "std": std}
    stated = {name: value for name, value in given.items() if value is not None}
    for wrong, message in (
        (to and half, "--half is for agenet's own format, not for --to"),
        (
            is_run and check and not to,
            "--check is for files of other sources, or with --to, not for runs",
        ),
        (
            not is_run and (balance or licence),
            "--balance and --licence are for a run, not for a file of weights",
        ),
        (is_run and (model or flavour), "--model and --flavour are for files, not for runs"),
        (is_run and stated, "--size, --mean and --std are for files, not for runs"),
    ):
        if wrong:
            raise UserError(message)
    if is_run:
        weights = read_run(source, balance, licence)
    else:
        with log_to():  # What is assumed about a file, and downloads.
            path, weights = find_weights(source, model, flavour, stated)
    if to:
        exported = export(weights, to)
        code = write(exported, output, check)
        print_what_is_written(output, weights)
        columns = (
            f"{task} {first} to {end - 1}" for task, (first, end) in exported.columns.items()
        )
        print(f"  outputs  {', '.join(columns)}")
        print(f"  takes    {TARGETS[to].takes(exported)}")
        print(f"  load     {code}")
        return
    network, variables = fill_network(weights)
    if check:
        compare(path, weights, network, variables)
    save_weights(output, weights, half=half)
    print_what_is_written(output, weights)


def read_run(source: str, balance: float, licence: str) -> Weights:
    """The weights of a run's best state, with the options of runs applied."""
    with log_to():  # Keeps warnings of Orbax from the terminal.
        weights = read_run_weights(Path(source))
        if balance:
            balance_ages(weights, Path(source), balance)
    if licence:
        weights = Weights(weights.tensors, replace(weights.spec, licence=licence))
    return weights


def balance_ages(weights: Weights, workdir: Path, part: float) -> None:
    """Subtracts `part` of the log of the frequency of each year of age in the training set.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """
    # Imported here because the rest needs no extra.
    from agenet.runs.config import parse_config
    from agenet.runs.create import create_experiment
    from agenet.runs.reporting import read_best

    if weights.spec.heads.get("age") != "distribution" or not 0 < part <= 1:
        raise UserError("--balance takes a number up to 1, and a run with the head distribution")
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        experiment = create_experiment(parse_config(read_best(checkpoints, workdir)["config"]))
    records, rows = experiment.records, experiment.splits.train
    shares = estimate_age_distribution(records.age_low[rows], records.age_high[rows])
    name = "params/heads/age/bias"
    weights.tensors[name] = weights.tensors[name] - np.float32(part * np.log(shares))


def find_weights(
    source: str, model: str, flavour: str, stated: Mapping[str, Any]
) -> tuple[Path, Weights]:
    """The file that `source` names, and its weights."""
    if source == bundled.DEFAULT:
        source = str(bundled.find_weights(source))
    names = {entry.name: entry for entry in KNOWN}
    known = None if Path(source).exists() else names.get(source)
    if known is None and not Path(source).exists():
        near = ", ".join(difflib.get_close_matches(source, names, n=3)) or "see --list"
        raise UserError(f"{source}: neither a file nor the name of known weights ({near})")
    path = find_file(known) if known else Path(source)
    return path, read_weights(path, model, flavour, known, stated)


def print_what_is_written(output: Path, weights: Weights) -> None:
    spec, counts = weights.spec, []
    for what, top in (("parameters", "params/"), ("batch-norm statistics", "batch_stats/")):
        sizes = [value.size for name, value in weights.tensors.items() if name.startswith(top)]
        counts.append(f"{sum(sizes):,} {what}")
    heads = ", ".join(f"{task} ({count} classes)" for task, count in spec.classes.items())
    print(f"{spec.model}, flavour {spec.flavour}: {', '.join(counts)}")
    print(f"  heads    {heads or 'none'}")
    print(f"  input    {describe_input(spec.input)}")
    sha256 = f", sha256 {spec.sha256}" if spec.sha256 else ""
    print(f"  from     {spec.origin}, names of {spec.source}{sha256}")
    print(f"  licence  {spec.licence}")
    print(one_line(f"  written  {output} ({output.stat().st_size / 2**20:.1f} MiB)"))


def describe_input(spec: Any) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (spec.mean, spec.std))
    return (
        f"{spec.size} px RGB, mean ({mean}), std ({std}), {spec.interpolation}, "
        f"centre {spec.crop_fraction:.3f}"
    )


def compare(path: Path, weights: Weights, network: Any, variables: Mapping[str, Any]) -> None:
    """Prints how far features and logits are from those of the source framework's network.

    Raises:
        UserError: the framework is not installed, or the answers differ.
    """
    spec = weights.spec
    # A file that agenet wrote states the hash of the file that it was made from.
    if spec.sha256 != hash_file(path, "sha256"):
        raise UserError(
            f"--check: {path} was written by agenet: name the file that it was made from "
            f"({spec.origin or spec.source})"
        )
    if spec.source not in networks.NETWORKS or not spec.classes:
        what = f"names of {spec.source}" if spec.classes else "no classifier"
        raise UserError(f"--check: {path} has {what}, there is no other network to compare with")
    other = networks.create(spec.source, their_name(weights))
    other.load(path)
    if spec.source == "keras":
        normalise_outside(other.module)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, other.size, other.size, 3))
    images = ((pixels - spec.input.mean) / spec.input.std).astype(np.float32)
    features, logits = other.run(images)
    (task,) = spec.classes
    with jax.default_matmul_precision("float32"):
        ours = {
            "features": network.apply(variables, images, method="features"),
            "logits": network.apply(variables, images)[task],
        }
    check_answers(ours, {"features": features, "logits": logits}, spec.source)


def their_name(weights: Weights) -> str:
    """The name of the network in the source framework."""
    spec = weights.spec
    match spec.source:
        case "lite":
            return spec.model.replace("_", "-")
        case "caffe":
            return f"{next(iter(spec.classes))}_net"
    return TARGETS[spec.source].known.get(spec.model, {}).get(spec.flavour, spec.model)


def normalise_outside(module: Any) -> None:
    """Removes the normalisation from a Keras network, whose input is then ours.

    That of EfficientNetV2 has no weights; `networks` inverts it.
    """
    for layer in module.layers:
        if layer.name.startswith("normalization") and layer.weights:
            layer.set_weights([np.zeros(3), np.ones(3), np.zeros((), np.int64)])
            layer.finalize_state()
