"""Networks in agenet and other frameworks, which models.py times."""

import dataclasses
import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.frameworks.timing import Engine, Figures

STAGES = ("latency", "inference", "training")
CLASSES = 1000
PEERS = ("torch", "torch_compiled", "onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True)
class Work:
    """The task of an engine; `platform` is "cpu", "gpu" or "tpu", `onnx` a file to write."""

    model: str = ""
    size: int = 0
    dtype: str = "float32"
    platform: str = "cpu"
    cores: int = 1
    onnx: Path = Path()


class Limits:
    """The device's own speed: a copy for its bandwidth, a matrix product for its arithmetic."""

    def __init__(self, work: Work) -> None:
        import jax

        self.jax, self.device = jax, jax.devices()[0]

    def describe(self) -> Figures:
        from agenet.runs.machine import describe_machine

        return {"platform": self.device.platform, "machine": describe_machine()}

    def fill(self, dtype: str) -> Figures:
        """Prepares both measurements, the product in `dtype`."""
        jnp, on_cpu = self.jax.numpy, self.device.platform == "cpu"
        # Larger than any cache, and a product that takes long enough to time.
        vector = jnp.ones(2**26 if on_cpu else 2**28, jnp.float32)
        matrix = jnp.ones((2048, 2048) if on_cpu else (8192, 8192), dtype)
        # In place, so that allocation is not timed.
        copy = self.jax.jit(lambda x: x + 1, donate_argnums=0)
        product = self.jax.jit(jnp.matmul)
        work = {"copy": 2.0 * vector.nbytes, "product": 2.0 * len(matrix) ** 3}

        def run_copy() -> Any:
            nonlocal vector
            vector = copy(vector)
            return vector

        self.tasks = {
            "copy": (run_copy, work["copy"]),
            "product": (lambda: product(matrix, matrix), work["product"]),
        }
        self.rates()  # compiles
        return {}

    def rates(self) -> dict[str, float]:
        """The highest bytes per second of the copy and operations per second of the product."""
        rates = {}
        for name, (run, work) in self.tasks.items():
            times: list[float] = []
            while sum(times) < 0.2:
                start = time.perf_counter()
                self.jax.block_until_ready(run())
                times.append(time.perf_counter() - start)
            rates[name] = work / min(times)
        return rates


class JaxEngine(Engine):
    """A program on JAX's first device, which leaves its last result in `result`."""

    result: Any = None

    def __init__(self, work: Any) -> None:
        import jax

        from agenet.distributed.mesh import create_mesh

        jax.config.update("jax_enable_compilation_cache", False)
        self.jax, self.work, self.device = jax, work, jax.devices()[0]
        self.pipelined = self.device.platform != "cpu"
        self.mesh = create_mesh([self.device])

    def synchronise(self) -> None:
        self.jax.block_until_ready(self.result)

    def release(self) -> None:
        super().release()
        self.result = None

    def peak(self) -> int:
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use") or super().peak()


class Agenet(JaxEngine):
    """agenet's networks and training step."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        import optax

        from agenet.distributed.mesh import replicated
        from agenet.models import create_model
        from agenet.training.state import create_state, create_variables

        # The peers have no stochastic depth either.
        options: Any = {"drop_path_rate": 0.0} if "efficientnet" in work.model else {}
        self.model = create_model(work.model, {"imagenet": CLASSES}, dtype=work.dtype, **options)
        self.tx = optax.adam(1e-4)
        shapes = self.jax.eval_shape(
            lambda: create_state(self.model, self.tx, create_variables(self.model, work.size, 0))
        )
        self.state = filled_state(shapes, replicated(self.mesh))

    def describe(self) -> Figures:
        leaves = self.jax.tree.leaves(self.state.params)
        return {"parameters": sum(leaf.size for leaf in leaves)}

    def build(self, stage: str, batch: int) -> Figures:
        from agenet.distributed.mesh import batch_sharded
        from agenet.training.steps import make_train_step

        arrays = {
            "image": _images(batch, self.work.size),
            "imagenet": _labels(batch),
            "row": np.arange(batch, dtype=np.int32),
            "mask": np.ones(batch, bool),
        }
        inputs = self.jax.device_put(arrays, batch_sharded(self.mesh))
        if stage == "training":
            step = make_train_step(
                self.model,
                self.tx,
                lambda images, rngs: images,
                heads={"imagenet": "softmax"},
                seed=0,
                steps_per_epoch=1,
                mesh=self.mesh,
            )
            program, figures = compile_counted(step, self.state, inputs)

            def train() -> None:
                self.state, self.result = program(self.state, inputs)

            self.call = train
            return figures

        def apply(variables: Any, images: Any) -> Any:
            return self.model.apply(variables, images, train=False)

        variables, images = self.state.variables, inputs["image"]
        program, figures = compile_counted(self.jax.jit(apply), variables, images)

        def infer() -> None:
            self.result = program(variables, images)

        self.call = infer
        return figures


def filled_state(shapes: Any, sharding: Any) -> Any:
    """A training state of the given shapes with random parameters, before its first step.

    Filled on the host, since compiling the initialisation would take as long as everything else.
    """
    import jax

    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        # An optimizer's state starts as zeros.
        name = path[-1].key if path[0].name in ("params", "batch_stats") else ""
        return _fill(name, leaf, rng)

    return jax.device_put(jax.tree.map_with_path(fill, shapes), sharding)


def compile_counted(function: Any, *arguments: Any) -> tuple[Any, Figures]:
    """Compiles a function for these arguments, with XLA's counts and memory of the program."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    figures = {
        "compile_seconds": seconds,
        "flops": cost.get("flops", 0.0),
        "bytes": cost.get("bytes accessed", 0.0),
    }
    if memory:
        figures["program_bytes"] = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    return program, figures


