"""One network in JAX, PyTorch and Keras, for compare_frameworks.py: the same work in each.

A framework takes and gives its variables by agenet's names, through the maps of
`agenet.weights.names`, so that all start from the same numbers and what comes out can be
subtracted. The network has one classifier of ten outputs, the eight age groups and the two
genders, and the loss is the sum of the two tasks' mean cross-entropies over what is known.

Where frameworks' own networks of a name differ (padding, constants of batch normalisation), all
compute as the one in `FLAVOURS`. What is left of differences is in `LEFT`.
"""

import dataclasses
import importlib.util
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from agenet.data.order import evaluation_batches, steps_per_epoch, training_batch
from agenet.labels import TASK_CLASSES
from agenet.weights.names import keras as keras_names
from agenet.weights.names import torchvision as torchvision_names
from agenet.weights.names.common import from_torch, to_torch
from scripts.bench_engines import Engine, Figures

Tensors = dict[str, np.ndarray]

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
_DENSE = ("conv1", "conv2", "conv3", "fc1", "fc2")  # of Levi and Hassner's network
_RATES = {"adam": 1e-4, "sgd": 1e-2}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all frameworks do alike.

    Attributes:
        model: the network's name in agenet.
        size: side of its input in pixels.
        dtype: "float32"; "bfloat16", mixed as each framework has it; or "float64".
        platform: "cpu" or "gpu".
        folder: where `write_faces` has put the data.
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
    """A way to run a framework: options, in which words, where, environment."""

    options: tuple[str, ...]
    text: str
    platforms: tuple[str, ...] = ("cpu", "gpu")
    dtype: str = "float32"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CPU, _GPU = ("cpu",), ("gpu",)
