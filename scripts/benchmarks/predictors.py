"""The predictor's network in agenet and in other runtimes, which predict.py times.

Each class is an `Engine` that receives its images before it prepares a stage.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agenet.data.decoding import to_square
from agenet.errors import UserError
from agenet.frameworks import torch_networks
from agenet.frameworks.port_out import one_head
from agenet.frameworks.timing import Engine, Figures
from scripts.benchmarks.engines import Work, onnxruntime_session, openvino_request

Answer = Callable[[np.ndarray], dict[str, np.ndarray]]

BATCHES = {"latency": 1, "throughput": 32}


@dataclass(frozen=True)
class Task(Work):
    """The task: `weights` is a file of agenet, `files` a folder for its ONNX files."""

    weights: Path = Path()
    detector: str = "auto"
    files: Path = Path()


class Exporter:
    """Writes the network as ONNX files, and converts logits to probabilities."""

    def __init__(self, work: Task) -> None:
        self.work = work

    def describe(self) -> Figures:
        from agenet.inference.network import load_network
        from agenet.runs.machine import describe_machine

        self.served = load_network(self.work.weights)
        spec = self.served.spec
        return {
            "machine": describe_machine(),
            "model": f"{spec.model}, {spec.input.size} px",
            "size": self.served.stored_size,
        }

    def export(self) -> Figures:
        """Exports by agenet."""
        from agenet.export import to_onnx

        graph = to_onnx(self.served.make_forward(), self.served.stored_size, metadata={})
        (self.work.files / "agenet.onnx").write_bytes(graph)
        return {}

    def export_from_torch(self) -> Figures:
        """Exports the same network by PyTorch."""
        import torch

        module = create_torch(self.work.weights)
        images = torch.zeros((1, *[self.served.stored_size] * 2, 3), dtype=torch.uint8)
        torch.onnx.export(
            module,
            (images,),
            str(self.work.files / "torch.onnx"),
            input_names=["images"],
            output_names=[f"{task}_logits" for task in module.tasks],
            dynamic_axes={"images": {0: "batch"}},
            dynamo=False,  # The newer exporter needs another package.
        )
        return {}

    def answers(self, squares: np.ndarray) -> dict[str, np.ndarray]:
        """Log-probabilities by JAX, the reference."""
        import jax

        found = jax.jit(self.served.make_forward())(squares)
        return {task: np.asarray(values) for task, values in found.items()}

    def difference(self, found: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> float:
        """The largest difference of probabilities of age groups and genders."""
        import jax.numpy as jnp

        from agenet.training.losses import log_probabilities

        differences = []
        for task, head in self.served.spec.heads.items():
            answer: Any = found
            if f"{task}_logits" in found:
                answer = log_probabilities(task, head, jnp.asarray(found[f"{task}_logits"]))
            differences.append(np.abs(np.exp(answer[task]) - np.exp(true[task])).max())
        return float(max(differences))


class Predicting(Engine):
    """An engine over images or frames."""

    work: Task

    def __init__(self, work: Task) -> None:
        self.work = work

    def take(self, inputs: dict[str, Any]) -> Figures:
        """Takes the frames uint8 [H, W, 3] of each stage, and `images` and `squares` of faces."""
        self.inputs = inputs
        return {}


class Network(Predicting):
    """From uint8 [B, S, S, 3] to log-probabilities, or to logits called TASK_logits."""

    def build(self, stage: str, batch: int) -> Figures:
        answer, squares = self.load(batch), self.inputs["squares"]
        starts = itertools.cycle(range(0, len(squares) - batch + 1, batch))
        batches = (np.ascontiguousarray(squares[start : start + batch]) for start in starts)
        self.call = lambda: answer(next(batches))
        return {}

    def answers(self, squares: np.ndarray) -> dict[str, np.ndarray]:
        return self.load(len(squares))(squares)

    @abstractmethod
    def load(self, batch: int) -> Answer: ...


class Ours(Network):
    """The engine that agenet chooses."""

    engine = "auto"

    def __init__(self, work: Task) -> None:
        super().__init__(work)
        from agenet.inference.engines import create_engine

        self.network = create_engine(work.weights, self.engine)

    def load(self, batch: int) -> Answer:
        return self.network


class OursByJax(Ours):
    """agenet's JAX engine."""

    engine = "jax"


class WholePredictor(Predicting):
    """`Predictor.predict` on images of any size, with resizing and readable results."""

    def build(self, stage: str, batch: int) -> Figures:
        from agenet.inference.predictor import Predictor

        predictor, images = Predictor.load(self.work.weights), self.inputs["images"]
        starts = itertools.cycle(range(0, len(images) - batch + 1, batch))
        self.call = lambda: predictor.predict(images[(start := next(starts)) : start + batch])
        return {}


