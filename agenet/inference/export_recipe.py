"""Describes an exported network in its file: what to feed it, and how to read its outputs.

Written for people and programs that have nothing but the file.
"""

import json
from dataclasses import asdict
from typing import Any

from agenet.faces.crop import GEOMETRIES
from agenet.inference.network import TrainedNetwork
from agenet.labels import TASK_CLASSES
from agenet.training.losses import YEARS

# Boxes of other detectors differ. Left and right are those of the image.
_GEOMETRY = GEOMETRIES["yunet"]
_LANDMARKS = (
    "left eye",
    "right eye",
    "tip of the nose",
    "left corner of the mouth",
    "right corner of the mouth",
)


def output_labels(network: TrainedNetwork) -> dict[str, list[Any]]:
    """Returns the labels of the columns of each output."""
    labels: dict[str, list[Any]] = {task: list(TASK_CLASSES[task]) for task in network.spec.heads}
    if network.spec.heads.get("age", "groups") != "groups":
        labels["years"] = YEARS.tolist()
    return labels


def create_metadata(network: TrainedNetwork) -> dict[str, str]:
    """Returns the file's metadata, JSON by name: `input`, `crop`, `labels` and `weights`.

    `weights` says what was exported. It leaves out how the network's input is normalised, which is
    part of the file: a program that found it would normalise twice.
    """
    size = network.stored_size
    weights = asdict(network.spec)
    del weights["input"]
    texts = {
        "input": {
            "name": "images",
            "type": "uint8",
            "shape": ["batch", size, size, 3],
            "colours": "RGB",
            "normalise": False,
            "resize": {"shrinking": "area", "enlarging": "bilinear"},
        },
        "crop": {
            "detector": "YuNet",
            "side": _GEOMETRY.size_ratio,
            "shift_down": _GEOMETRY.shift_down,
            "landmarks": _landmarks(),
            "outside": "black",
        },
        "labels": output_labels(network),
        "weights": weights,
    }
    return {name: json.dumps(value) for name, value in texts.items()}


def describe(network: TrainedNetwork) -> str:
    """Returns the recipe as text, the documentation of the file."""
    size, labels = network.stored_size, output_labels(network)
    points = ", ".join(f"{name} ({x:g}, {y:g})" for name, (x, y) in _landmarks().items())
    outputs = ", ".join(f"{name} [batch, {len(columns)}]" for name, columns in labels.items())
    lines = [
        f"Age and gender of faces: {network.spec.model}, written by agenet.",
        f"INPUT images: uint8 [batch, {size}, {size}, 3], RGB, values 0 to 255, one face each. "
        "Do not normalise: subtracting the mean, dividing by the standard deviation, and the crop "
        f"to the {network.spec.input.size} pixels that the network sees are part of the graph.",
        "CROP a square around each face. From a box of the detector YuNet: its side is "
        f"{_GEOMETRY.size_ratio:g} times the square root of the box's area, its centre lies "
        f"{_GEOMETRY.shift_down:g} of the box's height below the centre of the box. With landmarks:"
        " turn the square so that the face is upright, and move it so that they lie, in the mean, "
        f"where they lie in training images, in fractions of its side: {points}. What is outside "
        "of the photograph is black.",
        f"RESIZE the square to {size} x {size}: average over areas where it shrinks, bilinear "
        "where it grows.",
        f"OUTPUTS {outputs}: natural logarithms of probabilities; the labels of their columns are "
        "in the metadata.",
    ]
    if "years" in labels:
        lines.append(
            "AGE: the group is the column of age with the largest value; the age is the median of "
            "years, limited to the years of that group."
        )
    lines.append(f"LICENCE of the weights: {network.spec.licence}")
    return "\n".join(lines)


def _landmarks() -> dict[str, list[float]]:
    """Positions (x, y) in a training image, as fractions of its side."""
    points = _GEOMETRY.landmarks
    return {} if points is None else dict(zip(_LANDMARKS, points.tolist(), strict=True))
