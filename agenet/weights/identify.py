"""Which network a file of another source's is of, and what it is to be given."""

from dataclasses import replace
from pathlib import Path

from agenet.errors import UserError
from agenet.files import hash_file
from agenet.models import MODELS, create_model
from agenet.weights.known import KNOWN, KnownWeights
from agenet.weights.spec import InputSpec, WeightsSpec

# Of the networks of each source.
_FLAVOURS = {
    "torchvision": ("torchvision",),
    "timm": ("timm", "tensorflow"),
    "keras": ("keras", "tensorflow"),
    "lite": ("tensorflow",),
    "caffe": ("caffe",),
}


def identify(
    path: Path, source: str, model: str, flavour: str, known: KnownWeights | None
) -> tuple[WeightsSpec, bool]:
    """What a file with names of `source` is, and whether it is one of the known.

    Known is what was fetched for the entry `known`, or has the hash of an entry. Another file must
    be of the network `model`; the flavour follows from the source unless that has several; the
    classes are left empty.

    Raises:
        UserError: the file is not known and it is not clear what it is, or it is known not to be
            of this source.
    """
    sha256 = hash_file(path, "sha256")
    known = known or _find_by_hash(path, source, sha256)
    if known is None:
        return _assume(path, source, model, flavour, sha256), False
    if known.source != source:
        raise UserError(f"{path}: has names of {source}, unlike {known.name}")
    return replace(known.spec, sha256=sha256), True


def _find_by_hash(path: Path, source: str, sha256: str) -> KnownWeights | None:
    # These hashes only recognise a file, they do not vouch for it.
    digests = {"sha256": sha256, "md5": hash_file(path, "md5")}
    for entry in KNOWN:
        digest = digests[entry.hash.algorithm]
        if entry.source == source and digest.startswith(entry.hash.digest):
            return entry
    return None


def _assume(path: Path, source: str, model: str, flavour: str, sha256: str) -> WeightsSpec:
    """What a file that is not in the table must be, from its source and what the caller says."""
    if not model:
        raise UserError(
            f"{path}: has names of {source} but is not in the table of known weights: say which "
            f"network it is of, one of {', '.join(MODELS)}"
        )
    network = create_model(model, {}, flavour=flavour).backbone
    flavours = [f for f in network.FLAVOURS if f in _FLAVOURS[source]]
    if not flavours:
        raise UserError(f"{path}: has names of {source}, which has no {model}")
    if flavour and flavour not in flavours:
        raise UserError(f"{path}: names of {source} go with flavour {flavours[0]}, not {flavour}")
    if not flavour and len(flavours) > 1:
        raise UserError(
            f"{path}: names of {source} do not tell the flavour: say {' or '.join(flavours)} "
            "(timm's tf_ networks are tensorflow)"
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
    """That of the known weights of this network and source, or of the source's other networks."""
    alike = [entry for entry in KNOWN if (entry.source, entry.flavour) == (source, flavour)]
    for entry in alike:
        if entry.model == model:
            return entry.input
    return replace(alike[0].input, size=size)
