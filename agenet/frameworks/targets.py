"""Frameworks that agenet's weights can be written for, and how each names and runs a network."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks import caffe, keras_networks, keras_weights, networks, torch_networks
from agenet.frameworks.exports import COMPOSED, Constructor, Export
from agenet.weights.formats import note
from agenet.weights.formats.caffe import read as read_caffemodel

_RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_EFFICIENTNETS = tuple(f"efficientnet_b{i}" for i in range(8))
_EFFICIENTNETS_V2 = tuple(f"efficientnet_v2_b{i}" for i in range(4))


class Target(ABC):
    """A framework.

    Attributes:
        names: its name map, a key of `agenet.weights.names.MAPS`.
        suffixes: of the files it reads.
        known: by agenet's name of a network, the flavours that can be written and the name there.
    """

    names: str
    suffixes: tuple[str, ...]
    known: dict[str, dict[str, str]]

    def names_of(self, model: str) -> str:
        """The name map of one network."""
        return self.names

    @abstractmethod
    def why_not(self, suffix: str, check: bool) -> str:
        """What to install before a file can be written, or checked; empty if nothing."""

    @abstractmethod
    def write(self, exported: Export, path: Path) -> str:
        """Writes a file and returns Python code that loads it.

        The code has {path} in place of the file's path. It may need a second file, which is written
        beside the first one, and has {beside} in place of that one's path.
        """

    @abstractmethod
    def run(self, exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, C] that the framework computes with the file for pixels [B, S, S, 3]."""

    def takes(self, exported: Export) -> str:
        """What the network there takes as its input."""
        return "RGB, normalised as above"


class Torchvision(Target):
    """State dictionaries of torchvision's networks, and of those that agenet composes of them."""

    names = "torchvision"
    suffixes = (".safetensors", ".pth")
    known = {
        **{name: {"torchvision": name} for name in (*_RESNETS, *_EFFICIENTNETS)},
        **{name: {flavour: name} for name, flavour in COMPOSED.items()},
    }

    def why_not(self, suffix: str, check: bool) -> str:
        return networks.why_not(self.names) if check or suffix != ".safetensors" else ""

    def constructor(self, exported: Export) -> Constructor:
        if exported.is_composed:
            return exported.composed(torch_networks.create_torch)
        name = f"torchvision.models.{exported.name}"
        return Constructor(name, keywords={"num_classes": exported.classes})

    def write(self, exported: Export, path: Path) -> str:
        constructor = self.constructor(exported)
        constructor.write_file(path)
        if path.suffix == ".safetensors":
            import safetensors.numpy

            spec = exported.weights.spec
            about = {"columns": exported.columns, "input": vars(spec.input), "heads": spec.heads}
            text = {name: json.dumps(value) for name, value in about.items()}
            metadata = {"format": "pt", **text, note.KEY: exported.note}
            # As any new file, not only for this user as the library's own function writes it.
            path.write_bytes(safetensors.numpy.save(exported.tensors, metadata))
            module, load = "safetensors.torch", "safetensors.torch.load_file({path})"
        else:
            import torch

            state = {name: torch.tensor(value) for name, value in exported.tensors.items()}
            torch.save(state, path)
            note.add_to_zip(path, exported.note)
            module, load = "torch", "torch.load({path}, weights_only=True)"
        return (
            f"import {constructor.module}, {module}; model = {constructor}; "
            f"model.load_state_dict({load}); model.eval()"
        )

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

    names = "timm"
    known = {
        **{name: {"torchvision": name} for name in _RESNETS},
        **{
            name: {"timm": name, "tensorflow": f"tf_{name}"}
            for name in (*_EFFICIENTNETS, *(f"efficientnet_lite{i}" for i in range(5)))
        },
        **{
            name: {"tensorflow": name.replace("efficientnet_v2", "tf_efficientnetv2")}
            for name in _EFFICIENTNETS_V2
        },
    }

    def names_of(self, model: str) -> str:
        return "torchvision" if model.startswith("resnet") else "timm"

    def constructor(self, exported: Export) -> Constructor:
        keywords = {"num_classes": exported.classes}
        return Constructor("timm.create_model", (exported.name,), keywords)


class Keras(Target):
    """Weights or whole models of Keras applications, and of networks that agenet composes."""

    names = "keras"
    suffixes = (".weights.h5", ".keras")
    known = {
        **{f"resnet{depth}": {"keras": f"ResNet{depth}"} for depth in (50, 101, 152)},
        **{name: {"tensorflow": f"EfficientNetB{name[-1]}"} for name in _EFFICIENTNETS},
        **{name: {"tensorflow": f"EfficientNetV2B{name[-1]}"} for name in _EFFICIENTNETS_V2},
        **{name: {flavour: name} for name, flavour in COMPOSED.items()},
    }

    def why_not(self, suffix: str, check: bool) -> str:
        return networks.why_not("keras")

    def takes(self, exported: Export) -> str:
        order = "BGR" if exported.name.startswith("ResNet") else "RGB"
        normalises = exported.name.startswith("EfficientNetB")
        return f"{order}, {'0 to 255, as it is' if normalises else 'normalised as above'}"

    def constructor(self, exported: Export) -> Constructor:
        if exported.is_composed:
            return exported.composed(keras_networks.create_keras)
        keywords = {
            "weights": None,
            "classes": exported.classes,
            "classifier_activation": None,
            "input_shape": (exported.size, exported.size, 3),
        }
        if exported.name.startswith("EfficientNetV2"):
            # It would normalise by ImageNet's constants, whatever the weights expect.
            keywords["include_preprocessing"] = False
        return Constructor(f"keras.applications.{exported.name}", keywords=keywords)

    def create(self, exported: Export) -> Any:
        keras_networks.import_keras()
        return self.constructor(exported).call()

    def write(self, exported: Export, path: Path) -> str:
        model, spec = self.create(exported), exported.weights.spec
        keras_weights.assign_keras(model, exported.tensors)
        mean, std = (np.array(rgb, np.float32) / 255 for rgb in (spec.input.mean, spec.input.std))
        # Composed networks take normalised input.
        for layer in [] if exported.is_composed else model.layers:
            if layer.name.startswith("normalization"):
                layer.set_weights([mean, std**2, np.zeros((), np.int64)])
                layer.finalize_state()
        if path.suffix == ".keras":
            model.save(path)
            note.add_to_zip(path, exported.note)
            return "import keras; model = keras.models.load_model({path})"
        model.save_weights(path)
        note.add_to_hdf5(path, exported.note)
        constructor = self.constructor(exported)
        constructor.write_file(path)
        return f"import {constructor.module}; model = {constructor}; model.load_weights({{path}})"

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

    names = "caffe"
    suffixes = (".caffemodel",)
    known = {"levi_hassner": {"caffe": "levi_hassner"}}

    def why_not(self, suffix: str, check: bool) -> str:
        # PyTorch computes the same network where OpenCV cannot read it.
        return caffe.why_not_opencv() if check and networks.why_not("torchvision") else ""

    def takes(self, exported: Export) -> str:
        return "BGR, normalised as above"

    def write(self, exported: Export, path: Path) -> str:
        caffe.write_caffemodel(path, exported.tensors, exported.note)
        layers = caffe.deploy_prototxt(exported.size, exported.classes)
        path.with_suffix(".prototxt").write_text(layers)
        code = "import cv2; model = cv2.dnn.readNetFromCaffe({beside}, {path})"
        return f"{code}  # OpenCV 4; logits are fc8"

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
