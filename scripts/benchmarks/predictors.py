"""The predictor's network in agenet and in other runtimes, which predict.py times.

Each class is an `Engine` in a process of its own.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks import torch_networks
from agenet.frameworks.port_out import one_head
from agenet.frameworks.timing import Engine, Figures
from agenet.weights.names import torchvision
from scripts.benchmarks.engines import Work, openvino_request

BATCHES = {"latency": 1, "throughput": 32}


@dataclass(frozen=True)
class Task(Work):
    """The task: `weights` is a file of agenet.

    `inputs` holds the frames uint8 [H, W, 3] of each stage, and `squares` of faces, uint8
    [N, S, S, 3], for the network alone.
    """

    weights: Path = Path()
    detector: str = "auto"
    inputs: Mapping[str, Any] = field(default_factory=dict)


class Network(Engine):
    """From uint8 [B, S, S, 3] to log-probabilities or logits."""

    def __init__(self, work: Task) -> None:
        self.work = work

    def build(self, stage: str, batch: int) -> Figures:
        run, squares = self.load(batch), self.work.inputs["squares"]
        starts = itertools.cycle(range(0, len(squares) - batch + 1, batch))
        self.call = lambda: run(squares[(start := next(starts)) : start + batch])
        return {}

    @abstractmethod
    def load(self, batch: int) -> Callable[[np.ndarray], Any]:
        """Returns a function that runs the network on a batch of images."""


class Agenet(Network):
    """The engine that agenet chooses."""

    engine = "auto"

    def load(self, batch: int) -> Callable[[np.ndarray], Any]:
        from agenet.inference.engines import create_engine

        return create_engine(self.work.weights, self.engine)


class AgenetJax(Agenet):
    """agenet's JAX engine."""

    engine = "jax"


class OpenVino(Network):
    """OpenVINO on the ONNX file that agenet exports."""

    def load(self, batch: int) -> Callable[[np.ndarray], Any]:
        from agenet.export import to_onnx
        from agenet.inference.network import load_network

        network = load_network(self.work.weights)
        graph = to_onnx(network.make_forward(), network.stored_size)
        request = openvino_request(graph, batch, self.work.cores)

        def run(images: np.ndarray) -> list[np.ndarray]:
            # Copies, since the next call overwrites the results.
            return [np.array(each) for each in request.infer([images], share_inputs=True).values()]

        return run


class Torch(Network):
    """PyTorch, eager."""

    def load(self, batch: int) -> Callable[[np.ndarray], Any]:
        import torch

        torch.set_num_threads(self.work.cores)
        module = create_torch(self.work.weights)

        def run(images: np.ndarray) -> Any:
            with torch.inference_mode():
                return module(torch.from_numpy(images))

        return run


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
    state = torchvision.from_agenet(tensors, spec.model)
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
            self.network = network
            self.register_buffer("mean", torch.tensor(spec.input.mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(spec.input.std).reshape(1, 3, 1, 1))

        def forward(self, images: Any) -> dict[str, Any]:
            middle = images[:, start : start + size, start : start + size]
            logits = self.network((middle.permute(0, 3, 1, 2).float() - self.mean) / self.std)
            return {task: logits[:, first:end] for task, (first, end) in columns.items()}

    return Predictor().eval().to(memory_format=torch.channels_last)


NETWORKS: dict[str, type[Network]] = {
    "agenet": Agenet,
    "agenet_jax": AgenetJax,
    "openvino": OpenVino,
    "torch": Torch,
}
