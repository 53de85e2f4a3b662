"""Frameworks that agenet's weights can be written for, and how each names and runs a network."""

import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks import caffe, keras_networks, networks, torch_networks
from agenet.weights.formats.caffe import read as read_caffemodel
from agenet.weights.names import caffe as caffe_names
from agenet.weights.names import keras, timm, torchvision

if TYPE_CHECKING:
    from agenet.weights.load import Weights

Tensors = Mapping[str, np.ndarray]
Columns = dict[str, tuple[int, int]]

# Networks that neither torchvision nor Keras has, composed in torch_networks.py and
# keras_networks.py, and the flavour that they compute.
COMPOSED = {"levi_hassner": "report", "efficientnet_lite0": "tensorflow"}
_RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_EFFICIENTNETS = tuple(f"efficientnet_b{i}" for i in range(8))


@dataclass(frozen=True)
class Constructor:
    """A call that creates a network: a function by its full name, and its arguments."""

    function: str
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        keywords = (f"{name}={value!r}" for name, value in self.keywords.items())
        return f"{self.function}({', '.join([*map(repr, self.arguments), *keywords])})"

    def call(self) -> Any:
        return pkgutil.resolve_name(self.function)(*self.arguments, **self.keywords)


@dataclass(frozen=True)
class Export:
    """Weights in the form of another framework.

    Attributes:
        weights: agenet's.
        target: the framework, a key of `TARGETS`.
        name: its name of the network, such as "resnet50" or "EfficientNetB0".
        tensors: by its names and in its layout.
        columns: of each head, its first output and the one after its last.
    """

    weights: "Weights"
    target: str
    name: str
    tensors: dict[str, np.ndarray]
    columns: Columns

    @property
    def classes(self) -> int:
        return max(end for _, end in self.columns.values())

    @property
    def size(self) -> int:
        return self.weights.spec.input.size

    @property
    def is_composed(self) -> bool:
        return self.name in COMPOSED

    def composed(self, function: str) -> Constructor:
        """The constructor of a network that `function` of `agenet.frameworks` composes."""
        return Constructor(f"agenet.frameworks.{function}", (self.name, self.size, self.classes))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        spec = self.weights.spec.input
        return ((pixels - spec.mean) / spec.std).astype(np.float32)


