"""The note that agenet leaves in the files it writes for other frameworks.

It is a text (see `agenet.weights.ported`) beside the tensors, where the framework itself passes
over it: in the metadata of safetensors, as one more member of a zip archive, as an attribute in
HDF5, and in a field that Caffe's own message leaves free.
"""

import zipfile
from pathlib import Path

KEY = "agenet_port"  # among the metadata that readers return
_LONGEST = 20_000_000  # twice the longest specification, which is most of it


def decode(content: bytes | memoryview) -> dict[str, str]:
    """The metadata that a reader returns for a note.

    Raises:
        ValueError: it is too long or not UTF-8.
    """
    if len(content) > _LONGEST:
        raise ValueError("the note that agenet left in it is too long")
    return {KEY: str(content, "utf-8")}


def add_to_zip(path: Path, text: str) -> None:
    """Adds a note to a file of `torch.save` or a whole Keras model."""
    with zipfile.ZipFile(path, "a") as archive:
        folders = [n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("data.pkl")]
        archive.writestr("".join([*folders, KEY]), text)


def add_to_hdf5(path: Path, text: str) -> None:
    """Adds a note to Keras's weights."""
    import h5py

    with h5py.File(path, "a") as file:
        file.attrs[KEY] = text
