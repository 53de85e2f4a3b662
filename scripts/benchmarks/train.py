"""Measures how fast networks train on this machine: a single step, the whole loop, the input.

python scripts/benchmarks/train.py [--models=efficientnet_b0,resnet50] [--data_set=adience/faces]

Compared are agenet's compiled step, the loop of `agenet train` around it, PyTorch with a loader of
its own, and the limits of the device. Each runs in a process of its own, and they take turns.
`--json` writes all figures. Each entry of its `models` has:

    model, size, dtype, batch   what was trained, and the side of its input in pixels
    parameters                  of the network
    training                    figures by framework and stage, such as "agenet, loop, device"
    loading                     figures of agenet's loop without computation, by placement

`median` is seconds per step, `program_bytes` arguments, results and temporary memory of a step.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from scripts.benchmarks import tables, turns
from scripts.benchmarks.engines import Work
from scripts.benchmarks.loops import ENGINES, Training

MODELS = "efficientnet_b0,resnet50,levi_hassner"
PEERS = ("torch", "torch_compiled")
PLACEMENTS = ("device", "host", "stream")
DRAWN = "drawn_faces/faces"
PACKAGES = ("optax", "torch", "torchvision", "timm", "grain", "opencv-python-headless")
NOTES = """
"step" trains on one uint8 batch that stays on the device. agenet's step crops, flips and normalises
it and computes the metrics that a run reports; PyTorch's batch is cropped and flipped already.
"loop" is a whole training: agenet's Trainer with images on the device, on the host or streamed;
PyTorch's DataLoader decodes the same files with OpenCV, with one process per core, each two batches
ahead. Host time per step is that of agenet's loop without computation, which on an accelerator
overlaps with the computation. "agenet" is agenet's speed divided by the other's, for
its loop with images on the device. Nothing is dropped except in Levi-Hassner's hidden layers; the
optimizer is Adam. Memory is the peak of the process after the stage has run once; on a GPU, what
the framework has allocated. Bytes moved are XLA's count; they may stay in a cache. Load is that of
other programs, in cores; it slows down some frameworks more than others.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains every network in every framework and prints tables.

    Raises:
        UserError: an option is wrong, or agenet cannot be measured.
    """
    args = parse(arguments)
    config = create_config(args)

    def choose(on_cpu: bool) -> None:
        if args.peers is None:
            args.peers = PEERS[:1] if on_cpu else PEERS
        if args.placements is None:
            # A CPU's own memory is the host's.
            args.placements = [name for name in PLACEMENTS if name != "host" or not on_cpu]

    def bench_network(work: Work, batch: int, limits: Worker) -> Figures:
        training = Training(**vars(work), config=network_config(config, work))
        return bench(training, batch, limits, args)

    result = {"data_set": args.data_set}
    turns.run_networks(args, result, PACKAGES, choose, bench_network, print_model)
    print(NOTES)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options, with `models`, `peers` and `placements` as lists."""
    parser = ArgumentParser(
        description="Speed of training: the step, the loop, the input, and the device's limits. "
        "About 10 minutes on two CPU cores; torch_compiled, which is not a default there, takes "
        "several minutes more for each network.",
    )
    add = parser.add_argument
    tables.add_network_options(parser, MODELS)
    add("--data_set", default=DRAWN, help=f"DATA_SET/CONFIG, prepared (default: {DRAWN})")
    add("--data_dir", default="", help="where it is prepared (default: TFDS's own)")
    add(
        "--peers",
        help=f'list of {", ".join(PEERS)}, or "" (default: on a CPU {PEERS[0]}, else both)',
    )
    add(
        "--placements",
        help=f"list of placements of images, {', '.join(PLACEMENTS)} (default: all, on a CPU "
        "without host)",
    )
    tables.add_turn_options(parser, rounds=3, seconds=1.0)
    args = parser.parse_args(arguments)
    tables.check_options(args, batch_size=1, size=1, rounds=1)
    tables.check_names(args, "peers", PEERS)
    tables.check_names(args, "placements", PLACEMENTS)
    return args


def create_config(args: argparse.Namespace) -> Any:
    """The config of the data set; drawn faces are prepared if they are missing.

    Raises:
        UserError: the data set is not prepared.
    """
    from agenet.data.records import find_prepared
    from agenet.runs.config import parse_config
    from agenet.runs.launch import prepare_if_asked
    from configs import default

    config = default.get_config()
    config.dataset.name, config.dataset.data_dir = args.data_set, args.data_dir
    config.dataset.prepare = args.data_set == DRAWN
    config.duration = "1000000 steps"  # The turns end it. Nothing else may interrupt it.
    config.evaluate_every = config.checkpoint_every = "100%"
    parsed = parse_config(config.to_dict())
    prepare_if_asked(parsed.dataset)
    find_prepared(args.data_set, args.data_dir)
    return parsed