# What people may choose from; "default" first, and "compiled" only where it is asked for.
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
            ("channels_last", "compile"),
            "torch.compile, channels last, large pages",
            environment=_PAGES,
        ),
        "bfloat16": Variant(
            ("channels_last",), "eager, channels last, autocast to bfloat16", _GPU, "bfloat16"
        ),
    },
    "keras": {
        "default": Variant((), "on TensorFlow, jit_compile as Keras chooses"),
        "without XLA": Variant(
            ("no_jit",), "on TensorFlow, jit_compile=False, large pages", environment=_PAGES
        ),
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
        self.work = work
        self.faces = read_faces(work.folder)
        self.setup()

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

        With `perturbed` every input value is off by one unit in its last place, up or down: what
        comes of that is what rounding alone can do.
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
            images = np.nextafter(images, np.where(up, np.inf, -np.inf).astype(np.float32))
        return images, self.faces.labels[rows]

    def train(
        self, initial: Path, out: Path, batch_size: int, epochs: int, seed: int
    ) -> Iterator[Figures]:
        """The figures of the test after each epoch; the answers of the last go to `out`."""
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
            logits = self._test(batch_size)
            np.save(out, logits)
            figures = test_figures(logits, faces.labels[faces.test])
            yield {"training_loss": float(np.mean([float(loss) for loss in losses]))} | figures

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


class Jax(Framework):
    """This package's own network, its loss and its augmentation, with an Optax optimiser."""

    result: Any = None

    def setup(self) -> None:
        import jax
        import jax.numpy as jnp
        import optax
        from flax.traverse_util import flatten_dict, unflatten_dict

        from agenet.data.augment import Augmentation, example_keys, make_train_transform
        from agenet.losses import example_losses
        from agenet.models import create_model

        jax.config.update("jax_enable_compilation_cache", False)
        if self.work.exact:
            jax.config.update("jax_default_matmul_precision", "float32")
        self.jax, self.flatten, self.unflatten = jax, flatten_dict, unflatten_dict
        self.pipelined = jax.devices()[0].platform != "cpu"
        work = self.work
        rates: Any = {"dropout_rate": (0.5 if work.model == "levi_hassner" else 0.2) * work.regular}
        if "efficientnet" in work.model:
            rates["drop_path_rate"] = 0.2 * work.regular
        model = create_model(
            work.model,
            {"classes": OUTPUTS},
            flavour=flavour_of(work.model),
            dtype=work.dtype,
            **rates,
        )
        rate = _RATES[work.optimizer]
        tx = optax.adam(rate) if work.optimizer == "adam" else optax.sgd(rate, momentum=0.9)
        self.tx = tx

        def loss_fn(params: Any, stats: Any, batch: Any, rng: Any) -> tuple[Any, Any]:
            images, labels = batch
            logits, updates = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": rng},
            )
            truth = {"mask": jnp.ones(len(labels), bool), "age": labels[:, 0]}
            truth["gender"] = labels[:, 1]
            loss = jnp.zeros(())
            parts = {"age": logits["classes"][:, :AGE], "gender": logits["classes"][:, AGE:]}
            for (task, part), head in zip(parts.items(), ("groups", "softmax"), strict=True):
                losses, known = example_losses(task, head, part, truth)
                loss += losses.sum() / jnp.maximum(known.sum(), 1)
            return loss, updates.get("batch_stats", {})

        def step(state: Any, batch: Any) -> Any:
            params, stats, opt_state, rng, count = state
            keys = jax.random.fold_in(rng, count)
            (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, stats, batch, keys
            )
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, stats, opt_state, rng, count + 1), loss

        self._step = jax.jit(step, donate_argnums=0)
        self._gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

        def apply(params: Any, stats: Any, images: Any) -> Any:
            logits: Any = model.apply({"params": params, "batch_stats": stats}, images)
            return logits["classes"]

        self._apply = jax.jit(apply)
        transform = make_train_transform(work.size, (0.0,) * 3, (1.0,) * 3, Augmentation())
        self._augment = jax.jit(
            lambda rng, images, rows, epoch: transform(images, example_keys(rng, epoch, rows))
        )
        self.rng = jax.random.key(0)
        # What a run begins with where nothing is assigned: zeros cost as much as other numbers.
        shapes: Any = jax.eval_shape(
            model.init, jax.random.key(0), np.zeros((1, work.size, work.size, 3))
        )
        self._begin(jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-3, np.float32), shapes))

    def _begin(self, variables: Any) -> None:
        params, stats = variables["params"], variables.get("batch_stats", {})
        state = (params, stats, self.tx.init(params), self.rng, 0)
        self.state = self.jax.tree.map(self.jax.numpy.array, state)

    def describe(self) -> Figures:
        import flax

        device = self.jax.devices()[0]
        return {
            "versions": {"jax": self.jax.__version__, "flax": flax.__version__},
            "device": device.device_kind,
        }

    def seed(self, seed: int) -> None:
        self.rng = self.jax.random.key(seed)

    def assign(self, tensors: Tensors) -> None:
        self._begin(self.unflatten(tensors, sep="/"))

    def variables(self) -> Tensors:
        tree = {"params": self.state[0], "batch_stats": self.state[1]}
        return {name: np.asarray(leaf) for name, leaf in self.flatten(tree, sep="/").items()}

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._apply(self.state[0], self.state[1], images))

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        (loss, _), grads = self._gradients(
            self.state[0], self.state[1], (images, np.asarray(labels)), self.rng
        )
        flat = self.flatten({"params": grads}, sep="/")
        return float(loss), {name: np.asarray(leaf) for name, leaf in flat.items()}

    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        return self.jax.device_put((images, np.asarray(labels)))

    def step(self, batch: Any) -> Any:
        self.state, loss = self._step(self.state, batch)
        return loss

    def infer(self, batch: Any) -> Any:
        return self._apply(self.state[0], self.state[1], batch[0])

    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        return np.asarray(self._augment(self.rng, images, rows, epoch))

    def synchronise(self) -> None:
        self.jax.block_until_ready(self.result)

    def peak(self) -> int:
        stats = self.jax.devices()[0].memory_stats() or {}
        return int(stats.get("peak_bytes_in_use") or super().peak())


