"""Writes a trained network as a file for other runtimes, once it is seen to give the same answers.

agenet export MODEL OUTPUT [--format=onnx|stablehlo|int8] [--check=FACES] [--half]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.files import check_output, write_file

if TYPE_CHECKING:
    from agenet.inference.network import TrainedNetwork

FORMATS = ("onnx", "stablehlo", "int8")
# Of log-probabilities, relative to the largest one.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
LOST_POINTS = 0.5  # of accuracy, that integers may cost
MOST_CHECKED = 2000  # faces
CALIBRATED_WITH = 200  # faces
FEWEST = 40  # faces, to calibrate with and to check on
_BATCH = 32

EPILOG = f"""\
MODEL is "default", a file of weights of agenet, or the --workdir of a run.

FACES is a folder of pictures of one face each, cut out as they were for training, or a prepared
data set such as fairface/partial, of which the test faces are taken (at most {MOST_CHECKED:,}).
Without --check the answers are compared on drawn faces.

onnx       one file for ONNX Runtime, OpenVINO, TensorRT and others; --half stores it in half
           the bytes, and computes in single precision all the same
stablehlo  for JAX on CPU, CUDA and TPU, and for compilers of StableHLO
int8       ONNX that computes in integers of 8 bits, for CPUs. Needs --check, and is written only
           if no more than {LOST_POINTS} points of accuracy are lost; without labels, in a folder,
           only if no more than {LOST_POINTS} % of the faces get another answer
