"""What JAX, PyTorch and Keras do alike in a comparison: the same work, for a subclass in each.

A framework takes and gives its variables by agenet's names, through the maps of
`agenet.weights.names`, so that all start from the same numbers and what comes out can be
subtracted. The network has one classifier of ten outputs, the eight age groups and the two
genders, and the loss is the sum of the two tasks' mean cross-entropies over what is known.

Where frameworks' own networks of a name differ (padding, constants of batch normalisation), all
compute as the one in `FLAVOURS`. What is left of differences is in `LEFT`.
"""

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from agenet.data.order import evaluation_batches, steps_per_epoch, training_batch
from agenet.errors import UserError
from agenet.frameworks.timing import Engine, Figures
from agenet.labels import TASK_CLASSES

Tensors = dict[str, np.ndarray]

# Those that every framework has, or can be brought to compute.
NETWORKS = {
    "levi_hassner": "Levi-Hassner",
    "resnet50": "ResNet-50",
    **{f"efficientnet_b{i}": f"EfficientNet-B{i}" for i in range(8)},
    "efficientnet_lite0": "EfficientNet-Lite0",
}
FLAVOURS = {"levi_hassner": "report", "resnet50": "torchvision", "efficientnet": "tensorflow"}
KERAS_ADAM = (
    "Keras adds Adam's epsilon to the root of the second moment before that is corrected for its "
    "start, PyTorch and Optax after"
)
LEFT = (
    "PyTorch divides the variances that it keeps for inference by n - 1, Keras by n, and JAX here "
    "as the library that the network follows",
    KERAS_ADAM,
)
AGE = len(TASK_CLASSES["age"])
OUTPUTS = AGE + len(TASK_CLASSES["gender"])
RATES = {"adam": 1e-4, "sgd": 1e-2}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all frameworks do alike.

    Attributes:
        model: the network's name in agenet.
        size: side of its input in pixels.
        dtype: "float32"; "bfloat16", mixed as each framework has it; or "float64".
        platform: "cpu" or "gpu".
        folder: where `write_faces` has put the data; the cost is measured on noise.
        optimizer: "adam" or "sgd" with momentum.
        regular: whether pictures are augmented and units and branches dropped.
        exact: whether a GPU's float32 is float32, not TF32.
        options: of the framework, see `VARIANTS`.
    """

    model: str
    size: int
    dtype: str = "float32"
    platform: str = "cpu"
    folder: Path = Path()
    optimizer: str = "adam"
    regular: bool = False
    exact: bool = False
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run a framework: options, in which words, where, environment.

    `asked` are the platforms where it takes so long to start that it must be asked for.
    """

    options: tuple[str, ...]
    text: str
    platforms: tuple[str, ...] = ("cpu", "gpu")
    dtype: str = "float32"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    asked: tuple[str, ...] = ()


_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CPU, _GPU = ("cpu",), ("gpu",)
# What people may choose from; "default" first.
VARIANTS: dict[str, dict[str, Variant]] = {
    "jax": {
        "default": Variant((), "agenet's networks, jax.jit"),
        "large pages": Variant((), "the same, memory in large pages", _CPU, environment=_PAGES),
        "bfloat16": Variant((), "the same in bfloat16", _GPU, "bfloat16"),
    },
    "torch": {
        "default": Variant((), "eager, NCHW"),
        "channels last": Variant(
            ("channels_last",), "eager, channels last, large pages", environment=_PAGES
        ),
        "compiled": Variant(
            ("channels_last", "compile", "tuned"),
            "torch.compile, channels last, large pages; on a GPU cudnn.benchmark, TF32, fused Adam",
            environment=_PAGES,
            asked=_CPU,
        ),
        "bfloat16": Variant(
            ("channels_last", "compile", "tuned"),
            "torch.compile, channels last, autocast to bfloat16, cudnn.benchmark, fused Adam",
            _GPU,
            "bfloat16",
        ),
    },
    # Keras leaves XLA out on a CPU, and takes it on a GPU.
    "keras": {
        "default": Variant((), "on TensorFlow"),
        "large pages": Variant((), "the same, memory in large pages", _CPU, environment=_PAGES),
        "with XLA": Variant(("jit",), "on TensorFlow, large pages", _CPU, environment=_PAGES),
        "without XLA": Variant(("no_jit",), "on TensorFlow", _GPU),
        "on JAX": Variant(("jax",), "on JAX, large pages", environment=_PAGES),
        "bfloat16": Variant((), "on TensorFlow, mixed_bfloat16", _GPU, "bfloat16"),
    },
}


