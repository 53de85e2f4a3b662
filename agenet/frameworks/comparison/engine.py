"""The task that all frameworks of a comparison perform, and their common base class.

A framework reads and returns its variables by agenet's names, so that all start from the same
values and results can be subtracted. The network has one classifier with ten outputs, for the eight
age groups and the two genders; the loss is the sum of the mean cross-entropies of both tasks, over
known labels.

Where libraries' networks of one name differ (padding, constants of batch normalisation), all
compute the flavour in `FLAVOURS`. `LEFT` lists the differences that remain.
"""

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Mapping
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

# Networks that every framework has, or that agenet composes in it.
NETWORKS = {
    "levi_hassner": "Levi-Hassner",
    "resnet50": "ResNet-50",
    **{f"efficientnet_b{i}": f"EfficientNet-B{i}" for i in range(8)},
    "efficientnet_lite0": "EfficientNet-Lite0",
}
FLAVOURS = {"levi_hassner": "report", "resnet50": "torchvision", "efficientnet": "tensorflow"}
KERAS_ADAM = (
    "Keras adds Adam's epsilon to the root of the second moment before its bias correction, "
    "PyTorch and Optax after it"
)
LEFT = (
    "PyTorch divides the running variances by n - 1, Keras by n, and JAX here like the library "
    "that the network comes from",
    KERAS_ADAM,
)
AGE = len(TASK_CLASSES["age"])
OUTPUTS = AGE + len(TASK_CLASSES["gender"])
RATES = {"adam": 1e-4, "sgd": 1e-2}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one framework is to do.

    Attributes:
        model: the network's name in agenet.
        size: side of its input in pixels.
        dtype: "float32"; "bfloat16", in each framework's mixed precision; or "float64".
        platform: "cpu" or "gpu".
        folder: data by `write_faces`; not used by the cost, which is measured on noise.
        optimizer: "adam" or "sgd" with momentum.
        regular: whether images are augmented, with dropout and stochastic depth.
        exact: whether a GPU computes in float32 instead of TF32.
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
    """A way to run a framework.

    Attributes:
        options: for the framework, see `Work`.
        text: what the options mean, for the page.
        platforms: where it can run.
        dtype: see `Work`.
        environment: variables to set for its process.
        asked: platforms where it starts so slowly that it runs only on request.
    """

    options: tuple[str, ...]
    text: str
    platforms: tuple[str, ...] = ("cpu", "gpu")
    dtype: str = "float32"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    asked: tuple[str, ...] = ()


