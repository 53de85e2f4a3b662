"""Turns trained weights into a function from face images to log-probabilities, in JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from agenet.data.augment import make_eval_transform
from agenet.errors import UserError
from agenet.models import create_model
from agenet.places.weights import find_weights
from agenet.training.finished_run import read_run_weights
from agenet.training.losses import describe_heads, log_probabilities
from agenet.weights.bundled import DEFAULT
from agenet.weights.load import Weights, load_into, read_weights
from agenet.weights.spec import WeightsSpec

Forward = Callable[[jax.Array], dict[str, jax.Array]]
Predict = Callable[[Any, jax.Array], dict[str, jax.Array]]

_NORM_BEFORE_HEADS = "params/heads/bn/scale"


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that predicts age, gender or both."""

    weights: Weights

    @property
    def spec(self) -> WeightsSpec:
        return self.weights.spec

    @property
    def stored_size(self) -> int:
        """Side in pixels of the square images that `make_forward`'s function takes.

        As in training, images are stored at this size and cropped to the network's input size,
        see `agenet.data.decoding`.
        """
        return self.spec.stored_size

    def create(self) -> tuple[Predict, Any]:
        """The network as a function of its variables, and these.

        Returns:
            `predict(variables, images float32 [B, S, S, 3]) -> {task: log-probabilities [B, C]}`,
            for normalised images of the input's size, and the variables. A head that predicts age
            by year adds the key `years`, see `agenet.training.losses.log_probabilities`.
        """
        spec = self.spec
        _, ordinal = describe_heads(spec.heads)
        model = create_model(
            spec.model,
            spec.classes,
            flavour=spec.flavour,
            ordinal=ordinal,
            extra_layers=_NORM_BEFORE_HEADS in self.weights.tensors,
        )
        size = spec.input.size
        shapes: Any = jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        )
        variables = load_into({"batch_stats": {}} | shapes, self.weights, new=())

        def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            logits: Any = model.apply(variables, images, train=False)
            outputs: dict[str, jax.Array] = {}
            for task, head in spec.heads.items():
                outputs |= log_probabilities(task, head, logits[task])
            return outputs

        return predict, variables

    def create_for_stored(self) -> tuple[Predict, Any]:
        """As `create`, but for images uint8 [B, S, S, 3], S being `stored_size`."""
        expected = self.spec.input
        predict, variables = self.create()
        transform = make_eval_transform(expected.size, expected.mean, expected.std)
        return lambda variables, images: predict(variables, transform(images)), variables

    def make_forward(self) -> Forward:
        """Returns `forward(images uint8 [B, S, S, 3]) -> {task: log-probabilities [B, C]}`.

        S is `stored_size`. For `years` see `create`.
        """
        predict, variables = self.create_for_stored()

        def forward(images: jax.Array) -> dict[str, jax.Array]:
            return predict(variables, images)

        return forward


def load_network(name_or_path: str | Path = DEFAULT) -> TrainedNetwork:
    """Loads the network of a weights file, of a run, or the bundled one.

    Args:
        name_or_path: "default" (the bundled weights), a safetensors file written by agenet, the
            `--workdir` of a run, "hf://user/name", or the address of a file or a run.

    Raises:
        UserError: there are no such weights, or they predict neither age nor gender.
    """
    path = find_weights(name_or_path)
    weights = read_run_weights(path) if path.is_dir() else read_weights(path)
    spec = weights.spec
    if not spec.heads:
        tasks = ", ".join(spec.classes) or "nothing, without heads"
        raise UserError(
            f"{path}: weights of {spec.model} that predict {tasks}: for age and gender train with "
            f"--config.init={path}, and give the --workdir of that run"
        )
    return TrainedNetwork(weights)
