"""Limits the memory that reading a weights file may take."""

import math
from collections.abc import Sequence

import numpy as np


class SizeLimit:
    """Counts the bytes of tensors, to reject files that expand far beyond their own size.

    Weights hardly compress, and few are shared between tensors, so real files stay far below
    sixteen times their size. Small files may contain constants, hence the first mebibyte.
    """

    def __init__(self, file_size: int) -> None:
        self._left = 16 * file_size + 2**20

    def take(self, name: str, shape: Sequence[int], dtype: np.dtype) -> None:
        """Counts one tensor.

        Raises:
            ValueError: the tensors up to this one exceed the limit.
        """
        self._left -= math.prod(shape) * dtype.itemsize
        if self._left < 0:
            raise ValueError(f"tensor {name} is larger than a file of this size can hold")