_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CPU, _GPU = ("cpu",), ("gpu",)
# All variants, "default" first.
VARIANTS: dict[str, dict[str, Variant]] = {
    "jax": {
        "default": Variant((), "agenet's networks, jax.jit"),
        "large pages": Variant(
            (), "the default, with memory in large pages", _CPU, environment=_PAGES
        ),
        "bfloat16": Variant((), "the default, in bfloat16", _GPU, "bfloat16"),
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
    # By default Keras uses XLA on a GPU, not on a CPU.
    "keras": {
        "default": Variant((), "on TensorFlow"),
        "large pages": Variant(
            (), "the default, with memory in large pages", _CPU, environment=_PAGES
        ),
        "with XLA": Variant(("jit",), "on TensorFlow, large pages", _CPU, environment=_PAGES),
        "without XLA": Variant(("no_jit",), "on TensorFlow", _GPU),
        "on JAX": Variant(("jax",), "on JAX, large pages", environment=_PAGES),
        "bfloat16": Variant((), "on TensorFlow, mixed_bfloat16", _GPU, "bfloat16"),
    },
}


def flavour_of(model: str) -> str:
    """The flavour of the network in all frameworks."""
    return FLAVOURS[model if model in FLAVOURS else model.partition("_")[0]]


@dataclasses.dataclass(frozen=True)
class Faces:
    """Faces and labels of a comparison, see `write_faces`.

    Attributes:
        images: uint8 [N, P, P, 3], with P larger than the network's input by an eighth.
        labels: int32 [N, 2], age group and gender, -1 if unknown.
        train, test: rows of the two sets.
        mean, std: for normalisation, RGB, 0 to 255.
    """

    images: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def inputs(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Central crops as the networks take them: normalised, float32 [B, size, size, 3]."""
        images = self.images[rows]
        corner = (images.shape[1] - size) // 2
        return self.normalise(images[:, corner : corner + size, corner : corner + size])

    def normalise(self, images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) - self.mean) / self.std


def write_faces(folder: Path, **arrays: np.ndarray) -> None:
    """Writes each field of `Faces` to a file."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def read_faces(folder: Path) -> Faces:
    names = [field.name for field in dataclasses.fields(Faces)]
    return Faces(**{n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in names})


class Framework(Engine):
    """A framework that performs the task; subclasses fill in what each does in its own way.

    `prepare` and `measure` of `Engine` time the stages "training" and "inference".
    """

    def __init__(self, work: Work) -> None:
        """Raises `UserError` if the framework does not run on the platform that `work` names."""
        self.work = work
        self.setup()
        if (found := self.platform()) != work.platform:
            raise UserError(f"runs on the {found} here, not as --platform={work.platform} says")

    @functools.cached_property
    def faces(self) -> Faces:
        return read_faces(self.work.folder)

    @abstractmethod
    def platform(self) -> str:
        """Where the framework reports that it runs, "cpu" or "gpu"."""

    @abstractmethod
    def setup(self) -> None:
        """Creates network and optimizer."""

    @abstractmethod
    def describe(self) -> Figures:
        """Returns `versions` and `device`."""

    @abstractmethod
    def assign(self, tensors: Tensors) -> None:
        """Sets the variables and resets the optimizer."""

    @abstractmethod
    def variables(self) -> Tensors:
        """The network's variables by agenet's names, in float64 or float32."""

    @abstractmethod
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits in inference mode: [B, S, S, 3] to [B, OUTPUTS]."""

    @abstractmethod
    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        """Loss and gradients in training mode; running statistics may change."""

    @abstractmethod
    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """Puts a batch on the device."""

    @abstractmethod
    def step(self, batch: Any) -> Any:
        """Takes a training step and returns the loss, which may still be being computed."""

    @abstractmethod
    def infer(self, batch: Any) -> Any:
        """Logits of a placed batch, which may still be being computed."""

    @abstractmethod
    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Crops and flips uint8 [B, P, P, 3] at random; values stay 0 to 255."""

    def seed(self, seed: int) -> None:
        """Seeds dropout and augmentation, if the framework has one seed for the whole process."""

    def agree(
        self, initial: Path, out: Path, batch_size: int, steps: list[int], perturbed: bool
    ) -> Figures:
        """Writes logits, gradients and the variables after some steps, with nothing random.

        With `perturbed` every input value is changed by one unit in the last place, up or down, in
        the precision of the computation, which shows what rounding alone can cause.
        """
        found: Tensors = {}
        self.assign(safetensors.numpy.load_file(initial))
        images, labels = self._batch(0, batch_size, perturbed)
        found["logits"] = self.logits(images)
        loss, grads = self.gradients(images, labels)
        found |= {f"gradients:{name}": np.array(value) for name, value in grads.items()}
        self.assign(safetensors.numpy.load_file(initial))
        for step in range(max(steps)):
            self.step(self.place(*self._batch(step, batch_size, perturbed)))
            if step + 1 in steps:
                # Copies, since the next step overwrites the arrays.
                now = {f"{step + 1}:{n}": np.array(v) for n, v in self.variables().items()}
                found |= now
        safetensors.numpy.save_file({n: np.ascontiguousarray(v) for n, v in found.items()}, out)
        return {"loss": loss}

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
    ) -> list[Figures]:
        """Trains, tests after each epoch and returns the figures; writes the last logits to `out`.

        Raises:
            FloatingPointError: training has diverged.
        """
        faces = self.faces
        self.seed(seed)
        self.assign(safetensors.numpy.load_file(initial))
        each, results = steps_per_epoch(len(faces.train), batch_size), []
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
            figures = test_figures(logits, faces.labels[faces.test])
            results.append({"training_loss": training_loss} | figures)
        np.save(out, logits)
        return results

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


def split_tasks(logits: Any) -> dict[str, Any]:
    """Logits [B, OUTPUTS] by task."""
    return {"age": logits[:, :AGE], "gender": logits[:, AGE:]}


def test_figures(logits: np.ndarray, labels: np.ndarray) -> Figures:
    """Accuracy and mean negative log-likelihood of each task over known labels."""
    # Imported here because SciPy would count for a framework's start and memory.
    from scipy.special import log_softmax

    from agenet.evaluation.metrics import task_metrics

    figures: Figures = {}
    for column, (task, part) in enumerate(split_tasks(logits.astype(np.float64)).items()):
        metrics = task_metrics(task, log_softmax(part, axis=1), labels[:, column])
        figures |= {f"{task}_{name}": metrics[name] for name in ("accuracy", "loss")}
    return figures
