"""How much a file may make its reader hold."""

import math
from collections.abc import Sequence

import numpy as np


class SizeLimit:
    """Counts the bytes that tensors take, to stop at files that unfold into far more.

    Weights hardly compress, and few are shared between tensors, so sixteen times the file is
    generous to honest files. Small files may hold constants, hence the first mebibyte.
    """

    def __init__(self, file_size: int) -> None:
        self._left = 16 * file_size + 2**20

    def take(self, name: str, shape: Sequence[int], dtype: np.dtype) -> None:
        """Accounts for a tensor.

        Raises:
          ValueError: The tensors up to this one exceed the limit.
        """
        self._left -= math.prod(shape) * dtype.itemsize
        if self._left < 0:
            raise ValueError(f"tensor {name} is larger than a file of this size can account for")
