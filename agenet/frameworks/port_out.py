"""Weights of ours as a network of torchvision or of Keras applications, ready to open there.

What stands in the place of their classifier are the heads beside each other: a network with the
heads age and gender has ten outputs, of which the first eight are of age.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks import keras_networks, networks, torch_networks
from agenet.weights.names import keras, torchvision

if TYPE_CHECKING:
    from agenet.weights.load import Weights

SUFFIXES: dict[str, tuple[str, ...]] = {
    "torchvision": (".safetensors", ".pth"),
    "keras": (".weights.h5", ".keras"),
}
# Networks that no library has, composed in torch_networks.py and keras_networks.py, and the flavour
# that they compute.
WRITTEN_OUT = {"levi_hassner": "report", "efficientnet_lite0": "tensorflow"}
TOLERANCE = 1e-4
EXTRA_LAYER = "params/heads/bn/scale"

Columns = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Export:
    """Weights as another framework has them.

    Attributes:
        name: of the network there, such as "resnet50" or "EfficientNetB0".
        tensors: by the framework's names and in its layout.
        columns: first output of each head, and the one after its last.
    """

    weights: "Weights"
    target: str
    name: str
    tensors: dict[str, np.ndarray]
    columns: Columns

    @property
    def classes(self) -> int:
        return max(end for _, end in self.columns.values())


def export(weights: "Weights", target: str) -> Export:
    """Translates names and layout; needs no other framework.

    Raises:
        UserError: the target has no such network, or no place for such heads.
    """
    spec = weights.spec
    name = _their_name(spec.model, spec.flavour, target)
    fill_network(weights)  # Raises for what is missing.
    tensors, columns = one_head(weights)
    to_theirs: Any = {"torchvision": torchvision.from_agenet, "keras": keras.from_agenet}[target]
    if name in WRITTEN_OUT:
        written_out = {"torchvision": torch_networks, "keras": keras_networks}[target]
        to_theirs = written_out.from_agenet
    return Export(weights, target, name, to_theirs(tensors, spec.model), columns)


def fill_network(weights: "Weights") -> tuple[Any, Any]:
    """The network that the weights are of, and its variables.

    Raises:
        UserError: the weights are not exactly those of the network.
    """
    import jax

    from agenet.models import create_model
    from agenet.training.losses import describe_heads
    from agenet.training.state import create_variables
    from agenet.weights.load import load_into

    spec = weights.spec
    network = create_model(
        spec.model,
        spec.classes,
        flavour=spec.flavour,
        ordinal=describe_heads(spec.heads)[1],
        extra_layers=EXTRA_LAYER in weights.tensors,
    )
    size = network.backbone.input_size if spec.source != "agenet" else spec.input.size
    template = jax.eval_shape(lambda: create_variables(network, size, 0))
    return network, load_into(template, weights, new=())


def one_head(weights: "Weights") -> tuple[dict[str, np.ndarray], Columns]:
    """The tensors with all heads beside each other as one, and where each of them is.

    Raises:
        UserError: there is no head, or one that is no affine map of the features.
    """
    spec = weights.spec
    odd = [task for task in spec.classes if spec.heads.get(task) == "ordinal"]
    if odd or EXTRA_LAYER in weights.tensors:
        what = f"its head of {odd[0]} is ordinal" if odd else "it was trained with extra layers"
        raise UserError(f"--to: {what}, which a plain classifier cannot stand for")
    if not spec.classes:
        raise UserError("--to: these weights have no heads: train some, or name other weights")
    tensors = {n: t for n, t in weights.tensors.items() if not n.startswith("params/heads/")}
    columns, first = {}, 0
    for task, count in spec.classes.items():
        columns[task] = (first, first + count)
        first += count
    for leaf in ("kernel", "bias"):
        parts = [weights.tensors[f"params/heads/{task}/{leaf}"] for task in spec.classes]
        tensors[f"params/heads/classes/{leaf}"] = np.concatenate(parts, axis=-1)
    return tensors, columns


def split_head(tensors: Mapping[str, np.ndarray], columns: Columns) -> dict[str, np.ndarray]:
    """The inverse of `one_head`, whatever the one head is called."""
    result = {n: t for n, t in tensors.items() if not n.startswith("params/heads/")}
    for name in tensors.keys() - result.keys():
        leaf = name.rpartition("/")[2]
        for task, (first, end) in columns.items():
            result[f"params/heads/{task}/{leaf}"] = tensors[name][..., first:end]
    return result


def write(exported: Export, output: Path, check: bool) -> str:
    """Writes the file that opens there, and says how; with `check` only if it answers as ours.

    Raises:
        UserError: the suffix is of no file of the target's, the target is not installed, or its
            network answers differently.
    """
    target, suffixes = exported.target, SUFFIXES[exported.target]
    if target == "keras" and exported.name in WRITTEN_OUT:
        suffixes = suffixes[:1]  # A whole model with layers of ours would not open there.
    if not output.name.endswith(suffixes):
        raise UserError(f"{output}: --to {target} writes {' or '.join(suffixes)}")
    needed = check or output.suffix != ".safetensors"
    if needed and (message := networks.why_not(target)):
        raise UserError(message)
    writer: Callable[[Export, Path], str]
    writer, run = {
        "torchvision": (_write_torchvision, _run_torchvision),
        "keras": (_write_keras, _run_keras),
    }[target]
    # Beside its place, so that a half-written file never has its name.
    with tempfile.TemporaryDirectory(dir=output.resolve().parent) as folder:
        path = Path(folder, output.name)
        how = writer(exported, path)
        if check:
            _compare(exported, run, path)
        path.replace(output)
    return how.replace("PATH", repr(str(output)))


def create_torchvision(exported: Export) -> Any:
    """Torchvision's network, or the one written out here, in inference mode."""
    models = networks.import_torchvision().models
    if exported.name in WRITTEN_OUT:
        size = exported.weights.spec.input.size
        return torch_networks.create_torch(exported.name, size, exported.classes).eval()
    return getattr(models, exported.name)(num_classes=exported.classes).eval()