class Torch(Framework):
    """torchvision's networks, and Levi and Hassner's written out."""

    result: Any = None

    def setup(self) -> None:
        import torch

        self.torch, work = torch, self.work
        self.device = "cuda" if work.platform == "gpu" else "cpu"
        self.pipelined = self.device == "cuda"
        torch.backends.cudnn.allow_tf32 = not work.exact  # as it is by default
        self.dtype = torch.float64 if work.dtype == "float64" else torch.float32
        self.module = create_torch(work).to(self.device, self.dtype)
        self.format = torch.contiguous_format
        if "channels_last" in work.options:
            self.format = torch.channels_last
            self.module = self.module.to(memory_format=self.format)
        self.run = torch.compile(self.module) if "compile" in work.options else self.module
        self.cast = torch.autocast(self.device, torch.bfloat16, enabled=work.dtype == "bfloat16")
        self._begin()

    def _begin(self) -> None:
        rate, parameters = _RATES[self.work.optimizer], self.module.parameters()
        optim = self.torch.optim
        sgd = self.work.optimizer == "sgd"
        self.tx: Any = optim.SGD(parameters, rate, 0.9) if sgd else optim.Adam(parameters, rate)

    def describe(self) -> Figures:
        from scripts.frameworks import import_torchvision

        cuda = self.device == "cuda"
        return {
            "versions": {
                "torch": self.torch.__version__,
                "torchvision": import_torchvision().__version__,
            },
            "device": self.torch.cuda.get_device_name() if cuda else "cpu",
        }

    def seed(self, seed: int) -> None:
        self.torch.manual_seed(seed)

    def assign(self, tensors: Tensors) -> None:
        theirs = torch_names(tensors, self.work.model)
        state = {name: self.torch.tensor(value) for name, value in theirs.items()}
        missing, strange = self.module.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        assert not missing and not strange, (missing, strange)
        self._begin()

    def variables(self) -> Tensors:
        return self._ours(self.module.state_dict())

    def _ours(self, state: Mapping[str, Any]) -> Tensors:
        # The running statistics tell the map which layers are batch normalisation.
        return agenet_names({n: v.cpu().numpy() for n, v in state.items()}, self.work.model)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.infer(self.place(images, np.zeros((len(images), 2)))).float().cpu().numpy()

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        self.module.train()
        self.module.zero_grad()
        loss = self._loss(self.place(images, labels))
        loss.backward()
        grads = {name: parameter.grad for name, parameter in self.module.named_parameters()}
        grads |= {n: v for n, v in self.module.state_dict().items() if n not in grads}
        ours = self._ours(grads)
        self.module.zero_grad()
        return loss.item(), {n: v for n, v in ours.items() if n.startswith("params/")}

    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        torch = self.torch
        inputs = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        inputs = inputs.to(self.device, self.dtype).contiguous(memory_format=self.format)
        return inputs, torch.tensor(np.asarray(labels), dtype=torch.int64, device=self.device)

    def _loss(self, batch: Any) -> Any:
        images, labels = batch
        cross_entropy = self.torch.nn.functional.cross_entropy
        with self.cast:
            logits = self.run(images)
        logits = logits.to(self.dtype)
        return cross_entropy(logits[:, :AGE], labels[:, 0], ignore_index=-1) + cross_entropy(
            logits[:, AGE:], labels[:, 1], ignore_index=-1
        )

    def step(self, batch: Any) -> Any:
        if not self.module.training:
            self.module.train()
        self.tx.zero_grad()
        loss = self._loss(batch)
        loss.backward()
        self.tx.step()
        return loss.detach()

    def infer(self, batch: Any) -> Any:
        if self.module.training:
            self.module.eval()
        with self.torch.inference_mode(), self.cast:
            return self.run(batch[0])

    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        from scripts.frameworks import import_torchvision

        import_torchvision()
        from torchvision.transforms import v2

        torch = self.torch
        transform = v2.Compose([v2.RandomCrop(self.work.size), v2.RandomHorizontalFlip()])
        pictures = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        done = torch.stack([transform(picture) for picture in pictures])
        return done.permute(0, 2, 3, 1).numpy()

    def synchronise(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def peak(self) -> int:
        cuda = self.device == "cuda"
        return int(self.torch.cuda.max_memory_allocated()) if cuda else super().peak()


def create_torch(work: Work) -> Any:
    """The module, computing as `flavour_of` says."""
    import torch

    from scripts.frameworks import import_torchvision

    nn = torch.nn
    if work.model == "levi_hassner":
        return _torch_levi_hassner(work)
    models = import_torchvision().models
    if work.model == "resnet50":
        module = models.resnet50(num_classes=OUTPUTS)
        drop = nn.Dropout(0.2 * work.regular)
        module.fc.register_forward_pre_hook(lambda _, inputs: drop.train(module.training)(*inputs))
        return module
    rates = {"dropout": 0.2 * work.regular, "stochastic_depth_prob": 0.2 * work.regular}
    lite = "lite" in work.model
    name = work.model.replace("lite", "b")
    module = getattr(models, name)(num_classes=OUTPUTS, **rates)
    for part in [*module.modules()]:
        if isinstance(part, nn.BatchNorm2d):
            part.eps, part.momentum = 1e-3, 0.01
        if isinstance(part, nn.Conv2d) and part.stride[0] == 2:
            part.padding = (0, 0)
            part.register_forward_pre_hook(_pad_same)
        for child_name, child in [*part.named_children()] if lite else []:
            if isinstance(child, nn.SiLU):
                setattr(part, child_name, nn.ReLU6())
            elif type(child).__name__ == "SqueezeExcitation":
                setattr(part, child_name, nn.Identity())
    return module


def _pad_same(conv: Any, inputs: Any) -> Any:
    """As many zeros as TensorFlow adds before a convolution of stride two, the odd one behind."""
    import torch

    (x,) = inputs
    size, stride = conv.kernel_size[0], conv.stride[0]
    rows, columns = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
    zeros = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return (torch.nn.functional.pad(x, zeros),)


def _torch_levi_hassner(work: Work) -> Any:
    from torch import nn

    rate = 0.5 * work.regular
    side = (work.size - 5) // 4 + 1
    for _ in range(3):
        side = (side - 1) // 2 + 1

    class LeviHassner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 96, 7, stride=4, padding=1)
            self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
            self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
            self.fc1 = nn.Linear(384 * side * side, 512)
            self.fc2 = nn.Linear(512, 512)
            self.classifier = nn.Linear(512, OUTPUTS)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
            self.norm = nn.LocalResponseNorm(5)
            self.drop = nn.Dropout(rate)

        def forward(self, x: Any) -> Any:
            x = self.norm(self.pool(self.conv1(x).relu()))
            x = self.norm(self.pool(self.conv2(x).relu()))
            x = self.pool(self.conv3(x).relu())
            # As rows, columns, channels, so that the matrix needs no reordering.
            x = x.permute(0, 2, 3, 1).flatten(1)
            x = self.drop(self.fc1(x).relu())
            return self.classifier(self.drop(self.fc2(x).relu()))

    return LeviHassner()