def flavour_of(model: str) -> str:
    """Of the network as all frameworks compute it."""
    return FLAVOURS[model if model in FLAVOURS else model.partition("_")[0]]


@dataclasses.dataclass(frozen=True)
class Faces:
    """The data of a comparison, as `write_faces` left them.

    Attributes:
        images: uint8 [N, P, P, 3], P a little more than the network's input.
        labels: int32 [N, 2], age group and gender, -1 unknown.
        train, test: rows.
        mean, std: RGB.
    """

    images: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def inputs(self, rows: np.ndarray, size: int) -> np.ndarray:
        """The middle of pictures as the networks take them: float32 [B, size, size, 3]."""
        images = self.images[rows]
        corner = (images.shape[1] - size) // 2
        return self.normalise(images[:, corner : corner + size, corner : corner + size])

    def normalise(self, images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) - self.mean) / self.std


def write_faces(folder: Path, **arrays: np.ndarray) -> None:
    """The fields of `Faces`, a file each."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def read_faces(folder: Path) -> Faces:
    names = [field.name for field in dataclasses.fields(Faces)]
    return Faces(**{n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in names})


class Framework(Engine):
    """One of them; a subclass has the few things that each does its own way.

    `prepare` and `measure` of `Engine` time the stages "training" and "inference".
    """

    def __init__(self, work: Work) -> None:
        """Raises `UserError` if the framework's own backend is not on the platform asked for."""
        self.work = work
        self.setup()
        if (found := self.platform()) != work.platform:
            raise UserError(f"runs on the {found} here, not as --platform={work.platform} says")

    @functools.cached_property
    def faces(self) -> Faces:
        return read_faces(self.work.folder)

    @abstractmethod
    def platform(self) -> str:
        """Where the framework itself says that it runs, "cpu" or "gpu"."""

    @abstractmethod
    def setup(self) -> None:
        """Builds network and optimiser."""

    @abstractmethod
    def describe(self) -> Figures:
        """`versions`, and on which device."""

    @abstractmethod
    def assign(self, tensors: Tensors) -> None:
        """Takes these variables and begins anew with the optimiser."""

    @abstractmethod
    def variables(self) -> Tensors:
        """What the network has, by agenet's names, in float64 or float32."""

    @abstractmethod
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Answers in inference mode: [B, S, S, 3] to [B, OUTPUTS]."""

    @abstractmethod
    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        """Loss and gradients in training mode; running statistics may change."""

    @abstractmethod
    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """A batch where the computation is."""

    @abstractmethod
    def step(self, batch: Any) -> Any:
        """One step of training; the loss, perhaps still being computed."""

    @abstractmethod
    def infer(self, batch: Any) -> Any:
        """The logits of a placed batch, perhaps still being computed."""

    @abstractmethod
    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Random crops and mirror images of uint8 [B, P, P, 3], as numbers of 0 to 255."""

    def seed(self, seed: int) -> None:
        """Of dropout and augmentation, where a framework has one for the whole process."""

    def agree(
        self, initial: Path, out: Path, batch_size: int, steps: list[int], perturbed: bool
    ) -> Figures:
        """Writes logits, gradients and variables after some steps, without anything random.

        With `perturbed` every input value is off by one unit in its last place, up or down, in
        the precision of the computation: what comes of that is what rounding alone can do.
        """
        found: Tensors = {}
        self.assign(safetensors.numpy.load_file(initial))
        images, labels = self._batch(0, batch_size, perturbed)
        found["logits"] = self.logits(images)
        loss, grads = self.gradients(images, labels)
        found |= {f"gradients:{name}": np.array(value) for name, value in grads.items()}
        self.assign(safetensors.numpy.load_file(initial))
        losses = []
        for step in range(max(steps)):
            losses.append(float(self.step(self.place(*self._batch(step, batch_size, perturbed)))))
            if step + 1 in steps:
                # Copies: what they view is overwritten by the next step.
                now = {f"{step + 1}:{n}": np.array(v) for n, v in self.variables().items()}
                found |= now
        safetensors.numpy.save_file({n: np.ascontiguousarray(v) for n, v in found.items()}, out)
        return {"loss": loss, "losses": losses}

    def _batch(self, step: int, size: int, perturbed: bool) -> tuple[np.ndarray, np.ndarray]:
        rows = training_batch(self.faces.train, size, seed=0, step=step)
        images = self.faces.inputs(rows, self.work.size)
        if perturbed:
            up = np.random.default_rng(step).random(images.shape) < 0.5
            kind = ml_dtypes.bfloat16 if self.work.dtype == "bfloat16" else np.float32
            ends = np.where(up, np.inf, -np.inf).astype(kind)
            images = np.nextafter(images.astype(kind), ends).astype(np.float32)
        return images, self.faces.labels[rows]

    def train(
        self, initial: Path, out: Path, batch_size: int, epochs: int, seed: int
    ) -> Iterator[Figures]:
        """The figures of the test after each epoch; the answers of the last go to `out`.

        Raises:
            FloatingPointError: it has diverged.
        """
        faces = self.faces
        self.seed(seed)
        self.assign(safetensors.numpy.load_file(initial))
        each = steps_per_epoch(len(faces.train), batch_size)
        for epoch in range(epochs):
            losses = []
            for step in range(epoch * each, (epoch + 1) * each):
                rows = training_batch(faces.train, batch_size, seed=seed, step=step)
                if self.work.regular:
                    images = faces.normalise(self.augment(faces.images[rows], rows, epoch))
                else:
                    images = faces.inputs(rows, self.work.size)
                losses.append(self.step(self.place(images, faces.labels[rows])))
            training_loss = float(np.mean([float(loss) for loss in losses]))
            logits = self._test(batch_size)
            if not (np.isfinite(training_loss) and np.isfinite(logits).all()):
                raise FloatingPointError(
                    f"training has diverged: its loss in epoch {epoch + 1} is {training_loss}"
                )
            np.save(out, logits)
            figures = test_figures(logits, faces.labels[faces.test])
            yield {"training_loss": training_loss} | figures

    def train_all(
        self, initial: Path, out: Path, batch_size: int, epochs: int, seed: int
    ) -> list[Figures]:
        return list(self.train(initial, out, batch_size, epochs, seed))

    def _test(self, batch_size: int) -> np.ndarray:
        parts = []
        for rows, mask in evaluation_batches(self.faces.test, batch_size):
            parts.append(self.logits(self.faces.inputs(rows, self.work.size))[mask])
        return np.concatenate(parts)

    def build(self, stage: str, batch: int) -> Figures:
        rng = np.random.default_rng(0)
        images = rng.standard_normal((batch, self.work.size, self.work.size, 3), np.float32)
        labels = np.stack([rng.integers(0, AGE, batch), rng.integers(0, 2, batch)], 1)
        placed = self.place(images, labels.astype(np.int32))
        function = self.step if stage == "training" else self.infer

        def call() -> None:
            self.result = function(placed)

        self.call = call
        return {}


def test_figures(logits: np.ndarray, labels: np.ndarray) -> Figures:
    """Accuracy and mean negative log-likelihood of each task over known labels."""
    figures: Figures = {}
    for column, task in enumerate(TASK_CLASSES):
        part = logits[:, :AGE] if task == "age" else logits[:, AGE:]
        known = labels[:, column] >= 0
        part, truth = part[known].astype(np.float64), labels[known, column]
        part = part - part.max(1, keepdims=True)
        log_probs = part - np.log(np.exp(part).sum(1, keepdims=True))
        figures[f"{task}_accuracy"] = float((part.argmax(1) == truth).mean())
        figures[f"{task}_loss"] = float(-log_probs[np.arange(len(truth)), truth].mean())
    return figures