class Torch(Engine):
    """PyTorch, channels last; bfloat16 by autocast."""

    compiled = False

    def __init__(self, work: Work) -> None:
        import torch

        self.torch, self.work = torch, work
        self.device = {"cpu": "cpu", "gpu": "cuda"}[work.platform]
        self.pipelined = self.device == "cuda"
        torch.set_num_threads(work.cores)
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise UserError("this PyTorch finds no GPU")
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
            torch.backends.cudnn.allow_tf32 = True
        self.module = create_torch(work).to(self.device, memory_format=torch.channels_last)

    def build(self, stage: str, batch: int) -> Figures:
        torch = self.torch
        images = _images(batch, self.work.size).transpose(0, 3, 1, 2)
        inputs = torch.tensor(np.ascontiguousarray(images)).to(
            self.device, memory_format=torch.channels_last
        )
        labels = torch.tensor(_labels(batch), dtype=torch.int64, device=self.device)
        module, cast = self.ready(self.module, stage == "training")
        if stage != "training":

            def infer() -> None:
                with torch.inference_mode(), cast:
                    module(inputs)

            self.call = infer
            return {}

        optimizer = torch.optim.Adam(module.parameters(), 1e-4, fused=True)

        def train() -> None:
            optimizer.zero_grad()
            with cast:
                loss = torch.nn.functional.cross_entropy(module(inputs), labels)
            loss.backward()
            optimizer.step()

        self.call = train
        return {}

    def ready(self, module: Any, train: bool) -> tuple[Any, Any]:
        """The module for training or for inference, and the context to run it in."""
        torch = self.torch
        module.train(train)
        if self.compiled:
            # CUDA graphs, where launching kernels would take longer than running them.
            mode = "reduce-overhead" if self.device == "cuda" and not train else None
            module = torch.compile(module, mode=mode, dynamic=False)
        half = self.work.dtype == "bfloat16"
        return module, torch.autocast(self.device, torch.bfloat16, enabled=half)

    def synchronise(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def release(self) -> None:
        super().release()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()  # for other processes

    def peak(self) -> int:
        on_gpu = self.device == "cuda"
        return self.torch.cuda.max_memory_allocated() if on_gpu else super().peak()


class TorchCompiled(Torch):
    """The same with torch.compile, except for the optimizer."""

    compiled = True


def openvino_request(model: Path | bytes, batch: int, cores: int) -> Any:
    """A request of OpenVINO that runs an ONNX file, or its contents, on batches of this size."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape([batch, *network.input(0).partial_shape[1:]])
    options = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads for one call
        "INFERENCE_NUM_THREADS": cores,
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
    }
    return core.compile_model(network, "CPU", options).create_infer_request()


class OnnxEngine(Engine):
    """A runtime on the ONNX file that PyTorch exports."""

    def __init__(self, work: Work) -> None:
        if work.platform != "cpu" or work.dtype != "float32":
            raise UserError("compared in float32 on a CPU only")
        self.work = work

    def build(self, stage: str, batch: int) -> Figures:
        images = _images(batch, self.work.size).transpose(0, 3, 1, 2)
        self.call = self.load(np.ascontiguousarray(images))
        return {}

    @abstractmethod
    def load(self, images: np.ndarray) -> Callable[[], Any]:
        """Returns a function that runs the network on the images [B, 3, S, S]."""


class OnnxRuntime(OnnxEngine):
    """ONNX Runtime."""

    def load(self, images: np.ndarray) -> Callable[[], Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.work.cores, 1
        # Threads spin within a call, not after it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_free_dimension_override_by_name("batch", len(images))
        session = onnxruntime.InferenceSession(
            str(self.work.onnx), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"images": images})


class OpenVino(OnnxEngine):
    """OpenVINO."""

    def load(self, images: np.ndarray) -> Callable[[], Any]:
        import openvino

        request = openvino_request(self.work.onnx, len(images), self.work.cores)
        request.set_input_tensor(openvino.Tensor(images))
        return lambda: request.infer()


ENGINES: dict[str, type[Any]] = {
    "limits": Limits,
    "agenet": Agenet,
    "torch": Torch,
    "torch_compiled": TorchCompiled,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def stages_of(engine: str) -> tuple[str, ...]:
    return STAGES[:2] if engine in ("onnxruntime", "openvino") else STAGES


def create_torch(work: Work) -> Any:
    """The same network in PyTorch: torchvision's, timm's (Lite) or agenet's (Levi-Hassner).

    Timm's own Lite networks pad symmetrically, which suits PyTorch better than what the
    original weights need.
    """
    import torch

    from agenet.frameworks import networks, torch_networks

    torch.manual_seed(0)
    if "lite" in work.model:
        torch_networks.import_torchvision()
        import timm

        return timm.create_model(work.model)
    if work.model != "levi_hassner":
        return networks.create("torchvision", work.model, size=work.size).module
    return torch_networks.create_torch("levi_hassner", work.size, CLASSES)


class OnnxExport:
    """Exports the network in PyTorch to `work.onnx`, with a symbolic batch."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def describe(self) -> Figures:
        import torch

        images = torch.zeros(1, 3, self.work.size, self.work.size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The newer exporter needs another package.
            torch.onnx.export(
                create_torch(self.work).eval(),
                (images,),
                str(self.work.onnx),
                input_names=["images"],
                dynamic_axes={"images": {0: "batch"}},
                dynamo=False,
            )
        return {}


def _fill(name: str, leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """Random values that keep the variance from layer to layer."""
    if name == "kernel":
        return rng.standard_normal(leaf.shape, np.float32) * (2 / math.prod(leaf.shape[:-1])) ** 0.5
    return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)


def _images(batch: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, size, size, 3), np.float32)


def _labels(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CLASSES, batch, np.int32)
