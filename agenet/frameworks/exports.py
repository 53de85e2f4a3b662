"""Weights in the form of another framework, and the call that creates their network there."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agenet.weights.ported import Columns, Note

if TYPE_CHECKING:
    from agenet.weights.load import Weights

# Networks that neither torchvision nor Keras has, composed in torch_networks.py and
# keras_networks.py, and the flavour that they compute.
COMPOSED = {"levi_hassner": "report", "efficientnet_lite0": "tensorflow"}


@dataclass(frozen=True)
class Constructor:
    """A call that creates a network.

    Attributes:
        function: by its full name.
        arguments, keywords: of the call.
        file: the file that defines the function, if no library does.
    """

    function: str
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def module(self) -> str:
        """What Python code has to import for it."""
        return "runpy" if self.file else self.function.partition(".")[0]

    def __str__(self) -> str:
        """Python code with {beside} in place of the path of a copy of the file."""
        keywords = (f"{name}={value!r}" for name, value in self.keywords.items())
        name = self.function.rpartition(".")[2]
        function = f"runpy.run_path({{beside}})[{name!r}]" if self.file else self.function
        return f"{function}({', '.join([*map(repr, self.arguments), *keywords])})"

    def call(self) -> Any:
        return pkgutil.resolve_name(self.function)(*self.arguments, **self.keywords)

    def write_file(self, weights: Path) -> None:
        """Writes a copy of the file beside the weights, if no library has the network."""
        if self.file:
            name = weights.name.removesuffix(weights.suffix).removesuffix(".weights")
            weights.with_name(f"{name}.py").write_bytes(self.file.read_bytes())


@dataclass(frozen=True)
class Export:
    """Weights in the form of another framework.

    Attributes:
        weights: agenet's.
        target: the framework, a key of `TARGETS`.
        name: its name of the network, such as "resnet50" or "EfficientNetB0".
        names: the name map of the tensors, a key of `agenet.weights.names.MAPS`.
        tensors: by its names and in its layout.
        columns: of each head, its first output and the one after its last.
    """

    weights: "Weights"
    target: str
    name: str
    names: str
    tensors: dict[str, np.ndarray]
    columns: Columns

    @property
    def note(self) -> str:
        """What the file keeps for agenet, see `agenet.weights.ported`."""
        return Note(self.weights.spec, self.names, self.columns).to_json()

    @property
    def classes(self) -> int:
        return max(end for _, end in self.columns.values())

    @property
    def size(self) -> int:
        return self.weights.spec.input.size

    @property
    def is_composed(self) -> bool:
        return self.name in COMPOSED

    def composed(self, function: Callable[..., Any]) -> Constructor:
        """The constructor of a network that a function of `agenet.frameworks` composes."""
        return Constructor(
            f"{function.__module__}.{function.__name__}",
            (self.name, self.size, self.classes),
            file=Path(function.__code__.co_filename),
        )

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        spec = self.weights.spec.input
        return ((pixels - spec.mean) / spec.std).astype(np.float32)
