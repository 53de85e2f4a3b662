"""The work of a comparison in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from agenet.frameworks.comparison.engine import AGE, OUTPUTS, RATES, Framework, Tensors, Work
from agenet.frameworks.networks import import_torchvision
from agenet.weights.names import torchvision
from agenet.weights.names.common import from_torch, to_torch
from scripts.benchmarks.engines import Figures

DENSE = ("conv1", "conv2", "conv3", "fc1", "fc2")  # of Levi and Hassner's network


class Torch(Framework):
    """torchvision's networks, and Levi and Hassner's written out."""

    result: Any = None

    def setup(self) -> None:
        import torch

        self.torch, work = torch, self.work
        on_gpu = work.platform == "gpu" and torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        self.pipelined = self.device == "cuda"
        torch.backends.cudnn.allow_tf32 = not work.exact  # as it is by default
        self.tuned = on_gpu and "tuned" in work.options
        if self.tuned:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
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
        rate, parameters = RATES[self.work.optimizer], self.module.parameters()
        optim = self.torch.optim
        fused = True if self.tuned else None  # None: as PyTorch chooses
        if self.work.optimizer == "sgd":
            self.tx: Any = optim.SGD(parameters, rate, 0.9)
        else:
            self.tx = optim.Adam(parameters, rate, fused=fused)

    def platform(self) -> str:
        return "gpu" if next(self.module.parameters()).is_cuda else "cpu"

    def describe(self) -> Figures:
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


def create_torch(work: Work, outputs: int = OUTPUTS) -> Any:
    """The module, computing as `flavour_of` says."""
    import torch

    nn = torch.nn
    if work.model == "levi_hassner":
        return _torch_levi_hassner(work, outputs)
    models = import_torchvision().models
    if work.model == "resnet50":
        module = models.resnet50(num_classes=outputs)
        drop = nn.Dropout(0.2 * work.regular)
        module.fc.register_forward_pre_hook(lambda _, inputs: drop.train(module.training)(*inputs))
        return module
    rates = {"dropout": 0.2 * work.regular, "stochastic_depth_prob": 0.2 * work.regular}
    lite = "lite" in work.model
    name = work.model.replace("lite", "b")
    module = getattr(models, name)(num_classes=outputs, **rates)
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


def _torch_levi_hassner(work: Work, outputs: int) -> Any:
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
            self.classifier = nn.Linear(512, outputs)
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
        return torchvision.from_agenet(tensors, model)
    modules = {f"backbone/{name}": name for name in DENSE} | {"heads/classes": "classifier"}
    return to_torch(tensors, modules, "PyTorch")


def agenet_names(tensors: Tensors, model: str) -> Tensors:
    """From PyTorch's names and layout to agenet's."""
    if model != "levi_hassner":
        return torchvision.to_agenet(tensors, model)
    modules = {name: f"backbone/{name}" for name in DENSE} | {"classifier": "heads/classes"}
    return from_torch(tensors, modules.get, "PyTorch")
