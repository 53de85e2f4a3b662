"""The table of published pre-trained weights that agenet can load by name.

`known.csv` has one row for each file: its address, hash, licence, network, and the input that the
network was evaluated with. All of it is what the publishers state: torchvision and timm put the
first eight digits of a file's SHA-256 into its name, Keras keeps an MD5 in its source, and a Python
distribution lists the SHA-256 of its files. Files without a published hash are not in the table;
timm's "ra4" and "sw" releases, for example, are on a model hub only. Columns that need a word:

* crop: side of the central crop as a fraction of the resized image's shorter side. For
  torchvision, size / resize. `lite` rows state 1, not size / (size + 32) as the original release:
  on a portrait that cuts off more than on the objects it was tuned for.
* normalisation: a key of `NORMALISATIONS`.
* trained_on: a data set of faces; its fold 0 was held out.
* package, package_path: a Python distribution that contains the file, and where.

The order matters: of a model's rows, and of those of one flavour, the first is the default.
"""

import csv
import difflib
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from agenet.errors import UserError
from agenet.files import expand_home
from agenet.weights.bundled import DEFAULT, find_weights
from agenet.weights.spec import NOT_FOLD_0, RGB, InputSpec, WeightsSpec


def _times_255(red: float, green: float, blue: float) -> RGB:
    return red * 255, green * 255, blue * 255


# Mean and standard deviation per channel R, G, B, for values from 0 to 255.
NORMALISATIONS: dict[str, tuple[RGB, RGB]] = {
    # torchvision, most of timm, and what Keras builds into its EfficientNets.
    "imagenet": (_times_255(0.485, 0.456, 0.406), _times_255(0.229, 0.224, 0.225)),
    "inception": ((127.5,) * 3, (127.5,) * 3),
    # efficientnet_lite_builder.py in tensorflow/tpu.
    "lite": ((127.0,) * 3, (128.0,) * 3),
    # Keras's ResNets, which were converted from Caffe.
    "caffe": ((123.68, 116.779, 103.939), (1.0,) * 3),
    # The mean of the authors' mean.binaryproto over its 256x256 pixels.
    "levi_hassner": ((114.895847746, 87.7689143744, 78.4263377603), (1.0,) * 3),
}


@dataclass(frozen=True)
class FileHash:
    """A published hash of a file; `digest` may hold the first hexadecimal digits only."""

    algorithm: str
    digest: str


@dataclass(frozen=True)
class Package:
    """A Python distribution that contains a file, and the file's path inside."""

    distribution: str
    version: str
    path: str


@dataclass(frozen=True)
class KnownWeights:
    """A published file of weights: what it contains and where to get it.

    Attributes:
        name: source/model.tag, such as "torchvision/resnet50.imagenet1k_v2".
        model: name of the network in the registry, such as "resnet50".
        flavour: variant of the network that the weights need, such as "torchvision".
        source: naming scheme of the file's tensors, one of `agenet.weights.spec.SOURCES`.
        file_name: name of the file in the cache.
        url: address of the file; empty if only `package` contains it.
        hash: as its publisher states it.
        licence: as its publisher states it.
        input: size, crop and normalisation of the images that the network expects.
        classes: number of classes of each head; empty for a backbone alone.
        package: a distribution that contains the file, so that nothing need be downloaded.
        trained_on: subjects in the training data, as in `WeightsSpec`.
    """

    name: str
    model: str
    flavour: str
    source: str
    file_name: str
    url: str
    hash: FileHash
    licence: str
    input: InputSpec
    classes: dict[str, int] = field(default_factory=dict)
    package: Package | None = None
    trained_on: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> WeightsSpec:
        """The specification of these weights, as far as it is known before the download."""
        package = self.package
        return WeightsSpec(
            model=self.model,
            flavour=self.flavour,
            classes=dict(self.classes),
            input=self.input,
            source=self.source,
            origin=self.url or (f"{package.distribution}=={package.version}" if package else ""),
            sha256=self.hash.digest if len(self.hash.digest) == 64 else None,
            licence=self.licence,
            trained_on=dict(self.trained_on),
        )


def _known_weights(row: dict[str, str]) -> KnownWeights:
    mean, std = NORMALISATIONS[row["normalisation"]]
    crop = float(Fraction(row["crop"]))
    heads = (head.split(":") for head in row["classes"].split())
    algorithm, _, digest = row["hash"].partition(":")
    distribution, _, version = row["package"].partition("==")
    return KnownWeights(
        name=row["name"],
        model=row["model"],
        flavour=row["flavour"],
        source=row["name"].partition("/")[0],
        file_name=(row["url"] or row["package_path"]).rpartition("/")[2],
        url=row["url"],
        hash=FileHash(algorithm, digest),
        licence=row["licence"],
        input=InputSpec(int(row["size"]), mean, std, row["interpolation"], crop),
        classes={task: int(count) for task, count in heads},
        package=Package(distribution, version, row["package_path"]) if distribution else None,
        trained_on=dict.fromkeys(row["trained_on"].split(), NOT_FOLD_0),
    )


def _read_table(path: Path) -> tuple[KnownWeights, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(map(_known_weights, csv.DictReader(file)))


KNOWN = _read_table(Path(__file__).with_name("known.csv"))


def find_known(model: str = "", flavour: str = "", name: str = "") -> KnownWeights:
    """Returns the entry called `name`, or the first of a model and, if given, of a flavour.

    For a ResNet or EfficientNet-B the first is what torchvision calls DEFAULT; for a Lite network
    the converted TensorFlow release, or timm's conversion where there is no other; among
    EfficientNets of flavour "tensorflow" Keras's.

    Raises:
        UserError: there is no such entry; the message lists those that exist.
    """
    known = [entry for entry in KNOWN if not model or entry.model == model]
    for entry in known:
        if name in ("", entry.name) and flavour in ("", entry.flavour):
            return entry
    asked = f"called {name!r}" if name else "known"
    asked += f" for {model}" if model else ""
    asked += f" of the flavour {flavour}" if flavour else ""
    if name and not any(entry.name == name for entry in known):
        names = [entry.name for entry in known or KNOWN]
        there_is = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    else:
        there_is = [f"{entry.name} ({entry.flavour})" for entry in known]
    raise UserError(f"there are no weights {asked}; there are {', '.join(there_is) or 'none'}")


def find_init(init: str, model: str, flavour: str = "") -> KnownWeights | Path:
    """Resolves the field `init` of a config without downloading anything.

    Args:
        init: "imagenet" (the model's first ImageNet weights in the table), "default" (the bundled
            weights), the name of an entry of the table, or a path.
        model: name of the network.
        flavour: of the network; any of the table's if empty.

    Raises:
        UserError: it is none of these, or names weights of another network or flavour.
    """
    if init == "imagenet":
        entry = find_known(model, flavour)
        if init not in entry.classes:
            known = ", ".join(other.name for other in KNOWN if other.model == model)
            raise UserError(f"{model} has no ImageNet weights; there are {known}")
        return entry
    names = [entry.name for entry in KNOWN]
    if init in names:
        return find_known(model, flavour, init)
    path = find_weights(init) if init == DEFAULT else expand_home(init)
    if path.exists():
        return path
    nearest = difflib.get_close_matches(init, ["imagenet", DEFAULT, *names], n=3)
    did_you_mean = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    raise UserError(
        f'init "{init}" is neither "random", nor "imagenet", nor "{DEFAULT}", nor known weights, '
        f"nor a file, nor the folder of a run{did_you_mean}"
    )