class OnnxRuntime(Network):
    """ONNX Runtime on agenet's file."""

    file = "agenet.onnx"
    threads = 0  # all cores
    spins = True

    def load(self, batch: int) -> Answer:
        threads = self.threads or self.work.cores
        path = _existing(self.work.files / self.file)
        session = onnxruntime_session(path, threads, spins=self.spins)
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


class OnnxRuntimeOneThread(OnnxRuntime):
    """With one thread."""

    threads = 1


class OnnxRuntimePatient(OnnxRuntime):
    """With threads that sleep instead of spinning while they wait."""

    spins = False


class OnnxRuntimeOfTorch(OnnxRuntime):
    """ONNX Runtime on PyTorch's file."""

    file = "torch.onnx"


class OpenVino(Network):
    """OpenVINO on agenet's file."""

    file = "agenet.onnx"

    def load(self, batch: int) -> Answer:
        path = _existing(self.work.files / self.file)
        request, names = openvino_request(path, batch, self.work.cores)

        def answer(images: np.ndarray) -> dict[str, np.ndarray]:
            found = request.infer([images], share_inputs=True)
            return {name: np.array(found[i]) for i, name in enumerate(names)}

        return answer


class OpenVinoOfTorch(OpenVino):
    """OpenVINO on PyTorch's file."""

    file = "torch.onnx"


class Torch(Network):
    """PyTorch, eager."""

    compiled = False

    def load(self, batch: int) -> Answer:
        import torch

        torch.set_num_threads(self.work.cores)
        module = create_torch(self.work.weights)
        run = torch.compile(module, dynamic=False) if self.compiled else module

        def answer(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                logits = run(torch.from_numpy(images))
            return {f"{task}_logits": values.numpy() for task, values in logits.items()}

        return answer


class TorchCompiled(Torch):
    """PyTorch with torch.compile."""

    compiled = True


def create_torch(path: Path) -> Any:
    """The network of a weights file as a `torch.nn.Module`, made as fast as its users know how.

    It takes uint8 [B, S, S, 3] and returns the logits of each task, [B, C]. Batch normalisation is
    folded into the convolutions, and the memory format is channels-last.

    Raises:
        UserError: the network is not an EfficientNet, or its heads are not linear.
    """
    from agenet.weights.load import read_weights

    weights = read_weights(path)
    spec = weights.spec
    if not spec.model.startswith("efficientnet"):
        raise UserError(f"the benchmark has no PyTorch version of {spec.model}")
    tensors, columns = one_head(weights)
    size, stored = spec.input.size, spec.stored_size
    start = (stored - size) // 2
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    network = torch_networks.create_torch(
        spec.model, size, sum(spec.classes.values()), flavour=spec.flavour
    ).eval()
    state = torch_networks.from_agenet(tensors, spec.model)
    counts = {name: value for name, value in network.state_dict().items() if value.ndim == 0}
    network.load_state_dict({n: torch.tensor(v) for n, v in state.items()} | counts)
    for part in network.modules():
        if isinstance(part, torch.nn.Sequential) and len(part) > 1:
            conv, norm = part[0], part[1]
            if isinstance(norm, torch.nn.BatchNorm2d):
                part[0], part[1] = fuse_conv_bn_eval(conv, norm), torch.nn.Identity()

    class Predictor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.tasks = network, list(columns)
            self.register_buffer("mean", torch.tensor(spec.input.mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(spec.input.std).reshape(1, 3, 1, 1))

        def forward(self, images: Any) -> dict[str, Any]:
            middle = images[:, start : start + size, start : start + size]
            logits = self.network((middle.permute(0, 3, 1, 2).float() - self.mean) / self.std)
            return {task: logits[:, first:end] for task, (first, end) in columns.items()}

    return Predictor().eval().to(memory_format=torch.channels_last)


def squares_of(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    return np.stack([to_square(image, size) for image in images])


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"there is no {path.name}, see above")
    return path


NETWORKS: dict[str, type[Network] | type[WholePredictor]] = {
    "agenet": Ours,
    "agenet_jax": OursByJax,
    "agenet_predict": WholePredictor,
    "onnxruntime": OnnxRuntime,
    "onnxruntime_one_thread": OnnxRuntimeOneThread,
    "onnxruntime_no_spin": OnnxRuntimePatient,
    "onnxruntime_torch": OnnxRuntimeOfTorch,
    "openvino": OpenVino,
    "openvino_torch": OpenVinoOfTorch,
    "torch": Torch,
    "torch_compiled": TorchCompiled,
}
