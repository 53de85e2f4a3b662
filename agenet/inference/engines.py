"""What runs a trained network: ONNX Runtime on CPUs, or JAX on whatever JAX has.

JAX takes seconds to import and to compile. ONNX Runtime takes neither: the graph that JAX was
traced to once is kept in the cache, under the hash of the weights that it was made of.
"""

import contextlib
import hashlib
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import agenet
from agenet.errors import UserError
from agenet.files import write_file
from agenet.weights.cache import cache_dir
from agenet.weights.spec import WeightsSpec

log = logging.getLogger(__name__)

ENGINES = ("auto", "onnxruntime", "jax")
MAX_BATCH = 32
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu")
_SPEC_KEY = "spec"
_KEPT_GRAPHS = 16


class Engine(Protocol):
    """A network ready to run.

    Attributes:
        name: of `ENGINES`.
        spec: what it is and what it wants to see.
    """

    name: str
    spec: WeightsSpec

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Log-probabilities of images uint8 [B, S, S, 3], see `TrainedNetwork.make_forward`.

        B is from 1 to `MAX_BATCH`.
        """
        ...


def create_engine(path: Path, name: str = "auto") -> Engine:
    """The network of a file of weights or of a run, ready to run.

    Args:
        path: see `agenet.inference.network.load_network`.
        name: one of `ENGINES`; "auto" is JAX where it has an accelerator, or else ONNX Runtime.

    Raises:
        UserError: the name is unknown, its library is missing, or the weights are no good.
    """
    if name not in ENGINES:
        raise UserError(f'engine "{name}" is not known: use one of {", ".join(ENGINES)}')
    if name == "auto":
        has_accelerator = any(map(importlib.util.find_spec, _ACCELERATORS))
        name = "jax" if has_accelerator else "onnxruntime"
    return JaxEngine(path) if name == "jax" else OnnxEngine(path)


class JaxEngine:
    """Runs on JAX's default device. Batches are padded, so that few sizes are compiled."""

    name = "jax"

    def __init__(self, path: Path) -> None:
        import jax

        from agenet.inference.network import load_network

        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        served = load_network(path)
        self.spec = served.spec
        self._answer: Callable[..., Any] = jax.jit(served.make_forward())
        self._fetch = jax.device_get

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        size = 1 << (len(images) - 1).bit_length()
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return {
            task: values[: len(images)]
            for task, values in self._fetch(self._answer(padded)).items()
        }


class OnnxEngine:
    """Runs on the CPU, by ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                'ONNX Runtime is not installed: pip install onnxruntime, or take the engine "jax"'
            ) from error
        # Its warnings are about how graphs were written, which no user can mend.
        onnxruntime.set_default_logger_severity(3)
        graph = _find_graph(path)
        try:
            self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.spec = WeightsSpec.from_json(metadata[_SPEC_KEY])
        except Exception as error:
            raise UserError(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot run it: "
                f'{str(error).splitlines()[0][:300]}; the engine "jax" may'
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        found = self._session.run(self._outputs, {"images": images})
        return dict(zip(self._outputs, found, strict=True))


def _find_graph(path: Path) -> bytes:
    """The network as an ONNX file: from the cache, or else made and kept there."""
    kept = None if path.is_dir() else _place(path)
    if kept and (graph := _read_whole(kept)):
        kept.touch()
        return graph
    from agenet.export import to_onnx
    from agenet.inference.network import load_network

    served = load_network(path)
    graph = to_onnx(
        served.make_forward(), served.stored_size, metadata={_SPEC_KEY: served.spec.to_json()}
    )
    if kept:
        # Without a cache it is made every time, no more.
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, graph + hashlib.sha256(graph).digest())
            by_age = sorted(kept.parent.glob("*.onnx"), key=lambda file: file.stat().st_mtime)
            for old in by_age[:-_KEPT_GRAPHS]:
                old.unlink(missing_ok=True)
    return graph


def _place(path: Path) -> Path:
    """Where the graph of a file of weights is kept: another file or version is another place."""
    if not path.is_file():
        raise UserError(f"{path} is not a file of weights")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(agenet.__version__.encode())
    return cache_dir() / "graphs" / f"{digest.hexdigest()[:32]}.onnx"


def _read_whole(path: Path) -> bytes | None:
    """What was kept, without the hash behind it; None if there is nothing, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    graph, digest = content[:-32], content[-32:]
    if hashlib.sha256(graph).digest() != digest:
        log.warning("%s is damaged: made again", path)
        return None
    return graph
