"""Runs a trained network with ONNX Runtime, on CPUs or with CUDA, or with JAX on any device.

JAX needs seconds to import and to compile; ONNX Runtime does not: the network is traced to an ONNX
graph once, and the graph is cached under the hash of the weights file.
"""

import contextlib
import hashlib
import importlib.util
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

import agenet
from agenet.errors import UserError
from agenet.faces.forks import abandon, check_jax_can_run, restart_after_fork
from agenet.faces.onnx_file import SPIN_MICROSECONDS
from agenet.files import hash_file, hash_text, write_file
from agenet.inference.gpu import choose_providers, report_unused_gpu
from agenet.inference.threads import choose_threads, limit_opencv, xla_threads
from agenet.weights.bundled import DEFAULT, DEFAULT_FILE, find_weights
from agenet.weights.cache import cache_dir
from agenet.weights.spec import WeightsSpec

log = logging.getLogger(__name__)

ENGINES = ("auto", "onnxruntime", "jax")
MAX_BATCH = 32
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu")
_SPEC_KEY = "spec"
_MAX_CACHED_GRAPHS = 16

# Loaded engines, which a process inherits by a fork, and the last few that were loaded again: each
# task of a pool of processes brings a pickled engine.
_loaded: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()
_loaded_again: deque["Engine"] = deque(maxlen=4)


class Engine(Protocol):
    """A network that is ready to run, in any number of threads.

    Attributes:
        name: one of `ENGINES`.
        spec: of its weights.
    """

    name: str
    spec: WeightsSpec

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Log-probabilities of images uint8 [B, S, S, 3], see `TrainedNetwork.make_forward`.

        B is from 1 to `MAX_BATCH`, S is `spec.stored_size`.
        """
        ...


def create_engine(path: Path, name: str = "auto", threads: int | None = None) -> Engine:
    """Loads the network of a weights file or of a run.

    The engine can be pickled: the copy loads the same file or run again when it is first used.

    Args:
        path: a weights file or the work directory of a run.
        name: one of `ENGINES`; "auto" is JAX if a plugin for an accelerator is installed, else
            ONNX Runtime.
        threads: number of CPU threads of the network, and of OpenCV in the whole process; by
            default one for each core that this process may use. JAX keeps the number with which it
            started.

    Raises:
        UserError: the name is unknown, its library is missing, or the weights cannot be used.
    """
    if name not in ENGINES:
        raise UserError(f'engine "{name}" is not known: use one of {", ".join(ENGINES)}')
    limit_opencv(choose_threads(threads))
    if name == "auto":
        has_accelerator = any(map(importlib.util.find_spec, _ACCELERATORS))
        name = "jax" if has_accelerator else "onnxruntime"
        if not has_accelerator:
            report_unused_gpu()
    return JaxEngine(path, threads) if name == "jax" else OnnxEngine(path, threads)


class _LoadedEngine:
    """Remembers what an engine was loaded from."""

    name: str
    spec: WeightsSpec

    def _remember(self, path: Path, threads: int | None) -> None:
        # The bundled weights may lie elsewhere on another machine.
        source = DEFAULT if path == DEFAULT_FILE else str(path.absolute())
        self._key = (self.name, source, threads, path.stat().st_mtime_ns)
        _loaded[self._key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return ReloadedEngine, (self._key, self.spec)


class ReloadedEngine:
    """A copy of an engine, in another process: loads itself again when it is first used.

    Not earlier, since an error while it is unpickled would end a process of a pool, which then
    waits for ever.
    """

    def __init__(self, key: tuple[Any, ...], spec: WeightsSpec) -> None:
        self.name, self.spec = key[0], spec
        self._key = key
        self._engine: Engine | None = None

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self._engine is None:
            self._engine = self._load()
        return self._engine(images)

    def _load(self) -> Engine:
        engine = _loaded.get(self._key)
        if engine is None:
            name, source, threads, _ = self._key
            engine = create_engine(find_weights(source), name, threads)
            if engine.spec != self.spec:
                raise UserError(f"{source} has other weights than when the predictor was loaded")
            _loaded[self._key] = engine
        _loaded_again.append(engine)
        return engine

    def __reduce__(self) -> tuple[Any, ...]:
        return ReloadedEngine, (self._key, self.spec)


class JaxEngine(_LoadedEngine):
    """Runs on JAX's default device; batches are padded to powers of two to limit compilation."""

    name = "jax"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        check_jax_can_run()
        import jax

        from agenet.distributed.compilation_cache import enable_compilation_cache
        from agenet.inference.network import load_network

        enable_compilation_cache()
        with xla_threads(choose_threads(threads)):
            jax.devices()
        network = load_network(path)
        self.spec = network.spec
        self._remember(path, threads)
        self._forward: Callable[..., Any] = jax.jit(network.make_forward())
        self._fetch = jax.device_get

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        check_jax_can_run()
        size = 1 << (len(images) - 1).bit_length()
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return {
            task: values[: len(images)]
            for task, values in self._fetch(self._forward(padded)).items()
        }