def network_config(config: Any, work: Work) -> Any:
    """A copy of the config with the settings of the network."""
    from agenet.runs.config import IMAGENET_MEAN, IMAGENET_STD

    model: Any = dataclasses.replace(
        config.model, name=work.model, dtype=cast(Any, work.dtype), drop_path_rate=0.0
    )
    if work.model != "levi_hassner":
        model = dataclasses.replace(model, dropout_rate=0.0)
    images = dataclasses.replace(
        config.input,
        size=round(work.size * 8 / 7),
        crop_size=work.size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return dataclasses.replace(config, model=model, input=images)


def bench(work: Training, requested: int, limits: Worker, args: argparse.Namespace) -> Figures:
    """Measures one network."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in ("agenet", *args.peers):
            turns.log(f"{work.model}: starting {name}")
            worker = Worker(name, ENGINES[name], work, args.limit)
            workers[name] = stack.enter_context(worker)
            worker.start()
        if error := workers["agenet"].error:
            raise UserError(f"{work.model}: {error}")
        agenet = workers["agenet"]
        training = {"agenet, step": (agenet, "step")}
        loading = {}
        for place in args.placements:
            training[f"agenet, loop, {place}"] = agenet, f"loop {place}"
            loading[f"agenet, {place}"] = agenet, f"load {place}"
        for peer in args.peers:
            training |= {f"{peer}, {stage}": (workers[peer], stage) for stage in ("step", "loop")}
        rates: list[dict[str, float]] = []
        batch, trained = turns.prepare_largest(f"{work.model}, training", training, requested)
        timing = {"rounds": args.rounds, "seconds": args.seconds}
        turns.take_turns(
            f"{work.model}, training",
            training,
            trained,
            each_round=lambda: rates.append(limits.ask("rates")),
            **timing,
        )
        loaded = turns.prepare(f"{work.model}, loading", loading, batch)
        turns.take_turns(f"{work.model}, loading", loading, loaded, **timing)
    ours = trained["agenet, step"]
    if "median" in ours and not limits.error:
        ours |= turns.roofline(ours["flops"], ours["bytes"], ours["rounds"], rates)
    compare(trained, args.placements[0] if args.placements else "")
    return {
        "model": work.model,
        "size": work.size,
        "dtype": work.dtype,
        "batch": batch,
        "requested": requested,
        "parameters": ours.get("parameters"),
        "training": trained,
        "loading": loaded,
    }


def compare(trained: dict[str, Figures], first: str) -> None:
    """Adds ratios of speeds to the figures, where both were measured.

    `of_step` is the speed of a loop divided by that of the same framework's step; `ratio` agenet's
    speed divided by a peer's at the same task, for the loop with images in the `first` placement.
    """

    def share(name: str, of: str) -> float | None:
        both = [trained.get(each, {}).get("rounds") for each in (name, of)]
        return turns.median_ratio(both[0], both[1]) if both[0] and both[1] else None

    for name, found in trained.items():
        framework, stage = name.split(", ")[:2]
        ours = "agenet, step" if stage == "step" else f"agenet, loop, {first}"
        if stage == "loop" and (value := share(name, f"{framework}, step")):
            found["of_step"] = value
        if framework != "agenet" and (value := share(ours, name)):
            found["ratio"] = value


def print_model(figures: Figures) -> None:
    """Prints training, loading, limits and failures."""
    batch, parameters = figures["batch"], figures["parameters"] or 0
    halved = f" ({figures['requested']}: out of memory)" if batch < figures["requested"] else ""
    print(
        f"\n### {figures['model']}, {figures['size']} px, batch {batch}{halved}, "
        f"{figures['dtype']}, {parameters:,} parameters\n"
    )
    rows = {
        name: [
            tables.rate_cell(found, batch),
            f"{found['of_step']:.1%}" if "of_step" in found else "-",
            tables.cell(found, "ratio"),
            tables.cell(found, "prepare_seconds"),
            tables.cell(found, "peak_bytes", 1e-9),
        ]
        for name, found in figures["training"].items()
    }
    columns = ["images/s", "of its step", "agenet", "preparing, s", "memory, GB"]
    tables.print_table(columns, rows, "training")
    loading, step = figures["loading"], figures["training"]["agenet, step"]
    host = (f"{tables.cell(found, 'median', 1e3)} ms ({name})" for name, found in loading.items())
    print(f"\nHost time per step: {', '.join(host)}.")
    tables.print_roofline({"step": step})
    tables.print_problems({stage: figures[stage] for stage in ("training", "loading")})


if __name__ == "__main__":
    with one_line_errors():
        main()
