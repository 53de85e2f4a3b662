"""Reads safetensors files: names, metadata and shapes as in the file."""

from pathlib import Path

import numpy as np
from safetensors import safe_open


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns tensors and the header's metadata; the library checks the header's claims.

    Raises:
      SafetensorError: The file is damaged.
      ValueError: It holds complex numbers.
    """
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "c":
            raise ValueError(f"tensor {name[:100]} is not of real numbers")
    return tensors, metadata