def create_keras(exported: Export) -> Any:
    """The network of Keras applications, or the one written out here."""
    applications, classes = networks.import_keras().applications, exported.classes
    if exported.name in WRITTEN_OUT:
        size = exported.weights.spec.input.size
        return keras_networks.create_keras(exported.name, size, classes)
    shape = (*(exported.weights.spec.input.size,) * 2, 3)
    create = getattr(applications, exported.name)
    return create(weights=None, classes=classes, classifier_activation=None, input_shape=shape)


def _written_out(exported: Export, function: str) -> str:
    """How to create a network of ours there, from this repository's folder."""
    arguments = f"{exported.name!r}, {exported.weights.spec.input.size}, {exported.classes}"
    return f"model = agenet.frameworks.{function}({arguments})"


def _their_name(model: str, flavour: str, target: str) -> str:
    known = {
        "torchvision": {name: name for name in networks.NETWORKS["torchvision"]},
        "keras": {
            **{f"resnet{depth}": f"ResNet{depth}" for depth in (50, 101, 152)},
            **{f"efficientnet_b{i}": f"EfficientNetB{i}" for i in range(8)},
        },
    }[target]
    known |= {name: name for name in WRITTEN_OUT}
    if model not in known:
        raise UserError(f"--to {target}: there is no {model} there, only {', '.join(known)}")
    keras_flavour = "keras" if model.startswith("resnet") else "tensorflow"
    wanted = {"torchvision": "torchvision", "keras": keras_flavour}[target]
    wanted = WRITTEN_OUT.get(model, wanted)
    if flavour != wanted:
        other = "keras" if target == "torchvision" else "torchvision"
        elsewhere = f"try --to {other}, or " * (model not in WRITTEN_OUT)
        raise UserError(
            f"--to {target}: these weights of {model} are of flavour {flavour!r}, and its network "
            f"computes as flavour {wanted!r}: {elsewhere}train with "
            f"--config.model.flavour={wanted}"
        )
    return known[model]


