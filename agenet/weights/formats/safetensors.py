"""Reads safetensors files, keeping names, shapes and metadata."""

from pathlib import Path

import numpy as np
from safetensors import safe_open


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors and the header's metadata; the library validates the header.

    Raises:
        SafetensorError: the file is damaged.
        ValueError: it contains complex numbers.
    """
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "c":
            raise ValueError(f"tensor {name[:100]} does not contain real numbers")
    return tensors, metadata
