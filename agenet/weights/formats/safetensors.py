"""Reads safetensors files: names, metadata and shapes as in the file."""

from pathlib import Path

import numpy as np
from safetensors import safe_open


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns tensors and the header's metadata; the library checks the header's claims.

    Raises:
      SafetensorError: The file is damaged.
    """
    with safe_open(path, framework="numpy") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
