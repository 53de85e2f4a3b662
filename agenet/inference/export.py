"""Exports a trained network for other runtimes after comparing its outputs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from agenet.errors import UserError
from agenet.export import to_onnx
from agenet.export.int8 import quantize
from agenet.export.stablehlo import from_stablehlo, to_stablehlo
from agenet.files import write_file
from agenet.inference.export_faces import Faces, find_faces
from agenet.inference.export_recipe import create_metadata, describe, output_labels
from agenet.inference.network import TrainedNetwork, load_network

FORMATS = ("onnx", "stablehlo", "int8")
# Largest accepted difference of log-probabilities, relative to the largest one.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
LOST_POINTS = 0.5  # percentage points of accuracy that 8-bit integers may cost
_BATCH = 32

Answers = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Answers]


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
    description = describe(network)
    if format == "stablehlo":
        content = to_stablehlo(forward, size, metadata=metadata | {"description": description})
        return content, in_batches(jax.jit(from_stablehlo(content)[0]))
    content = to_onnx(forward, size, half=half, metadata=metadata, description=description)
    if format == "int8":
        content = quantize(content, faces.others)
    return content, run_onnx(content)


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

    Where labels are unknown it is estimated by the network's own probabilities: an answer that
    changes costs the difference of the probabilities of both, which is next to nothing where the
    network wavered between them.

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
            probabilities = np.exp(expected[task])
            rows = np.arange(len(probabilities))
            points = 100 * (probabilities[rows, before] - probabilities[rows, after]).mean()
            changed = (before != after).mean()
            texts.append(f"{task} differs for {changed:.2%}, which loses {points:.2f} points")
            lost.append(points)
    verdict = f"on {faces.what}: {', '.join(texts)}"
    # Not `>`: NaN must be refused, too.
    if not (round(max(lost), 6) <= LOST_POINTS and _is_finite(found)):
        advice = "" if faces.labels else "; a prepared data set would show how many are wrong"
        raise UserError(
            f"not written: more than {LOST_POINTS} points are lost, {verdict}{advice}: use onnx"
        )
    return verdict


def _is_finite(answers: Answers) -> bool:
    return all(np.isfinite(values).all() for values in answers.values())
