import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agenet.inference import engines, gpu
from agenet.inference.engines import create_engine
from agenet.inference.gpu import choose_providers, has_gpu, report_unused_gpu
from agenet.weights.bundled import DEFAULT_FILE
from tests.conftest import run_program


@pytest.fixture(autouse=True)
def _visible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    report_unused_gpu.cache_clear()
    yield
    report_unused_gpu.cache_clear()


def machine(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_gpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_gpu(machine(tmp_path / "linux", "dev/nvidiactl", "dev/nvidia0"))
    assert has_gpu(machine(tmp_path / "wsl", "dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"))
    # A container without access sees the driver of the machine.
    container = machine(tmp_path / "container", "proc/driver/nvidia/version", "dev/nvidiactl")
    assert not has_gpu(container)
    assert not has_gpu(machine(tmp_path / "no_cuda", "dev/dxg"))
    assert not has_gpu(tmp_path / "nowhere")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not has_gpu(tmp_path / "linux")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert has_gpu(tmp_path / "linux")


def test_providers(tmp_path: Path) -> None:
    there = machine(tmp_path, "dev/nvidia0")
    both = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    (cuda, options), cpu = choose_providers(both, there)
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"use_tf32": "0"}
    assert choose_providers(both, tmp_path / "none") == ["CPUExecutionProvider"]
    assert choose_providers(both[2:], there) == ["CPUExecutionProvider"]


def test_unused_gpu_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = machine(tmp_path, "dev/nvidia0")
    monkeypatch.setattr(engines, "report_unused_gpu", lambda: report_unused_gpu(root))
    monkeypatch.setattr(engines, "_ACCELERATORS", ())
    with caplog.at_level(logging.WARNING, "agenet"):
        create_engine(DEFAULT_FILE, "onnxruntime")
        assert not caplog.messages  # It was asked for.
        for _ in range(2):
            engine = create_engine(DEFAULT_FILE)
    (message,) = caplog.messages
    assert "has an NVIDIA GPU" in message and 'pip install "jax[cuda12]"' in message
    side = engine.spec.stored_size
    assert engine(np.zeros((1, side, side, 3), np.uint8))


def test_nothing_is_reported_where_the_gpu_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    root = machine(tmp_path, "dev/nvidia0")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with caplog.at_level(logging.WARNING, "agenet"):
        report_unused_gpu(root)
        report_unused_gpu(tmp_path / "none")
    assert not caplog.messages


def test_command_shows_one_line(tmp_path: Path) -> None:
    root = machine(tmp_path, "dev/nvidia0")
    (tmp_path / "bad.png").write_bytes(b"?")
    code = (
        "import functools; from pathlib import Path\n"
        "from agenet.inference import engines, gpu\n"
        f"root = Path({str(root)!r})\n"
        "engines.report_unused_gpu = lambda: gpu.report_unused_gpu(root)\n"
        "engines._ACCELERATORS = ()\n"
        "from agenet.cli import main\n"
        f"main('predict', {str(tmp_path / 'bad.png')!r})"
    )
    lines = run_program("-c", code, fails=True, CUDA_VISIBLE_DEVICES="0").splitlines()
    (line,) = [line for line in lines if "GPU" in line]
    assert line.endswith("uses the GPU; --engine=onnxruntime hides this line")
    assert gpu.has_gpu(root)
