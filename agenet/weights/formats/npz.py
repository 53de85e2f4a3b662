"""Reads NumPy's .npz files (`numpy.savez`) of plain arrays; nothing in them is unpickled."""

import io
import math
from pathlib import Path

import numpy as np

from agenet.weights.formats.limits import SizeLimit
from agenet.weights.formats.zips import Archive

_LONGEST_HEADER = 2**17
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_npz(head: bytes) -> bool:
    """Whether the first member of a zip archive is an array."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays by their names, "stem_conv/kernel" for example, and no metadata.

    Raises:
        ValueError, zipfile.BadZipFile: the file is damaged or compressed, or an array does not
            hold numbers.
    """
    archive = Archive(path)
    limit = SizeLimit(archive.size)
    arrays = {}
    for member in archive:
        name, suffix = member[:-4], member[-4:]
        if suffix != ".npy":
            raise ValueError(f"its part {member[:100]} is not an array")
        arrays[name] = _array(archive[member], name[:100], limit)
    return arrays, {}


def _array(content: memoryview, name: str, limit: SizeLimit) -> np.ndarray:
    header = io.BytesIO(content[:_LONGEST_HEADER])
    version = np.lib.format.read_magic(header)
    if version not in _HEADERS:
        raise ValueError(f"array {name} has version {version} of NumPy's format")
    shape, fortran, dtype = _HEADERS[version](header)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"array {name} does not hold numbers")
    limit.take(name, shape, dtype)
    values = content[header.tell() :]
    if len(values) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"array {name} is not as large as its header says")
    array = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))  # a copy, which outlives the archive
