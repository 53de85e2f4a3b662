"""Performs the task of a comparison in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from agenet.frameworks import torch_networks
from agenet.frameworks.comparison.engine import OUTPUTS, RATES, Framework, Tensors, split_tasks
from agenet.frameworks.timing import Figures
from agenet.frameworks.torch_networks import import_torchvision
from agenet.weights.names import torchvision as names


class Torch(Framework):
    """The networks of `torch_networks`."""

    result: Any = None

    def setup(self) -> None:
        import torch

        self.torch, work = torch, self.work
        on_gpu = work.platform == "gpu" and torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        self.pipelined = self.device == "cuda"
        torch.backends.cudnn.allow_tf32 = not work.exact  # True is the default
        self.tuned = on_gpu and "tuned" in work.options
        if self.tuned:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
        self.dtype = torch.float64 if work.dtype == "float64" else torch.float32
        module = torch_networks.create_torch(work.model, work.size, OUTPUTS, regular=work.regular)
        self.module = module.to(self.device, self.dtype)
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
        fused = True if self.tuned else None  # None: PyTorch's default
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
        theirs = names.from_agenet(tensors, self.work.model)
        state = {name: self.torch.tensor(value) for name, value in theirs.items()}
        missing, strange = self.module.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        assert not missing and not strange, (missing, strange)
        self._begin()

    def variables(self) -> Tensors:
        return self._ours(self.module.state_dict())

    def _ours(self, state: Mapping[str, Any]) -> Tensors:
        # The name map recognises batch normalisation by its running statistics.
        return names.to_agenet({n: v.cpu().numpy() for n, v in state.items()}, self.work.model)

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
        with self.cast:
            logits = self.run(images)
        cross_entropy = self.torch.nn.functional.cross_entropy
        parts = zip(split_tasks(logits.to(self.dtype)).values(), labels.T, strict=True)
        return sum(cross_entropy(part, truth, ignore_index=-1) for part, truth in parts)

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
        tensors = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        done = torch.stack([transform(tensor) for tensor in tensors])
        return done.permute(0, 2, 3, 1).numpy()

    def synchronise(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def peak(self) -> int:
        cuda = self.device == "cuda"
        return int(self.torch.cuda.max_memory_allocated()) if cuda else super().peak()
