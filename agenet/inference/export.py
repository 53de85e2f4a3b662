"""Exports a trained network for other runtimes after comparing its outputs."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from agenet.data.decoding import load_faces, to_square
from agenet.data.records import open_records
from agenet.errors import UserError
from agenet.export import to_onnx
from agenet.export.int8 import quantize
from agenet.export.stablehlo import from_stablehlo, to_stablehlo
from agenet.faces.image_io import FORMATS as IMAGE_FORMATS
from agenet.faces.image_io import read_image
from agenet.files import make_shipped_importable, write_file
from agenet.inference.network import TrainedNetwork, load_network
from agenet.labels import AGE_GROUPS, GENDERS, TASK_CLASSES
from agenet.training.losses import YEARS

FORMATS = ("onnx", "stablehlo", "int8")
# Largest accepted difference of log-probabilities, relative to the largest one.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
LOST_POINTS = 0.5  # percentage points of accuracy that 8-bit integers may cost
MAX_CHECKED = 2000  # faces
MAX_CALIBRATION = 200  # faces
MIN_FACES = 40  # for calibration and checking together
_BATCH = 32

Answers = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Answers]


@dataclass(frozen=True)
class Faces:
    """Faces for checking, and others for calibration.

    Attributes:
        what: a description, for messages.
        images: for checking, uint8 [N, S, S, 3].
        labels: task to int32 [N], -1 if unknown; empty without labels.
        others: for calibration, uint8 [M, S, S, 3].
    """

    what: str
    images: np.ndarray
    labels: dict[str, np.ndarray]
    others: np.ndarray


def export_network(
    model: str, output: Path, format: str, *, half: bool, check: str, data_dir: str
) -> None:
    """Exports, checks and writes one network, and prints what was written.

    Args:
        model: "default", a file of weights, or the folder of a run.
        output: the file to write.
        format: one of `FORMATS`.
        half: store weights in 16 bits.
        check: a folder of face images or a prepared data set to check on; "" for drawn faces.
        data_dir: where data sets are prepared; "" for the default of TFDS.

    Raises:
        UserError: the network cannot be exported, or the outputs differ.
    """
    network = load_network(model)
    faces = find_faces(check, data_dir, network.stored_size, format == "int8")
    content, run = export(network, format, half, faces)
    original = in_batches(jax.jit(network.make_forward()))
    if format == "int8":
        verdict = check_accuracy(original, run, faces)
    else:
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        verdict = check_answers(original, run, faces, tolerance)
    write_file(output, content)

    size, spec = network.stored_size, network.spec
    print(f"{spec.model}, {format}{', weights in 16 bits' if half else ''}")
    print(f"  input    images, uint8 [batch, {size}, {size}, 3], RGB; it sees {spec.input.size} px")
    outputs = (f"{n} [batch, {len(labels)}]" for n, labels in output_labels(network).items())
    print(f"  outputs  {', '.join(outputs)}")
    print(f"  checked  {verdict}")
    print(f"  written  {output} ({len(content) / 2**20:.1f} MiB)")


def export(network: TrainedNetwork, format: str, half: bool, faces: Faces) -> tuple[bytes, Run]:
    """Returns the content of the file, and a function that runs it."""
    forward, size, metadata = network.make_forward(), network.stored_size, create_metadata(network)
    if format == "stablehlo":
        content = to_stablehlo(forward, size, metadata=metadata)
        return content, in_batches(jax.jit(from_stablehlo(content)[0]))
    content = to_onnx(forward, size, half=half, metadata=metadata)
    if format == "int8":
        content = quantize(content, faces.others)
    return content, run_onnx(content)


def create_metadata(network: TrainedNetwork) -> dict[str, str]:
    """Returns the metadata of the file: specification, labels, input and outputs."""
    size = network.stored_size
    return {
        "spec": network.spec.to_json(),
        "labels": json.dumps(output_labels(network)),
        "about": f"images: uint8 [batch, {size}, {size}, 3], RGB, one upright face each. Outputs: "
        "natural logarithms of the probabilities of the labels.",
    }


def output_labels(network: TrainedNetwork) -> dict[str, list[Any]]:
    """Returns the labels of the columns of each output."""
    labels: dict[str, list[Any]] = {task: list(TASK_CLASSES[task]) for task in network.spec.heads}
    if network.spec.heads.get("age", "groups") != "groups":
        labels["years"] = YEARS.tolist()
    return labels


def find_faces(check: str, data_dir: str, size: int, to_calibrate: bool) -> Faces:
    """Reads the faces that `check` names, or draws some if it is empty.

    Raises:
        UserError: there are none, or too few for calibration and checking.
    """
    if not check:
        images = draw_faces(size)
        return Faces(f"{len(images)} drawn faces", images, {}, images)
    rng = np.random.default_rng(0)
    faces = read_folder(Path(check), size, rng) if Path(check).is_dir() else None
    faces = faces or read_data_set(check, data_dir, size, rng)
    if to_calibrate and min(len(faces.images), len(faces.others)) < MIN_FACES // 2:
        raise UserError(
            f"--check={check}: fewer than {MIN_FACES} faces do not show the loss of accuracy"
        )
    if not len(faces.images):
        raise UserError(f"--check={check}: no faces to check on")
    return faces


def draw_faces(size: int) -> np.ndarray:
    """Draws a person of every age group and gender, uint8 [16, size, size, 3]."""
    make_shipped_importable()
    draw = importlib.import_module("data_prep.drawn_faces.draw")
    person = importlib.import_module("data_prep.drawn_faces.person")
    rng = np.random.default_rng(0)
    return np.stack(
        [
            draw.draw_face(person.create_person(age, gender, rng), person.create_view(rng), size)
            for age in range(len(AGE_GROUPS))
            for gender in range(len(GENDERS))
        ]
    )


def read_folder(folder: Path, size: int, rng: np.random.Generator) -> Faces:
    """Uses half of a folder's images for checking, the other half for calibration."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_FORMATS)
    paths = [paths[i] for i in rng.permutation(len(paths))[: MAX_CHECKED + MAX_CALIBRATION]]
    images = [to_square(read_image(path), size) for path in paths]
    others = min(len(images) // 2, MAX_CALIBRATION)
    what = f"{len(images) - others} faces of {folder}"
    faces = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return Faces(what, faces[others:], {}, faces[:others])


def read_data_set(name: str, data_dir: str, size: int, rng: np.random.Generator) -> Faces:
    """Uses test faces of a prepared data set for checking, other faces for calibration."""
    if "/" not in name:
        raise UserError(f"--check={name}: neither a folder nor a data set such as adience/faces")
    records = open_records(name, data_dir)
    rows, others = (
        rng.permutation(np.flatnonzero(chosen))[:most]
        for chosen, most in ((records.fold == 0, MAX_CHECKED), (records.fold > 0, MAX_CALIBRATION))
    )
    labels = {task: values[rows] for task, values in records.labels.items()}
    images, others = (load_faces(records, chosen, size) for chosen in (rows, others))
    return Faces(f"{len(rows)} test faces of {records.name}", images, labels, others)


def in_batches(forward: Callable[[np.ndarray], Mapping[str, Any]]) -> Run:
    """Runs in batches of one size, because JAX compiles for every new size."""

    def run(images: np.ndarray) -> Answers:
        padded = np.concatenate(
            [images, np.zeros((-len(images) % _BATCH, *images.shape[1:]), "u1")]
        )
        parts = [forward(padded[i : i + _BATCH]) for i in range(0, len(padded), _BATCH)]
        return {k: np.concatenate([p[k] for p in parts])[: len(images)] for k in parts[0]}

    return run


def run_onnx(content: bytes) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return in_batches(
        lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
    )


def check_answers(ours: Run, theirs: Run, faces: Faces, tolerance: float) -> str:
    """Describes the largest difference between the outputs of both.

    Raises:
        UserError: it is more than `tolerance`, relative to the largest log-probability.
    """
    expected, found = ours(faces.images), theirs(faces.images)
    difference = max(
        float(np.abs(found[name] - value).max() / np.abs(value).max())
        for name, value in expected.items()
    )
    # Not `>`: NaN must be refused, too.
    if not difference <= tolerance:
        raise UserError(
            f"not written: on {faces.what} the file's answers differ from the network's by "
            f"{difference:.1e} of the largest, more than {tolerance:.0e}"
        )
    return f"on {faces.what}: largest difference {difference:.1e} of the largest log-probability"


def check_accuracy(ours: Run, theirs: Run, faces: Faces) -> str:
    """Describes the loss of accuracy in 8-bit integers.

    Raises:
        UserError: it is more than `LOST_POINTS` points.
    """
    expected, found = ours(faces.images), theirs(faces.images)
    texts, lost = [], []
    for task in [task for task in ("age", "gender") if task in expected]:
        before, after = expected[task].argmax(1), found[task].argmax(1)
        if faces.labels and (known := faces.labels[task] >= 0).any():
            right = [(answer == faces.labels[task])[known].mean() for answer in (before, after)]
            texts.append(f"{task} {right[0]:.2%} before, {right[1]:.2%} after")
            lost.append(100 * (right[0] - right[1]))
        else:
            texts.append(f"{task} differs for {(before != after).mean():.2%}")
            lost.append(100 * (before != after).mean())
    verdict = f"on {faces.what}: {', '.join(texts)}"
    if not round(max(lost), 6) <= LOST_POINTS:
        advice = "" if faces.labels else "; a prepared data set would show how many are wrong"
        raise UserError(
            f"not written: more than {LOST_POINTS} points are lost, {verdict}{advice}: use onnx"
        )
    return verdict