class Target(ABC):
    """A framework.

    Attributes:
        suffixes: of the files it reads.
        known: by agenet's name of a network, the flavours that can be written and the name there.
    """

    suffixes: tuple[str, ...]
    known: dict[str, dict[str, str]]

    @abstractmethod
    def translate(self, tensors: Tensors, model: str) -> dict[str, np.ndarray]:
        """Renames and transposes the tensors of a network with one head."""

    @abstractmethod
    def why_not(self, suffix: str, check: bool) -> str:
        """What to install before a file can be written, or checked; empty if nothing."""

    @abstractmethod
    def write(self, exported: Export, path: Path) -> str:
        """Writes a file and returns Python code that loads it, with PATH in place of its path."""

    @abstractmethod
    def run(self, exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, C] that the framework computes with the file for pixels [B, S, S, 3]."""

    def takes(self, exported: Export) -> str:
        """What the network there takes as its input."""
        return "RGB, normalised as above"


class Torchvision(Target):
    """State dictionaries of torchvision's networks, and of those that agenet composes of them."""

    source = "torchvision"
    suffixes = (".safetensors", ".pth")
    known = {
        **{name: {"torchvision": name} for name in (*_RESNETS, *_EFFICIENTNETS)},
        **{name: {flavour: name} for name, flavour in COMPOSED.items()},
    }

    def translate(self, tensors: Tensors, model: str) -> dict[str, np.ndarray]:
        return torch_networks.from_agenet(tensors, model)

    def why_not(self, suffix: str, check: bool) -> str:
        return networks.why_not(self.source) if check or suffix != ".safetensors" else ""

    def constructor(self, exported: Export) -> Constructor:
        if exported.is_composed:
            return exported.composed("torch_networks.create_torch")
        name = f"torchvision.models.{exported.name}"
        return Constructor(name, keywords={"num_classes": exported.classes})

    def write(self, exported: Export, path: Path) -> str:
        create = f"model = {self.constructor(exported)}"
        if path.suffix == ".safetensors":
            import safetensors.numpy

            spec = exported.weights.spec
            about = {"columns": exported.columns, "input": vars(spec.input), "heads": spec.heads}
            text = {name: json.dumps(value) for name, value in about.items()}
            safetensors.numpy.save_file(exported.tensors, path, {"format": "pt", **text})
            return f"{create}; model.load_state_dict(safetensors.torch.load_file(PATH))"
        import torch

        torch.save({name: torch.tensor(value) for name, value in exported.tensors.items()}, path)
        return f"{create}; model.load_state_dict(torch.load(PATH, weights_only=True))"

    def run(self, exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
        torch_networks.import_torchvision()
        import torch

        model = self.constructor(exported).call().eval()
        model.load_state_dict(networks.load_state(path))
        images = np.ascontiguousarray(exported.normalise(pixels).transpose(0, 3, 1, 2))
        with torch.no_grad():
            return np.asarray(model(torch.tensor(images)))


class Timm(Torchvision):
    """State dictionaries of timm's networks."""

    source = "timm"
    known = {
        **{name: {"torchvision": name} for name in _RESNETS},
        **{
            name: {"timm": name, "tensorflow": f"tf_{name}"}
            for name in (*_EFFICIENTNETS, *(f"efficientnet_lite{i}" for i in range(5)))
        },
    }

    def translate(self, tensors: Tensors, model: str) -> dict[str, np.ndarray]:
        names = torchvision if model.startswith("resnet") else timm
        return names.from_agenet(tensors, model)

    def constructor(self, exported: Export) -> Constructor:
        keywords = {"num_classes": exported.classes}
        return Constructor("timm.create_model", (exported.name,), keywords)


class Keras(Target):
    """Weights or whole models of Keras applications, and of networks that agenet composes."""

    suffixes = (".weights.h5", ".keras")
    known = {
        **{f"resnet{depth}": {"keras": f"ResNet{depth}"} for depth in (50, 101, 152)},
        **{name: {"tensorflow": f"EfficientNetB{name[-1]}"} for name in _EFFICIENTNETS},
        **{name: {flavour: name} for name, flavour in COMPOSED.items()},
    }

    def translate(self, tensors: Tensors, model: str) -> dict[str, np.ndarray]:
        to_theirs = keras_networks if model in COMPOSED else keras
        return to_theirs.from_agenet(dict(tensors), model)

    def why_not(self, suffix: str, check: bool) -> str:
        return networks.why_not("keras")

    def takes(self, exported: Export) -> str:
        order = "BGR" if exported.name.startswith("ResNet") else "RGB"
        normalises = exported.name.startswith("EfficientNet")
        return f"{order}, {'0 to 255, as it is' if normalises else 'normalised as above'}"

    def constructor(self, exported: Export) -> Constructor:
        if exported.is_composed:
            return exported.composed("keras_networks.create_keras")
        keywords = {
            "weights": None,
            "classes": exported.classes,
            "classifier_activation": None,
            "input_shape": (exported.size, exported.size, 3),
        }
        return Constructor(f"keras.applications.{exported.name}", keywords=keywords)

    def create(self, exported: Export) -> Any:
        keras_networks.import_keras()
        return self.constructor(exported).call()

    def write(self, exported: Export, path: Path) -> str:
        if exported.is_composed and path.suffix == ".keras":
            raise UserError(
                f"{path.name}: a whole model with layers of agenet's would not open in Keras: "
                "write .weights.h5"
            )
        model, spec = self.create(exported), exported.weights.spec
        keras_networks.assign_keras(model, exported.tensors)
        mean, std = (np.array(rgb, np.float32) / 255 for rgb in (spec.input.mean, spec.input.std))
        # Composed networks take normalised input.
        for layer in [] if exported.is_composed else model.layers:
            if layer.name.startswith("normalization"):
                layer.set_weights([mean, std**2, np.zeros((), np.int64)])
                layer.finalize_state()
        if path.suffix == ".keras":
            model.save(path)
            return "model = keras.models.load_model(PATH)"
        model.save_weights(path)
        return f"model = {self.constructor(exported)}; model.load_weights(PATH)"

    def run(self, exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
        if path.suffix == ".keras":
            model = keras_networks.import_keras().models.load_model(path)
        else:
            model = self.create(exported)
            model.load_weights(path)
        takes = self.takes(exported)
        images = exported.normalise(pixels) if "normalised" in takes else pixels
        images = images[..., ::-1] if takes.startswith("BGR") else images
        return np.asarray(model(np.ascontiguousarray(images), training=False))


class Caffe(Target):
    """Levi and Hassner's network: a .caffemodel, and a .prototxt beside it."""

    suffixes = (".caffemodel",)
    known = {"levi_hassner": {"caffe": "levi_hassner"}}

    def translate(self, tensors: Tensors, model: str) -> dict[str, np.ndarray]:
        return caffe_names.from_agenet(tensors, model)

    def why_not(self, suffix: str, check: bool) -> str:
        # PyTorch computes the same network where OpenCV cannot read it.
        return caffe.why_not_opencv() if check and networks.why_not("torchvision") else ""

    def takes(self, exported: Export) -> str:
        return "BGR, normalised as above"

    def write(self, exported: Export, path: Path) -> str:
        caffe.write_caffemodel(path, exported.tensors)
        layers = caffe.deploy_prototxt(exported.size, exported.classes)
        path.with_suffix(".prototxt").write_text(layers)
        return "model = cv2.dnn.readNetFromCaffe(PROTOTXT, PATH)  # OpenCV 4; logits are fc8"

    def run(self, exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
        images = exported.normalise(pixels)[..., ::-1].transpose(0, 3, 1, 2)
        if caffe.why_not_opencv():
            logits = caffe.run_in_torch(read_caffemodel(path)[0], images)
        else:
            (logits,) = caffe.run_in_opencv(path.with_suffix(".prototxt"), path, images)
        # Two classes are male and female there, female and male here.
        return logits[:, ::-1] if exported.classes == 2 else logits


TARGETS: dict[str, Target] = {
    "torchvision": Torchvision(),
    "keras": Keras(),
    "timm": Timm(),
    "caffe": Caffe(),
}


def name_at(target: str, model: str, flavour: str) -> str:
    """The name that a framework has for a network of agenet.

    Raises:
        UserError: it has no such network, or one that computes something else.
    """
    known = TARGETS[target].known
    if model not in known:
        raise UserError(f"--to {target}: there is no {model} there, only {', '.join(known)}")
    if flavour in known[model]:
        return known[model][flavour]
    wanted = list(known[model])
    others = [f"--to {n}" for n, each in TARGETS.items() if flavour in each.known.get(model, {})]
    elsewhere = f"try {' or '.join(others)}, or " if others else ""
    raise UserError(
        f"--to {target}: these weights of {model} are of flavour {flavour!r}, and its network "
        f"computes flavour {' or '.join(map(repr, wanted))}: {elsewhere}train with "
        f"--config.model.flavour={wanted[0]}"
    )
