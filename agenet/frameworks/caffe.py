"""Writes and runs Levi and Hassner's network in Caffe's format, for which OpenCV 4 has a reader.

A network is two files: a .caffemodel with the weights (a NetParameter message of caffe.proto, read
by `agenet.weights.formats.caffe`) and a .prototxt with the layers.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPENCV4 = "AGENET_OPENCV4"  # names a folder with OpenCV 4, the last version that reads Caffe files
# Field numbers in caffe.proto, and one that is free there (`agenet.weights.formats.caffe`).
_NET_NAME, _NET_LAYER, _NET_NOTE = 1, 100, 4_000_000
_LAYER_NAME, _LAYER_TYPE, _LAYER_BLOBS = 1, 2, 7
_BLOB_DATA, _BLOB_SHAPE, _SHAPE_DIM = 5, 7, 1
_NAME = "LeviHassner"


def why_not_opencv() -> str:
    """What to do before OpenCV can read Caffe files; nothing if it can."""
    import cv2

    if os.environ.get(OPENCV4) or hasattr(cv2.dnn, "readNetFromCaffe"):
        return ""
    command = "pip install --target FOLDER 'opencv-python-headless<5'"
    return f"OpenCV 5 reads no Caffe files: {command} and set {OPENCV4}=FOLDER"


def write_caffemodel(path: Path, tensors: Mapping[str, np.ndarray], note: str) -> None:
    """Writes weights by names such as "conv1/0", the kernel of conv1, and "conv1/1", its bias.

    The note is in a field that Caffe's definition does not have; readers pass over such fields.
    """
    parts = [_field(_NET_NAME, _NAME.encode())]
    for layer in dict.fromkeys(name.partition("/")[0] for name in tensors):
        kind = "Convolution" if layer.startswith("conv") else "InnerProduct"
        message = _field(_LAYER_NAME, layer.encode()) + _field(_LAYER_TYPE, kind.encode())
        for number in ("0", "1"):
            message += _field(_LAYER_BLOBS, _blob(tensors[f"{layer}/{number}"]))
        parts.append(_field(_NET_LAYER, message))
    parts.append(_field(_NET_NOTE, note.encode()))
    path.write_bytes(b"".join(parts))


def _blob(array: np.ndarray) -> bytes:
    shape = _field(_SHAPE_DIM, b"".join(map(_varint, array.shape)))
    return _field(_BLOB_SHAPE, shape) + _field(_BLOB_DATA, array.astype("<f4").tobytes())


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf's wire format, which is wire type 2."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """An integer in groups of seven bits, the lowest first; all but the last have the high bit."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def deploy_prototxt(size: int, classes: int) -> str:
    """The layers of the published network, up to the logits "fc8", for inputs of `size` pixels."""
    lines = [f'name: "{_NAME}"', 'input: "data"']
    lines += [f"input_shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }}"]
    below = "data"

    def add(name: str, kind: str, parameters: str = "", top: str = "") -> None:
        nonlocal below
        top = top or name
        lines.append(
            f'layer {{ name: "{name}" type: "{kind}" bottom: "{below}" top: "{top}"{parameters} }}'
        )
        below = top

    pool = " pooling_param { pool: MAX kernel_size: 3 stride: 2 }"
    norm = " lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
    convolutions = (("1", 96, "kernel_size: 7 stride: 4"), ("2", 256, "pad: 2 kernel_size: 5"))
    for number, width, shape in (*convolutions, ("3", 384, "pad: 1 kernel_size: 3")):
        parameters = f" convolution_param {{ num_output: {width} {shape} }}"
        add(f"conv{number}", "Convolution", parameters)
        add(f"relu{number}", "ReLU", top=f"conv{number}")
        add("pool5" if number == "3" else f"pool{number}", "Pooling", pool)
        if number != "3":
            add(f"norm{number}", "LRN", norm)
    for name, width in (("fc6", 512), ("fc7", 512), ("fc8", classes)):
        add(name, "InnerProduct", f" inner_product_param {{ num_output: {width} }}")
        if name != "fc8":
            number = name[-1]
            add(f"relu{number}", "ReLU", top=name)
            ratio = " dropout_param { dropout_ratio: 0.5 }"
            add(f"drop{number}", "Dropout", ratio, top=name)
    return "\n".join(lines) + "\n"


def run_in_opencv(
    prototxt: Path, caffemodel: Path, images: np.ndarray, layers: tuple[str, ...] = ("fc8",)
) -> list[np.ndarray]:
    """Outputs of layers for BGR images [B, 3, S, S], from a process with OpenCV 4."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npy"), Path(folder, "out.npz")
        np.save(given, np.ascontiguousarray(images))
        paths = os.environ.get(OPENCV4, ""), os.environ.get("PYTHONPATH", "")
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, __file__, *map(str, (prototxt, caffemodel, given, found))]
        subprocess.run([*command, *layers], check=True, env=os.environ | environment)
        arrays = np.load(found)
        return [arrays[layer] for layer in layers]


def _run_opencv(prototxt: str, caffemodel: str, given: str, found: str, *layers: str) -> None:
    """Runs one image at a time, like OpenCV's own samples."""
    import cv2

    network = cv2.dnn.readNetFromCaffe(prototxt, caffemodel)  # type: ignore[attr-defined]
    results = []
    for image in np.load(given):
        network.setInput(image[None])
        results.append([output.copy() for output in network.forward(list(layers))])
    arrays = (np.concatenate(parts) for parts in zip(*results, strict=True))
    named: dict[str, Any] = dict(zip(layers, arrays, strict=True))
    np.savez(found, **named)


def run_in_torch(tensors: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Logits of the network with these weights, by `write_caffemodel`'s names, in PyTorch."""
    import torch
    from torch.nn import functional

    def blobs(layer: str) -> list[Any]:
        return [torch.tensor(tensors[f"{layer}/{number}"]) for number in (0, 1)]

    x = torch.tensor(np.ascontiguousarray(images))
    for layer, stride, padding in (("conv1", 4, 0), ("conv2", 1, 2), ("conv3", 1, 1)):
        x = functional.conv2d(x, *blobs(layer), stride, padding).relu()
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = x if layer == "conv3" else functional.local_response_norm(x, 5)
    x = x.flatten(1)
    for layer in ("fc6", "fc7"):
        x = functional.linear(x, *blobs(layer)).relu()
    return np.asarray(functional.linear(x, *blobs("fc8")))


if __name__ == "__main__":
    _run_opencv(*sys.argv[1:])