"""

Answers = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Answers]


@dataclass(frozen=True)
class Faces:
    """Faces to check on, and others to calibrate with.

    Attributes:
        what: in words.
        images: uint8 [N, S, S, 3].
        labels: task to int32 [N], -1 where unknown; empty if nobody knows.
        others: uint8 [M, S, S, 3].
    """

    what: str
    images: np.ndarray
    labels: dict[str, np.ndarray]
    others: np.ndarray


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, exports, checks and writes one network.

    Raises:
        UserError: it cannot be exported, or its answers differ.
    """
    parser = ArgumentParser(
        prog="agenet export",
        description="Writes a trained network as a file for other runtimes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    parser.add_argument("--check", default="", metavar="FACES", help="see below")
    parser.add_argument("--data_dir", default="", help="where data sets are prepared")
    parser.add_argument("--half", action="store_true", help="store weights in 16 bits (onnx)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    args = parser.parse_args(arguments)
    check_arguments(args)

    from agenet.inference.network import load_network

    served = load_network(args.model)
    faces = find_faces(args.check, args.data_dir, served.stored_size, args.format == "int8")
    content, run = export(served, args.format, args.half, faces)
    if args.format == "int8":
        verdict = check_accuracy(original(served), run, faces)
    else:
        tolerance = HALF_TOLERANCE if args.half else TOLERANCE
        verdict = check_answers(original(served), run, faces, tolerance)
    write_file(args.output, content)

    size, spec = served.stored_size, served.spec
    print(f"{spec.model}, {args.format}{', weights in 16 bits' if args.half else ''}")
    print(f"  input    images, uint8 [batch, {size}, {size}, 3], RGB; it sees {spec.input.size} px")
    print(f"  outputs  {', '.join(map(describe_output, output_labels(served).items()))}")
    print(f"  checked  {verdict}")
    print(f"  written  {args.output} ({len(content) / 2**20:.1f} MiB)")


def check_arguments(args: argparse.Namespace) -> None:
    check_output(args.output, args.overwrite)
    if args.half and args.format != "onnx":
        raise UserError("--half goes with --format=onnx")
    if args.format == "int8" and not args.check:
        raise UserError(
            "--format=int8 needs --check=FACES, a folder or a prepared data set: drawn faces would "
            "not show whether accuracy holds"
        )


def export(served: "TrainedNetwork", format: str, half: bool, faces: Faces) -> tuple[bytes, Run]:
    """The content of the file, and what runs it as a user of the file would."""
    from agenet.export import to_onnx

    answer, size, metadata = served.make_forward(), served.stored_size, create_metadata(served)
    if format == "stablehlo":
        import jax

        from agenet.export.stablehlo import from_stablehlo, to_stablehlo

        content = to_stablehlo(answer, size, metadata=metadata)
        return content, run_jax(jax.jit(from_stablehlo(content)[0]))
    content = to_onnx(answer, size, half=half, metadata=metadata)
    if format == "int8":
        from agenet.export.int8 import quantize

        content = quantize(content, faces.others)
    return content, run_onnx(content)


def create_metadata(served: "TrainedNetwork") -> dict[str, str]:
    """What the file says of itself."""
    size = served.stored_size
    return {
        "spec": served.spec.to_json(),
        "labels": json.dumps(output_labels(served)),
        "about": f"images: uint8 [batch, {size}, {size}, 3], RGB, one upright face each. Outputs: "
        "natural logarithms of the probabilities of the labels.",
    }


def output_labels(served: "TrainedNetwork") -> dict[str, list[Any]]:
    """What the columns of the outputs stand for."""
    from agenet.labels import TASK_CLASSES
    from agenet.training.losses import YEARS

    labels: dict[str, list[Any]] = {task: list(TASK_CLASSES[task]) for task in served.spec.heads}
    if served.spec.heads.get("age", "groups") != "groups":
        labels["years"] = YEARS.tolist()
    return labels


def describe_output(output: tuple[str, list[Any]]) -> str:
    name, labels = output
    return f"{name} [batch, {len(labels)}]"


def find_faces(check: str, data_dir: str, size: int, to_calibrate: bool) -> Faces:
    """The faces that `--check` names, or drawn ones.

    Raises:
        UserError: there are none, or too few to calibrate with some and check on others.
    """
    if not check:
        images = draw_faces(size)
        return Faces(f"{len(images)} drawn faces", images, {}, images)
    rng = np.random.default_rng(0)
    faces = read_folder(Path(check), size, rng) if Path(check).is_dir() else None
    faces = faces or read_data_set(check, data_dir, size, rng)
    if to_calibrate and min(len(faces.images), len(faces.others)) < FEWEST // 2:
        raise UserError(f"--check={check}: fewer than {FEWEST} faces do not show what is lost")
    if not len(faces.images):
        raise UserError(f"--check={check}: no faces to check on")
    return faces


def draw_faces(size: int) -> np.ndarray:
    """A person of every age group and gender, uint8 [16, size, size, 3]."""
    from agenet.labels import AGE_GROUPS, GENDERS
    from data_prep.drawn_faces.draw import draw_face
    from data_prep.drawn_faces.person import create_person, create_view

    rng = np.random.default_rng(0)
    return np.stack(
        [
            draw_face(create_person(age, gender, rng), create_view(rng), size)
            for age in range(len(AGE_GROUPS))
            for gender in range(len(GENDERS))
        ]
    )


def read_folder(folder: Path, size: int, rng: np.random.Generator) -> Faces:
    """Half of a folder's pictures to check on, the other half to calibrate with."""
    from agenet.data.decoding import to_square
    from agenet.faces.image_io import FORMATS, read_image

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS)
    paths = [paths[i] for i in rng.permutation(len(paths))[: MOST_CHECKED + CALIBRATED_WITH]]
    images = [to_square(read_image(path), size) for path in paths]
    others = min(len(images) // 2, CALIBRATED_WITH)
    what = f"{len(images) - others} faces of {folder}"
    faces = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return Faces(what, faces[others:], {}, faces[:others])


def read_data_set(name: str, data_dir: str, size: int, rng: np.random.Generator) -> Faces:
    """Test faces of a prepared data set to check on, others to calibrate with."""
    from agenet.data.decoding import load_faces
    from agenet.data.records import open_records

    if "/" not in name:
        raise UserError(f"--check={name}: neither a folder nor a data set such as adience/faces")
    records = open_records(name, data_dir)
    rows, others = (
        rng.permutation(np.flatnonzero(chosen))[:most]
        for chosen, most in ((records.fold == 0, MOST_CHECKED), (records.fold > 0, CALIBRATED_WITH))
    )
    labels = {task: values[rows] for task, values in records.labels.items()}
    images, others = (load_faces(records, chosen, size) for chosen in (rows, others))
    return Faces(f"{len(rows)} test faces of {records.name}", images, labels, others)


def original(served: "TrainedNetwork") -> Run:
    import jax

    return run_jax(jax.jit(served.make_forward()))


def run_jax(answer: Callable[..., Any]) -> Run:
    """In batches of one size, since each size is compiled."""

    def run(images: np.ndarray) -> Answers:
        padded = np.concatenate(
            [images, np.zeros((-len(images) % _BATCH, *images.shape[1:]), "u1")]
        )
        parts = [answer(padded[i : i + _BATCH]) for i in range(0, len(padded), _BATCH)]
        return {k: np.concatenate([p[k] for p in parts])[: len(images)] for k in parts[0]}

    return run


def run_onnx(content: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> Answers:
        batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        parts = [session.run(names, {"images": batch}) for batch in batches]
        return dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))

    return run


def check_answers(ours: Run, theirs: Run, faces: Faces, tolerance: float) -> str:
    """How far the answers are from ours, in words.

    Raises:
        UserError: further than `tolerance`, relative to the largest log-probability.
    """
    expected, found = ours(faces.images), theirs(faces.images)
    difference = max(
        float(np.abs(found[name] - value).max() / np.abs(value).max())
        for name, value in expected.items()
    )
    # Not `>`: a difference that is no number is none to accept.
    if not difference <= tolerance:
        raise UserError(
            f"not written: on {faces.what} the file's answers differ from the network's by "
            f"{difference:.1e} of the largest, more than {tolerance:.0e}"
        )
    return f"on {faces.what}: largest difference {difference:.1e} of the largest log-probability"


def check_accuracy(ours: Run, theirs: Run, faces: Faces) -> str:
    """What integers cost, in words.

    Raises:
        UserError: more than `LOST_POINTS` points.
    """
    expected, found = ours(faces.images), theirs(faces.images)
    told, lost = [], []
    for task in [task for task in ("age", "gender") if task in expected]:
        before, after = expected[task].argmax(1), found[task].argmax(1)
        if faces.labels and (known := faces.labels[task] >= 0).any():
            right = [(answer == faces.labels[task])[known].mean() for answer in (before, after)]
            told.append(f"{task} {right[0]:.2%} before, {right[1]:.2%} after")
            lost.append(100 * (right[0] - right[1]))
        else:
            told.append(f"{task} differs for {(before != after).mean():.2%}")
            lost.append(100 * (before != after).mean())
    verdict = f"on {faces.what}: {', '.join(told)}"
    if not round(max(lost), 6) <= LOST_POINTS:
        advice = "" if faces.labels else "; a prepared data set would tell how many are wrong"
        raise UserError(
            f"not written: more than {LOST_POINTS} points are lost, {verdict}{advice}: use onnx"
        )
    return verdict


if __name__ == "__main__":
    with one_line_errors():
        main()
