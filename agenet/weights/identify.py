"""Finds out which network a weights file of another framework belongs to, and its input."""

from dataclasses import replace
from pathlib import Path

from agenet.errors import UserError
from agenet.files import hash_file
from agenet.models import MODELS, create_model
from agenet.weights.known import KNOWN, KnownWeights
from agenet.weights.spec import InputSpec, WeightsSpec


def identify(
    path: Path, source: str, model: str, flavour: str, known: KnownWeights | None
) -> tuple[WeightsSpec, bool]:
    """Returns the specification of a file with names of `source`, and whether the file is known.

    A file is known if it was downloaded for the entry `known`, or has the hash of an entry. For
    other files `model` is required, and `flavour` if the source has several; their specification
    has no classes.

    Raises:
        UserError: the file is not known and its network is not clear, or it is known to be of
            another source.
    """
    sha256 = hash_file(path, "sha256")
    known = known or _find_by_hash(path, source, sha256)
    if known is None:
        return _assume(path, source, model, flavour, sha256), False
    if known.source != source:
        raise UserError(f"{path}: has tensor names of {source}, unlike {known.name}")
    return replace(known.spec, sha256=sha256), True


def _find_by_hash(path: Path, source: str, sha256: str) -> KnownWeights | None:
    # Eight digits of a hash identify a file; they do not authenticate it.
    digests = {"sha256": sha256, "md5": hash_file(path, "md5")}
    for entry in KNOWN:
        digest = digests[entry.hash.algorithm]
        if entry.source == source and digest.startswith(entry.hash.digest):
            return entry
    return None


def _assume(path: Path, source: str, model: str, flavour: str, sha256: str) -> WeightsSpec:
    """Returns the specification of a file that is not in the table."""
    if not model:
        raise UserError(
            f"{path}: has tensor names of {source} but is not in the table of known weights: give "
            f"--model, its network, one of {', '.join(MODELS)}"
        )
    network = create_model(model, {}, flavour=flavour).backbone
    of_source = {entry.flavour for entry in KNOWN if entry.source == source}
    flavours = [flavour for flavour in network.FLAVOURS if flavour in of_source]
    if not flavours:
        raise UserError(f"{path}: has tensor names of {source}, which has no {model}")
    if flavour and flavour not in flavours:
        raise UserError(
            f"{path}: tensor names of {source} belong to flavour {flavours[0]}, not {flavour}"
        )
    if not flavour and len(flavours) > 1:
        raise UserError(
            f"{path}: tensor names of {source} leave the flavour open: give --flavour, "
            f"{' or '.join(flavours)} (timm's tf_ networks are tensorflow)"
        )
    flavour = flavour or flavours[0]
    return WeightsSpec(
        model=model,
        flavour=flavour,
        classes={},
        input=_usual_input(source, model, flavour, network.input_size),
        source=source,
        origin=path.name if path.name.isprintable() else "",
        sha256=sha256,
        licence="not stated",
    )


def _usual_input(source: str, model: str, flavour: str, size: int) -> InputSpec:
    """Returns the input of known weights of this network, or of others, from the same source."""
    alike = [entry for entry in KNOWN if (entry.source, entry.flavour) == (source, flavour)]
    for entry in alike:
        if entry.model == model:
            return entry.input
    return replace(alike[0].input, size=size)
