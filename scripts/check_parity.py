"""Compares our networks with those of the frameworks that their weights come from.

python scripts/check_parity.py [--only=keras] [--size=97]

Weights take the same way as a user's: the framework saves a file, and agenet.weights reads and
loads it. Prints a Markdown table of the largest relative differences, max |ours - theirs| /
max |theirs|, in float32 on a CPU, and ends with an error if one exceeds 1e-4. For gradients the
limit is 1e-3, since a deep network amplifies rounding errors: PyTorch's gradients of
EfficientNet-B0 in training differ by 7e-4 between float32 and float64, and ours, with frozen
statistics at 64 pixels, differ by 2e-5 to 4e-4 from Keras's, depending on the weights' seed.
Gradients and running statistics are compared leaf by leaf. Leaves with values below a hundredth of
the largest leaf's are measured relative to that hundredth, since some gradients are zero up to
rounding.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.networks import NETWORKS, Network, create, why_not
from agenet.models import create_model
from agenet.weights.load import load_into, read_weights

LIMIT = 1e-4
GRADIENT_LIMIT = 1e-3
# Gradients take long to compile: one network of each family, and whether it has activations with
# kinks (ReLU), which need weights that keep rounding from crossing them.
GRADIENTS = {
    ("torchvision", "resnet50"): True,
    ("torchvision", "efficientnet_b0"): False,
    ("keras", "ResNet50"): True,
    ("keras", "EfficientNetB0"): False,
    ("keras", "EfficientNetV2B0"): False,
    ("lite", "efficientnet-lite0"): True,
}

Differences = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table.

    Raises:
        UserError: a difference exceeds its limit, or no network matches --only.
    """
    parser = ArgumentParser(description="Parity of our networks with the original frameworks.")
    parser.add_argument("--only", default="", help="sources or networks whose name contains this")
    parser.add_argument("--size", type=int, help="side of the input (default: the network's own)")
    flags = parser.parse_args(arguments)
    columns = ("features", "logits", "gradients", "gradients, training", "statistics")
    print(f"| source | network | input | {' | '.join(columns)} |")
    print("|---|---|---|" + "---|" * len(columns))
    exceeded = []
    chosen = [(s, n) for s, names in NETWORKS.items() for n in names if flags.only in f"{s} {n}"]
    if not chosen:
        raise UserError(f"--only={flags.only}: no network has this in its name")
    for source, name in chosen:
        if message := why_not(source):
            print(f"| {source} | {name} | | not installed: {message} |", flush=True)
            continue
        network = create(source, name, size=flags.size)
        differences = compare(network)
        if (source, name) in GRADIENTS:
            differences |= compare_gradients(source, name)
        cells = (f"{differences[c]:.0e}" if c in differences else "" for c in columns)
        print(f"| {source} | {name} | {network.size} | {' | '.join(cells)} |", flush=True)
        exceeded += [f"{source} {name}: {what}" for what in too_large(differences)]
    if exceeded:
        raise UserError(f"differences exceed their limits: {', '.join(exceeded)}")


def too_large(differences: Differences) -> list[str]:
    """Returns the names of the differences that exceed their limit."""
    limits = {name: GRADIENT_LIMIT if "gradients" in name else LIMIT for name in differences}
    return [name for name, value in differences.items() if not value < limits[name]]


def compare(network: Network, suffix: str = "") -> Differences:
    """Returns the largest relative differences of features and logits from those of `network`.

    `suffix` selects the format of the file that carries the weights over.
    """
    images = random_images(network, batch=2)
    model, variables = create_ported(network, images, suffix)

    @jax.jit
    def run(variables: Any, images: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
        features = model.apply(variables, images, method="features")
        return features, model.apply(variables, images)

    features, logits = run(variables, images)
    expected = network.run(images)
    return {
        "features": relative_difference(features, expected[0]),
        "logits": relative_difference(logits[next(iter(network.classes))], expected[1]),
    }


def compare_gradients(source: str, name: str, size: int = 160) -> Differences:
    """Returns the largest relative differences of gradients and of updated running statistics.

    Gradients are taken with the running statistics ("gradients") and with those of the batch
    ("gradients, training"), statistics after one training step.
    """
    network = create(source, name, size=size, steady=GRADIENTS[source, name])
    # The batch's own statistics need enough values per channel.
    images = random_images(network, batch=8)
    model, variables = create_ported(network, images)
    differences: Differences = {}
    for train in (False, True):
        differences |= _compare_step(network, model, variables, images, train)
    return differences


def create_ported(network: Network, images: np.ndarray, suffix: str = "") -> tuple[Any, Any]:
    """Returns our network and its variables, read from a file that `network` saved."""
    options: dict[str, Any] = {"drop_path_rate": 0.0} if "efficientnet" in network.model else {}
    model = create_model(network.model, network.classes, flavour=network.flavour, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])
    return model, through_a_file(network, shapes, suffix)


def _compare_step(
    network: Network, model: Any, variables: Any, images: np.ndarray, train: bool
) -> Differences:
    (task, classes), *_ = network.classes.items()
    shape = (len(images), classes)
    direction = np.random.default_rng(2).normal(size=shape).astype(np.float32)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, changed = model.apply(
            variables | {"params": params}, images, train=train, mutable=["batch_stats"]
        )
        return (logits[task] * direction).sum(), changed

    grads, changed = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    expected = through_a_file(network.backward(images, direction, train), variables)
    if not train:
        return {"gradients": _largest_difference(grads, expected["params"])}
    ours, theirs = changed["batch_stats"], expected["batch_stats"]
    # This PyTorch package divides variances by n - 1, the original TensorFlow release by n.
    if network.source == "lite":
        ours, theirs = _means(ours), _means(theirs)
    return {
        "gradients, training": _largest_difference(grads, expected["params"]),
        "statistics": _largest_difference(ours, theirs),
    }


def _means(batch_stats: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(batch_stats)
    return [leaf for path, leaf in leaves if path[-1].key == "mean"]


def random_images(network: Network, batch: int) -> np.ndarray:
    """Returns noise [batch, S, S, 3] in the range of the network's usual input."""
    scale = 64.0 if network.source == "caffe" else 1.0
    shape = (batch, network.size, network.size, 3)
    return (scale * np.random.default_rng(1).normal(size=shape)).astype(np.float32)


def through_a_file(network: Network, shapes: Any, suffix: str = "") -> Any:
    """Returns variables shaped like `shapes`, read from a file that `network` saved."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"weights{suffix or network.suffixes[0]}")
        network.save(path)
        weights = read_weights(path, model=network.model, flavour=network.flavour)
        return load_into(shapes, weights, new=())


def relative_difference(ours: Any, theirs: Any, floor: float = 0.0) -> float:
    """Returns max |ours - theirs| / max(max |theirs|, floor)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), floor))


def _largest_difference(ours: Any, theirs: Any) -> float:
    floor = 1e-2 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    differ: Callable[[Any, Any], float] = lambda a, b: relative_difference(a, b, floor)  # noqa: E731
    leaves: Iterator[float] = iter(jax.tree.leaves(jax.tree.map(differ, ours, theirs)))
    return max(leaves)


if __name__ == "__main__":
    with one_line_errors():
        main()