def torch_names(tensors: Tensors, model: str) -> Tensors:
    """From agenet's names and layout to PyTorch's."""
    if model != "levi_hassner":
        return torchvision_names.from_agenet(tensors, model)
    modules = {f"backbone/{name}": name for name in _DENSE} | {"heads/classes": "classifier"}
    return to_torch(tensors, modules, "PyTorch")


def agenet_names(tensors: Tensors, model: str) -> Tensors:
    """From PyTorch's names and layout to agenet's."""
    if model != "levi_hassner":
        return torchvision_names.to_agenet(tensors, model)
    modules = {name: f"backbone/{name}" for name in _DENSE} | {"classifier": "heads/classes"}
    return from_torch(tensors, modules.get, "PyTorch")


class Keras(Framework):
    """The networks of Keras applications, and Levi and Hassner's written out."""

    result: Any = None

    def setup(self) -> None:
        work = self.work
        backend = "jax" if "jax" in work.options else "tensorflow"
        os.environ["KERAS_BACKEND"] = backend
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        if backend == "tensorflow":
            import tensorflow as tf

            for gpu in tf.config.list_physical_devices("GPU"):
                tf.config.experimental.set_memory_growth(gpu, True)
            tf.config.experimental.enable_tensor_float_32_execution(not work.exact)
        import keras

        self.keras = keras
        if work.dtype == "bfloat16":
            keras.config.set_dtype_policy("mixed_bfloat16")
        self.module = create_keras(work)
        self._begin()

    def _begin(self) -> None:
        keras, rate = self.keras, _RATES[self.work.optimizer]
        if self.module.compiled:  # To compile once more would take as long as the first time.
            for variable in self.module.optimizer.variables:
                if "learning_rate" not in variable.path:
                    variable.assign(np.zeros(variable.shape))
            return
        if self.work.optimizer == "sgd":
            tx = keras.optimizers.SGD(rate, momentum=0.9)
        else:
            tx = keras.optimizers.Adam(rate, epsilon=1e-8)
        jit = False if "no_jit" in self.work.options else "auto"
        self.module.compile(optimizer=tx, loss=_keras_loss, jit_compile=jit)

    def describe(self) -> Figures:
        keras = self.keras
        backend = keras.backend.backend()
        return {
            "versions": {
                "keras": keras.__version__,
                backend: __import__(backend).__version__,
            },
            "device": "gpu" if self.work.platform == "gpu" else "cpu",
        }

    def seed(self, seed: int) -> None:
        self.keras.utils.set_random_seed(seed)
        layers = self.keras.layers
        size = self.work.size
        self._augment: Callable[..., Any] = self.keras.Sequential(
            [layers.RandomCrop(size, size), layers.RandomFlip("horizontal")]
        )
        # Layers that are there keep generators of their own.
        states = [v for v in self.module.variables if "seed" in v.path]
        for number, state in enumerate(states):
            state.assign(np.array([seed, number << 16], np.uint32))

    def assign(self, tensors: Tensors) -> None:
        from scripts.port_out import assign_keras

        assign_keras(self.module, keras_from_agenet(tensors, self.work.model))
        self._begin()

    def variables(self) -> Tensors:
        return self._ours({v.path: v for v in self._variables()})

    def _variables(self) -> list[Any]:
        return [
            v
            for v in self.module.variables
            if "seed" not in v.path and "normalization" not in v.path
        ]

    def _ours(self, values: Mapping[str, Any]) -> Tensors:
        named = {"/".join(path.split("/")[-2:]): np.asarray(v) for path, v in values.items()}
        return keras_to_agenet(named, self.work.model)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.module.predict_on_batch(images), np.float32)

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        import tensorflow as tf

        variables = self.module.trainable_variables
        with tf.GradientTape() as tape:
            loss = _keras_loss(np.asarray(labels, np.float32), self.module(images, training=True))
        grads = tape.gradient(loss, [v.value for v in variables])
        pairs = zip(variables, grads, strict=True)
        return float(loss), self._ours({v.path: grad for v, grad in pairs})

    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        convert = self.keras.ops.convert_to_tensor
        return convert(images), convert(np.asarray(labels, np.int32))

    def step(self, batch: Any) -> Any:
        return self.module.train_on_batch(*batch)

    def infer(self, batch: Any) -> Any:
        return self.module.predict_on_batch(batch[0])

    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        return np.asarray(self._augment(np.ascontiguousarray(images), training=True))