class OnnxEngine(_LoadedEngine):
    """Runs with ONNX Runtime: on the CPU, or a GPU where onnxruntime-gpu is installed."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                'ONNX Runtime is not installed: pip install onnxruntime, or use the engine "jax"'
            ) from error
        # Its warnings are about the structure of graphs, which users cannot change.
        onnxruntime.set_default_logger_severity(3)
        self._graph, self._threads = _find_graph(path), choose_threads(threads)
        try:
            self._session = self._open()
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.spec = WeightsSpec.from_json(metadata[_SPEC_KEY])
        except Exception as error:
            raise UserError(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot run it: "
                f'{str(error).splitlines()[0][:300]}; the engine "jax" may'
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._remember(path, threads)
        restart_after_fork(self)

    def _open(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        # Threads that spin for longer take the cores from face detection and decoding.
        options.add_session_config_entry(
            "session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS)
        )
        providers = choose_providers(onnxruntime.get_available_providers())
        return onnxruntime.InferenceSession(self._graph, options, providers=providers)

    def restart(self) -> None:
        """Has the session, whose threads a fork loses, opened again when it is used."""
        abandon(self._session)
        self._session = None

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            session = self._session = self._open()
        values = session.run(self._outputs, {"images": images})
        return dict(zip(self._outputs, values, strict=True))


def _find_graph(path: Path) -> bytes:
    """Returns the network as an ONNX file, from the cache or else exported and cached."""
    cached = None if path.is_dir() else _cache_path(path)
    if cached and (graph := _read_verified(cached)):
        with contextlib.suppress(OSError):  # It may belong to another user.
            cached.touch()
        return graph
    check_jax_can_run()
    from agenet.export import to_onnx
    from agenet.inference.network import load_network

    network = load_network(path)
    metadata = {_SPEC_KEY: network.spec.to_json()}
    graph = to_onnx(network.make_forward(), network.stored_size, metadata=metadata)
    if cached:
        # A cache that cannot be written to only costs time.
        with contextlib.suppress(OSError):
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_file(cached, graph + hashlib.sha256(graph).digest())
            by_age = sorted(cached.parent.glob("*.onnx"), key=lambda file: file.stat().st_mtime)
            for old in by_age[:-_MAX_CACHED_GRAPHS]:
                old.unlink(missing_ok=True)
    return graph


def _cache_path(path: Path) -> Path:
    """The cached graph's path, which depends on the weights file and the version of agenet."""
    if not path.is_file():
        raise UserError(f"{path} is not a weights file")
    digest = hash_text(f"{hash_file(path)} {agenet.__version__}")
    return cache_dir() / "graphs" / f"{digest[:32]}.onnx"


def _read_verified(path: Path) -> bytes | None:
    """Reads a cached graph without its hash at the end; None if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    graph, digest = content[:-32], content[-32:]
    if hashlib.sha256(graph).digest() != digest:
        log.warning("%s is damaged: exporting the network again", path)
        return None
    return graph
