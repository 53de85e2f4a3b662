"""Whether this machine has an NVIDIA GPU, and what ONNX Runtime needs to use it."""

import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_VARIABLE = "CUDA_VISIBLE_DEVICES"


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether programs may use an NVIDIA GPU here: on Linux, also in a container or in WSL.

    Looks at names in folders alone, and is False where they cannot be read.

    Args:
        root: of the file system.
    """
    if os.environ.get(_VARIABLE, "0").strip() in ("", "-1"):  # Hidden from this process.
        return False
    try:
        # /proc/driver/nvidia is there in containers that may not use the GPU, too.
        if any(re.fullmatch(r"nvidia\d+", path.name) for path in (root / "dev").glob("nvidia*")):
            return True
        windows = root / "usr" / "lib" / "wsl" / "lib" / "libcuda.so.1"
        return windows.exists() and (root / "dev" / "dxg").exists()
    except OSError:
        return False


def choose_providers(available: Sequence[str], root: Path = Path("/")) -> list[Any]:
    """What runs a network in ONNX Runtime: a GPU where it can use one, then the CPU.

    Args:
        available: ONNX Runtime's providers; the package onnxruntime-gpu has one for CUDA.
        root: see `has_gpu`.
    """
    if _CUDA in available and has_gpu(root):
        # Without rounding to TF32: predictions are those of the CPU.
        return [(_CUDA, {"use_tf32": "0"}), _CPU]
    return [_CPU]


@functools.cache
def report_unused_gpu(root: Path = Path("/")) -> None:
    """Logs, once, that there is a GPU which the network does not use."""
    try:
        import onnxruntime

        is_unused = choose_providers(onnxruntime.get_available_providers(), root) == [_CPU]
    except ImportError:  # The engine says so.
        return
    if is_unused and has_gpu(root):
        log.warning(
            "this machine has an NVIDIA GPU, but the network runs on the CPU: pip install "
            '"jax[cuda12]" uses the GPU; --engine=onnxruntime hides this line'
        )
