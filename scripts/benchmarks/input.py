"""Measures how fast images are prepared, decoded and fed to a network on this machine.

python scripts/benchmarks/input.py [--manual_dir=FOLDER --data_set=adience/faces] [--config=FILE]
"""

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import resource
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from agenet.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[2]

DRAWN = "drawn_faces/faces"
BLOCK = 1000  # images per turn of a stage; turns spread the influence of other programs
STEPS = 5

Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs each stage in a process of its own and prints a table.

    Raises:
        UserError: the release, the config or the data set does not fit.
    """
    parser = argparse.ArgumentParser(
        description="Speed and memory of the input pipeline, in one table."
    )
    parser.add_argument(
        "--manual_dir", type=Path, help="folder of a release (default: drawn faces, made for this)"
    )
    parser.add_argument(
        "--data_set", help=f"DATA_SET/CONFIG that the release is of (default: {DRAWN})"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs" / "levi_hassner_adience.py",
        help="experiment whose training step is fed (default: configs/levi_hassner_adience.py)",
    )
    args = parser.parse_args(arguments)
    if args.manual_dir and not args.data_set:
        raise UserError("--manual_dir needs --data_set, such as --data_set=adience/faces")
    name = args.data_set or DRAWN
    if "/" not in name:
        raise UserError(f'--data_set "{name}" must be DATA_SET/CONFIG, such as "adience/faces"')
    if name != DRAWN and not args.manual_dir:
        raise UserError(f"{name} needs --manual_dir, the folder of its release")
    with tempfile.TemporaryDirectory() as folder:
        manual_dir = args.manual_dir or Path(folder) / "release"
        if not args.manual_dir:
            _in_child(draw, manual_dir)
        building = _in_child(build, name, manual_dir, folder)
        decoding = _in_child(decode, name, folder, args.config)
        streaming = _in_child(stream, name, folder, args.config)
        feeding = _in_child(feed, name, folder, args.config)
    print_table(name, building, decoding, streaming, feeding)


def _in_child(stage: Callable[..., Figures], *arguments: Any) -> Figures:
    """A stage's figures, and `peak`: the most memory of its process, in bytes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, stage, *arguments).result()


def _measured(stage: Callable[..., Figures], *arguments: Any) -> Figures:
    return stage(*arguments) | {"peak": _peak()}


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def draw(manual_dir: Path) -> Figures:
    """Draws the release of drawn faces."""
    from data_prep.drawn_faces.release import write_release

    write_release(manual_dir)
    return {}


def build(name: str, manual_dir: Path, data_dir: str) -> Figures:
    """Prepares a data set, imports included."""
    start = time.perf_counter()
    from agenet.data.prepare import prepare

    builder, _, config = name.partition("/")
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(builder, manual_dir, Path(data_dir), config)
    return {"seconds": time.perf_counter() - start}


def decode_by_opencv(images: Sequence[bytes], size: int = 0) -> None:
    """Decodes encoded images on all cores, and resizes them if `size` is not 0."""
    import cv2
    import numpy as np

    from agenet.distributed.cores import available_cores

    def run(start: int) -> None:
        for encoded in images[start : start + 50]:
            # Not kept, so that its memory is used again.
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
            if size:
                cv2.resize(image, (size, size))

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(run, range(0, len(images), 50)))


def decode(name: str, data_dir: str, config_file: Path) -> Figures:
    """Images per second, in random order: OpenCV from memory, and agenet from the files."""
    import jax
    import numpy as np

    from agenet.data.decoding import allocate_images, decode_images
    from agenet.data.records import open_records
    from agenet.data.stream import StreamedImages
    from agenet.distributed.mesh import create_mesh

    config = _load_config(config_file, name, data_dir)
    size, batch_size = config.input.size, config.batch_size
    start = time.perf_counter()
    records = open_records(name, data_dir)
    seconds = {"open": time.perf_counter() - start}
    images = allocate_images(len(records.fold), size)
    streamed = StreamedImages(records, size=size, mesh=create_mesh(jax.devices()[:1]))

    def run_stream(rows: np.ndarray) -> None:
        _stream_batches(streamed, rows, batch_size)

    shuffled = np.random.default_rng(0).permutation(len(records.fold))
    run_stream(shuffled[:BLOCK])  # Its memory is new only the first time.
    count, streamed_count = len(shuffled), 0
    for first in range(0, len(shuffled), BLOCK):
        rows, out = shuffled[first : first + BLOCK], images[first : first + BLOCK]
        part = [records.images[row] for row in rows]
        stages: dict[str, Callable[[], None]] = {
            "raw": partial(decode_by_opencv, part),
            "resized": partial(decode_by_opencv, part, size),
            "resident": partial(decode_images, records.images, rows, out),
            "again": partial(decode_images, records.images, rows, out),
            "stream": partial(run_stream, rows),
        }
        for stage, run in stages.items():
            start = time.perf_counter()
            run()
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
        streamed_count += len(rows) // batch_size * batch_size
    rates = {stage: count / total for stage, total in seconds.items()}
    rates["stream"] = streamed_count / seconds["stream"]
    return {"count": count, "size": size, "rates": rates, "open": seconds["open"]}


def _stream_batches(streamed: Any, rows: Any, batch_size: int) -> None:
    """Moves these rows to the device in whole batches."""
    import jax

    starts = range(0, len(rows) - batch_size + 1, batch_size)
    for batch in streamed.batches((rows[start : start + batch_size], None) for start in starts):
        jax.block_until_ready(batch)


