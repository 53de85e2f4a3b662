"""Reads tensors out of files of weights; whatever is in the file, none of it is executed.

The format is told by the content, never by the name. Each format has one module here, whose
`read(path)` returns the tensors and raises `ValueError` for what it refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from agenet.errors import UserError, printable
from agenet.weights.formats import caffe, pytorch, safetensors

HEAD = 1024


@dataclass(frozen=True)
class TensorFile:
    """What a file of weights holds.

    Attributes:
      tensors: Arrays by the name that the file gives them, see the module of each format. Arrays
        own their memory. bfloat16 has become float32; other types are as in the file.
      metadata: The text that stands beside the tensors (safetensors only, otherwise empty).
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> TensorFile:
    """Reads safetensors, PyTorch's .pth, Keras's .h5 and .weights.h5, and .caffemodel.

    Raises:
      UserError: There is no such file, it is of another format, damaged, or asks for more than
        tensors (code, links to other files, more memory than the file accounts for).
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
    # The libraries below raise nearly anything for damaged files.
    except Exception as error:
        # It may quote names out of the file.
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0], 300)
        raise UserError(f"{path}: cannot be read as {name}: {reason}") from error
    if not tensors:
        raise UserError(f"{path}: {name} without any tensors")
    return TensorFile({key: _plain(value) for key, value in tensors.items()}, metadata)


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


def _read_hdf5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        from agenet.weights.formats import hdf5
    except ImportError as error:
        raise UserError(f"{path}: reading Keras weights needs h5py: pip install h5py") from error
    return hdf5.read(path)


Reader = Callable[[Path], tuple[dict[str, np.ndarray], dict[str, str]]]


def _format(path: Path, head: bytes) -> tuple[str, Reader]:
    """Returns the name of the format and its reader.

    Raises:
      UserError: It is none of them.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise UserError(f"{path}: is empty, delete it and fetch it again")
    # The header's length, in eight bytes of which any may look like another format, and a header.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors", safetensors.read
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not weights: the download failed, fetch it again")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: is only Git LFS's pointer to the weights, fetch them with: git lfs pull"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras weights", _read_hdf5
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
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
        f"{path}: is not a file of weights: expected safetensors, PyTorch's .pth, "
        "Keras's .weights.h5 or .h5, or .caffemodel"
    )