def _keras_loss(labels: Any, logits: Any) -> Any:
    from keras import ops

    labels = ops.cast(labels, "int32")
    logits = ops.cast(logits, "float32")
    total = 0.0
    for column, part in ((0, logits[:, :AGE]), (1, logits[:, AGE:])):
        truth = labels[:, column]
        known = ops.cast(truth >= 0, "float32")
        losses = ops.sparse_categorical_crossentropy(ops.maximum(truth, 0), part, from_logits=True)
        total += ops.sum(losses * known) / ops.maximum(ops.sum(known), 1.0)
    return total


def create_keras(work: Work) -> Any:
    """The model, computing as `flavour_of` says, and taking its input as it is."""
    import keras

    if work.model == "levi_hassner":
        return _keras_levi_hassner(work)
    shape = (work.size, work.size, 3)
    common: Any = {"weights": None, "classes": OUTPUTS, "classifier_activation": None}
    if work.model == "resnet50":
        model = keras.applications.ResNet50(input_shape=shape, **common)
        model = keras.models.clone_model(model, clone_function=_as_torchvision)
        if not work.regular:
            return model
        x = keras.layers.Dropout(0.2)(model.get_layer("predictions").input)
        return keras.Model(model.input, model.get_layer("predictions")(x))
    from keras.src.applications import efficientnet

    from agenet.models.efficientnet import VARIANTS as SCALES

    variant = work.model.removeprefix("efficientnet_")
    scale, lite = SCALES[variant], variant.startswith("lite")
    if lite and variant != "lite0":
        raise NotImplementedError("of Lite only Lite0 can be put together from Keras applications")
    blocks = [
        block | ({"se_ratio": 0.0} if lite else {}) for block in efficientnet.DEFAULT_BLOCKS_ARGS
    ]
    model = efficientnet.EfficientNet(
        scale.width,
        scale.depth,
        scale.input_size,
        dropout_rate=0.2 * work.regular,
        drop_connect_rate=0.2 * work.regular,
        activation="relu6" if lite else "swish",
        blocks_args=blocks,
        input_shape=shape,
        weights_name=variant,
        **common,
    )

    def unscaled(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Rescaling):
            config["scale"] = 1.0
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=unscaled)