def stream(name: str, data_dir: str, config_file: Path) -> Figures:
    """Streams all images batch by batch; only its peak memory is of interest."""
    import jax
    import numpy as np

    from agenet.data.records import open_records
    from agenet.data.stream import StreamedImages
    from agenet.distributed.mesh import create_mesh

    config = _load_config(config_file, name, data_dir)
    records = open_records(name, data_dir)
    streamed = StreamedImages(records, size=config.input.size, mesh=create_mesh(jax.devices()[:1]))
    _stream_batches(streamed, np.arange(len(records.fold)), config.batch_size)
    return {}


def feed(name: str, data_dir: str, config_file: Path) -> Figures:
    """Seconds to make and transform a batch, and of a training step with its batch.

    The transforms are the config's and, for comparison, the reference report's.
    """
    import jax
    import numpy as np

    from agenet.data.augment import make_train_transform
    from agenet.data.order import training_batch
    from agenet.data.resident import ResidentImages
    from agenet.runs.create import create_experiment
    from agenet.runs.initial_state import create_initial_state
    from agenet.runs.machine import describe_machine

    config = _load_config(config_file, name, data_dir)
    experiment = create_experiment(config)
    config = experiment.config
    normalisation = config.input.mean, config.input.std
    resident = ResidentImages(
        experiment.records, size=config.input.size, mesh=experiment.mesh, on_device=True
    )
    resident_peak = _peak()
    report = dataclasses.replace(
        config.augment, shift=0.03125, scale=0.2, rotate=20.0, brightness=0.2, contrast=0.2
    )
    transforms = {
        what: jax.jit(make_train_transform(experiment.crop_size, *normalisation, augment))
        for what, augment in (("feed", config.augment), ("augment", report))
    }
    state = create_initial_state(experiment)

    def batch(step: int) -> dict[str, jax.Array]:
        rows = training_batch(experiment.splits.train, config.batch_size, seed=0, step=step)
        return resident.batch(rows, np.ones(config.batch_size, bool))

    times: dict[str, list[float]] = {what: [] for what in (*transforms, "step")}
    for step in range(STEPS + 1):
        for what in STEPS * list(transforms):
            start = time.perf_counter()
            rngs = jax.random.split(jax.random.key(step), config.batch_size)
            jax.block_until_ready(transforms[what](batch(step)["image"], rngs))
            times[what].append(time.perf_counter() - start)
        start = time.perf_counter()
        state, sums = experiment.train_step(state, batch(step))
        jax.block_until_ready(sums)
        times["step"].append(time.perf_counter() - start)
    # Medians: the first ones compile.
    seconds = {what: statistics.median(values) for what, values in times.items()}
    return {
        "seconds": seconds,
        "batch_size": config.batch_size,
        "model": config.model.name,
        "resident_peak": resident_peak,
        "machine": describe_machine(),
    }


def _load_config(file: Path, name: str, data_dir: str) -> Any:
    from agenet.runs.config import parse_config

    if not file.is_file():
        raise UserError(f"--config {file} does not exist")
    config = runpy.run_path(str(file))["get_config"]()
    config.dataset.name, config.dataset.data_dir = name, data_dir
    return parse_config(config.to_dict())


def print_table(
    name: str, building: Figures, decoding: Figures, streaming: Figures, feeding: Figures
) -> None:
    count, rates = decoding["count"], decoding["rates"]
    batch_size, machine = feeding["batch_size"], feeding["machine"]
    fed, augmented, step = (feeding["seconds"][what] for what in ("feed", "augment", "step"))

    def row(what: str, rate: float, ratio: str = "", peak: float = 0) -> None:
        memory = f"{peak / 1e9:.2f} GB" if peak else ""
        print(f"| {what} | {rate:,.0f} | {ratio} | {memory} |")

    def of_opencv(rate: float) -> str:
        return f"{rate / rates['raw']:.0%} and {rate / rates['resized']:.0%} of OpenCV"

    def of_step(seconds: float) -> str:
        return f"{seconds / step:.1%} of a step ({seconds * 1e3:.1f} of {step * 1e3:.0f} ms)"

    print(f"{name}: {count:,} images; {machine['devices']}; {machine['processor']}\n")
    print("| stage | images/s | ratio | peak memory |")
    print("|---|---:|---|---:|")
    total, opening = building["seconds"], decoding["open"]
    row("preparing, imports included", count / total, f"{total:.0f} s in all", building["peak"])
    row("opening, imports included", rates["open"], f"{opening:.1f} s in all")
    row("OpenCV: decoding", rates["raw"])
    row("OpenCV: decoding and resizing", rates["resized"])
    what = f"decoding into new memory ({3 * count * decoding['size'] ** 2 / 1e9:.2f} GB)"
    row(what, rates["resident"], of_opencv(rates["resident"]), feeding["resident_peak"])
    row("decoding into memory used before", rates["again"], of_opencv(rates["again"]))
    what = "streaming: reading and decoding, batch by batch"
    row(what, rates["stream"], of_opencv(rates["stream"]), streaming["peak"])
    row(f"feeding batches of {batch_size}", batch_size / fed, of_step(fed))
    row("feeding, with the report's augmentation", batch_size / augmented, of_step(augmented))
    row(f"training {feeding['model']}", batch_size / step, peak=feeding["peak"])


if __name__ == "__main__":
    with one_line_errors():
        main()
