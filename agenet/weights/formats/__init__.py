"""Readers of weights files of safetensors, PyTorch, Keras, NumPy and Caffe; nothing is executed.

The content of a file decides its format, not its name. Each format has one module, whose
`read(path)` returns tensors and metadata and raises `ValueError` for a file that it rejects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np

from agenet.errors import UserError, printable
from agenet.weights.formats import caffe, npz, pytorch, safetensors

HEAD = 1024


@dataclass(frozen=True)
class TensorFile:
    """Content of a weights file.

    Attributes:
        tensors: arrays by their names in the file, see the module of each format. Arrays own
            their memory; bfloat16 is converted to float32, other types are kept.
        metadata: texts stored with the tensors; beside those of a safetensors file, what the
            module of the format says, and agenet's note (see `note`).
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> TensorFile:
    """Reads safetensors, .pth, Keras's .h5, .weights.h5 and .keras, .npz, and .caffemodel.

    Raises:
        UserError: the file does not exist, has another format, is damaged, or contains more than
            tensors (code, links to other files, data that expand far beyond the file's size).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        head = file.read(HEAD)
    name, read = _format(path, head)
    try:
        tensors, metadata = read(path)
    except UserError:
        raise
    # The libraries used by the readers raise many kinds of exceptions for damaged files.
    except Exception as error:
        # The message may quote untrusted names from the file.
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0], 300)
        raise UserError(f"{path}: cannot be read as {name}: {reason}") from error
    if not tensors:
        raise UserError(f"{path}: {name} without any tensors")
    return TensorFile({key: _plain(value) for key, value in tensors.items()}, metadata)


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


def _read_hdf5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return _hdf5(path).read(path)


def _read_keras(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return _hdf5(path).read_keras(path)


def _hdf5(path: Path) -> ModuleType:
    try:
        from agenet.weights.formats import hdf5
    except ImportError as error:
        raise UserError(f"{path}: reading Keras weights needs h5py: pip install h5py") from error
    return hdf5


Reader = Callable[[Path], tuple[dict[str, np.ndarray], dict[str, str]]]


def _format(path: Path, head: bytes) -> tuple[str, Reader]:
    """Returns the name of the format and its reader.

    Raises:
        UserError: the format is unknown.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise UserError(f"{path}: is empty, delete it and download it again")
    # Eight bytes with the header's length, which may look like another format, then JSON.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors", safetensors.read
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path}: is a web page, not weights: the download failed, download it again"
        )
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: is a Git LFS pointer, not the weights: fetch them with: git lfs pull"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras weights", _read_hdf5
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        # In a zip archive the name of the first member comes after 30 bytes; Keras's are fixed.
        if head[30:].startswith((b"metadata.json", b"config.json", b"model.weights.h5")):
            return "a Keras model", _read_keras
        if npz.is_npz(head):
            return "NumPy arrays", npz.read
        return "PyTorch weights", pytorch.read_zip
    if head.startswith(b"\x80"):
        return "PyTorch weights", pytorch.read_legacy
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path}: is a tar archive, as PyTorch wrote until version 0.1.10: "
            "load it with PyTorch and save it again"
        )
    if caffe.is_caffemodel(head):
        return "a Caffe model", caffe.read
    raise UserError(
        f"{path}: is not a weights file: expected safetensors, PyTorch's .pth, "
        "Keras's .weights.h5, .h5 or .keras, NumPy's .npz, or .caffemodel"
    )