def _write_torchvision(exported: Export, path: Path) -> str:
    spec = exported.weights.spec
    create = f"model = torchvision.models.{exported.name}(num_classes={exported.classes})"
    if exported.name in WRITTEN_OUT:
        create = _written_out(exported, "torch_networks.create_torch")
    if path.suffix == ".safetensors":
        import safetensors.numpy

        about = {"columns": exported.columns, "input": vars(spec.input), "heads": spec.heads}
        text = {name: json.dumps(value) for name, value in about.items()}
        safetensors.numpy.save_file(exported.tensors, path, {"format": "pt", **text})
        return f"{create}; model.load_state_dict(safetensors.torch.load_file(PATH))"
    import torch

    torch.save({name: torch.tensor(value) for name, value in exported.tensors.items()}, path)
    return f"{create}; model.load_state_dict(torch.load(PATH, weights_only=True))"


def _write_keras(exported: Export, path: Path) -> str:
    spec = exported.weights.spec
    model = create_keras(exported)
    keras_networks.assign_keras(model, exported.tensors)
    if exported.name in WRITTEN_OUT:
        model.save_weights(path)
        create = _written_out(exported, "keras_networks.create_keras")
        return f"{create}; model.load_weights(PATH)"
    mean, std = (np.array(values, np.float32) / 255 for values in (spec.input.mean, spec.input.std))
    for layer in model.layers:
        if layer.name.startswith("normalization"):
            layer.set_weights([mean, std**2, np.zeros((), np.int64)])
            layer.finalize_state()
    if path.suffix == ".keras":
        model.save(path)
        return "model = keras.models.load_model(PATH)"
    model.save_weights(path)
    size = spec.input.size
    return (
        f"model = keras.applications.{exported.name}(weights=None, classes={exported.classes}, "
        f"classifier_activation=None, input_shape=({size}, {size}, 3)); model.load_weights(PATH)"
    )


def _run_torchvision(exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
    import torch

    model = create_torchvision(exported)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        model.load_state_dict(load_file(path))
    else:
        model.load_state_dict(torch.load(path, weights_only=True))
    images = np.ascontiguousarray(_normalised(exported, pixels).transpose(0, 3, 1, 2))
    with torch.no_grad():
        return model(torch.tensor(images)).numpy()


def _run_keras(exported: Export, path: Path, pixels: np.ndarray) -> np.ndarray:
    if path.suffix == ".keras":
        model = networks.import_keras().models.load_model(path)
    else:
        model = create_keras(exported)
        model.load_weights(path)
    images = _normalised(exported, pixels) if takes_normalised(exported) else pixels
    images = images[..., ::-1] if exported.name.startswith("ResNet") else images
    return np.asarray(model(np.ascontiguousarray(images), training=False))


def takes_normalised(exported: Export) -> bool:
    """Whether Keras's network leaves it to others to normalise its input."""
    return not exported.name.startswith("EfficientNet")


def _normalised(exported: Export, pixels: np.ndarray) -> np.ndarray:
    spec = exported.weights.spec.input
    return ((pixels - spec.mean) / spec.std).astype(np.float32)


def _compare(
    exported: Export, run: Callable[[Export, Path, np.ndarray], np.ndarray], path: Path
) -> None:
    """Prints the largest relative difference of the logits of random pictures.

    Raises:
        UserError: it is more than rounding.
    """
    import jax

    spec = exported.weights.spec
    size = spec.input.size
    pixels = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    network, variables = fill_network(exported.weights)
    with jax.default_matmul_precision("float32"):
        logits = jax.jit(network.apply)(variables, _normalised(exported, pixels))
    ours = np.concatenate([logits[task] for task in exported.columns], axis=-1)
    theirs = run(exported, path, pixels)
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    # Not `>`: a difference that is no number is none to accept.
    if not difference <= TOLERANCE:
        raise UserError(
            f"--check: {exported.target}'s logits differ relatively by {difference:.1e}"
        )
    print(f"largest relative difference of {exported.target}'s logits: {difference:.1e}")