def _as_torchvision(layer: Any) -> Any:
    """A layer of Keras's ResNet with strides, padding, biases and constants as torchvision's."""
    import keras

    class Padded(keras.layers.Conv2D):
        """With a zero on every side."""

        def call(self, x: Any) -> Any:
            return super().call(keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))

        def compute_output_shape(self, shape: Any) -> Any:
            batch, rows, columns, channels = shape
            return super().compute_output_shape((batch, rows + 2, columns + 2, channels))

    config, kind = layer.get_config(), type(layer)
    if isinstance(layer, keras.layers.BatchNormalization):
        config |= {"epsilon": 1e-5, "momentum": 0.9}
    elif isinstance(layer, keras.layers.Conv2D):
        config["use_bias"] = False
        first = layer.name.startswith(("conv3_block1_", "conv4_block1_", "conv5_block1_"))
        if layer.name.endswith("_1_conv"):
            config["strides"] = (1, 1)
        elif layer.name.endswith("_2_conv"):
            kind = Padded
            config |= {"padding": "valid", "strides": (2, 2) if first else (1, 1)}
    return kind.from_config(config)


def _keras_levi_hassner(work: Work) -> Any:
    import keras
    from keras import layers, ops

    class LocalResponseNorm(layers.Layer):
        """Over five channels, as torch.nn.LocalResponseNorm(5)."""

        def call(self, x: Any) -> Any:
            squares = ops.pad(ops.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
            total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
            return x / ops.power(1 + 1e-4 / 5 * total, 0.75)

    rate = 0.5 * work.regular
    x = inputs = keras.Input((work.size, work.size, 3))
    for number, (features, size, stride, padding) in enumerate(
        ((96, 7, 4, 1), (256, 5, 1, 2), (384, 3, 1, 1)), 1
    ):
        x = layers.ZeroPadding2D(padding)(x)
        x = layers.Conv2D(features, size, stride, activation="relu", name=f"conv{number}")(x)
        # Nothing is below zero after a ReLU, so that zeros take no maximum.
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
        x = LocalResponseNorm()(x) if number < 3 else x
    x = layers.Flatten()(x)
    for name in ("fc1", "fc2"):
        x = layers.Dropout(rate)(layers.Dense(512, activation="relu", name=name)(x))
    return keras.Model(inputs, layers.Dense(OUTPUTS, name="predictions")(x))


def keras_from_agenet(tensors: Tensors, model: str) -> Tensors:
    """From agenet's names and layout to Keras's."""
    if model != "levi_hassner":
        return _rgb(keras_names.from_agenet(tensors, model))
    return {
        "/".join(n.replace("heads/classes", "predictions").split("/")[-2:]): v
        for n, v in tensors.items()
    }


def keras_to_agenet(tensors: Tensors, model: str) -> Tensors:
    """From Keras's names and layout to agenet's."""
    if model != "levi_hassner":
        return keras_names.to_agenet(_rgb(tensors), model)
    return {
        f"params/{'' if n.startswith('predictions') else 'backbone/'}"
        f"{n.replace('predictions', 'heads/classes')}": v
        for n, v in tensors.items()
    }


def _rgb(tensors: Tensors) -> Tensors:
    """Between a ResNet that takes BGR, as Keras's does, and one that takes RGB."""
    name = "conv1_conv/kernel"
    return tensors | ({name: tensors[name][:, :, ::-1]} if name in tensors else {})


ENGINES: dict[str, type[Framework]] = {"jax": Jax, "torch": Torch, "keras": Keras}
_MODULES = {
    "jax": ("jax", "flax"),
    "torch": ("torch", "torchvision"),
    "keras": ("keras", "tensorflow"),
}


def not_installed(framework: str, model: str) -> str:
    """The module that a framework lacks, or nothing."""
    absent = (n for n in _MODULES[framework] if importlib.util.find_spec(n) is None)
    return next(absent, "")
