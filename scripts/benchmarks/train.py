"""How fast networks are trained on this machine, in one step and in the whole loop.

python scripts/benchmarks/train.py [--models=efficientnet_b0,resnet50] [--data_set=adience/faces]

The bare compiled step, agenet.main's loop around it and the loaders, beside PyTorch with a loader
of its own, and the limit that the device sets. All take turns, each in a process of its own.
`--json` writes all figures. What its `models` have for other programs to read:

    model, size, dtype, batch          what was trained, with pictures of how many pixels
    step_pictures_per_second           of agenet's bare step
    loop_pictures_per_second           of its loop, by where the pictures are
    load_pictures_per_second           of its loop without computation, likewise
    host_seconds_per_step              which the loop takes beside the device's computation
    step_program_bytes, parameters     of the compiled step: arguments, results and in between
    pictures_per_second                of everyone, by the names of the tables
"""

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, cast

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from scripts.benchmarks.engines import Limits, Work
from scripts.benchmarks.loops import ENGINES, Training
from scripts.benchmarks.tables import (
    add_network_options,
    add_turn_options,
    cell,
    check_options,
    input_size,
    print_header,
    print_machine,
    print_problems,
    print_roofline,
    split_names,
    versions,
    work_on,
)
from scripts.benchmarks.turns import (
    log,
    median_ratio,
    prepare,
    prepare_largest,
    roofline,
    take_turns,
    use_environment,
)

MODELS = "efficientnet_b0,resnet50,levi_hassner"
PEERS = ("torch", "torch_compiled")
PLACEMENTS = ("device", "host", "stream")
DRAWN = "drawn_faces/faces"
PACKAGES = ("optax", "torch", "torchvision", "timm", "grain", "opencv-python-headless")
NOTES = """
"step" trains on one batch of bytes that stays on the device: for agenet it cuts, mirrors and
normalises them, sums what is reported and donates its state; PyTorch's is cut and mirrored
already. "loop" is a whole training: agenet's Trainer with the pictures on the device, on the host
or streamed; PyTorch's loader decodes the same bytes with OpenCV in as many processes as there are
cores, each two batches ahead. "load" is the same without the computation; for agenet it is all
that the host does for a step, and on a device of its own it goes on beside the computation.
"agenet" is its speed over the other's at the same, for its loop with the pictures on the device.
Networks drop nothing but in levi_hassner's hidden layers; the optimiser is Adam. Memory is the most
that the process had taken when it had done the stage once, on a GPU the framework's share of the
device's memory. What XLA counts as bytes moved may stay in a cache. What other programs take
(their load is in cores) slows down one framework more than another.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains every network in every framework and prints tables.

    Raises:
        UserError: an option names what there is not, or agenet cannot be measured.
    """
    args = parse(arguments)
    from agenet.data.decoding import available_cores

    use_environment()
    config = create_config(args)
    with Worker("limits", Limits, Work(), args.limit) as limits:
        device = limits.start()
        if "error" in device:
            raise UserError(f"JAX does not start: {device['error']}")
        base = work_on(device, args.dtype, available_cores())
        on_cpu = base.platform == "cpu"
        batch = args.batch_size or (16 if on_cpu else 256)
        if args.peers is None:
            args.peers = PEERS[:1] if on_cpu else PEERS
        if args.placements is None:
            # A CPU's own memory is the host's.
            args.placements = [name for name in PLACEMENTS if name != "host" or not on_cpu]
        result: Figures = {"machine": device["machine"], "dtype": base.dtype, "models": []}
        result |= {"data_set": args.data_set, "load": os.getloadavg()[0]}
        result["machine"]["versions"] |= versions(PACKAGES)
        result["malloc"] = os.environ["GLIBC_TUNABLES"]
        print_machine(result, f"{base.dtype}; {args.data_set}")
        limits.ask("fill", base.dtype)
        for name in args.models:
            size = args.size or input_size(name)
            work = Training(**vars(base) | {"model": name, "size": size, "config": config})
            work = dataclasses.replace(work, config=network_config(work))
            figures = bench(work, batch, limits, args)
            result["models"].append(figures)
            print_model(figures)
            if args.json:  # after each network, so that an interrupted run has left something
                args.json.write_text(json.dumps(result, indent=1))
    print(NOTES)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `models`, `peers` and `placements` as lists."""
    parser = ArgumentParser(
        description="Speed of training: the step, the loop, the loaders, and the limit. About "
        "10 minutes on two CPU cores; with torch_compiled, which is left out there by default, "
        "several minutes more for each network.",
    )
    add = parser.add_argument
    add_network_options(parser, MODELS)
    add("--data_set", default=DRAWN, help=f"DATA_SET/CONFIG, prepared (default: {DRAWN})")
    add("--data_dir", default="", help="where it is prepared (default: TFDS's own)")
    add(
        "--peers",
        help=f'list of {", ".join(PEERS)}, or "" (default: on a CPU {PEERS[0]}, else both)',
    )
    add(
        "--placements",
        help=f"list of where pictures are, {', '.join(PLACEMENTS)} (default: all, on a CPU "
        "without host)",
    )
    add_turn_options(parser, rounds=3, seconds=1.0)
    args = parser.parse_args(arguments)
    check_options(args, batch_size=1, size=1, rounds=1)
    for option, known in (("peers", PEERS), ("placements", PLACEMENTS)):
        if (text := getattr(args, option)) is None:
            continue
        setattr(args, option, split_names(text))
        for name in getattr(args, option):
            if name not in known:
                raise UserError(f"--{option}: {name!r} is not one of {', '.join(known)}")
    return args


def create_config(args: argparse.Namespace) -> Any:
    """What is trained on; drawn faces are made if they are not there.

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
    config.duration = "1000000 steps"  # The turns end it; nothing else is to come between.
    config.evaluate_every = config.checkpoint_every = "100%"
    parsed = parse_config(config.to_dict())
    prepare_if_asked(parsed.dataset)
    find_prepared(args.data_set, args.data_dir)
    return parsed


def network_config(work: Training) -> Any:
    """The config with what is the network's."""
    from agenet.runs.config import IMAGENET_MEAN, IMAGENET_STD

    model: Any = dataclasses.replace(
        work.config.model, name=work.model, dtype=cast(Any, work.dtype), drop_path_rate=0.0
    )
    if work.model != "levi_hassner":
        model = dataclasses.replace(model, dropout_rate=0.0)
    images = dataclasses.replace(
        work.config.input,
        size=round(work.size * 8 / 7),
        crop_size=work.size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return dataclasses.replace(work.config, model=model, input=images)


def bench(work: Training, requested: int, limits: Worker, args: argparse.Namespace) -> Figures:
    """All figures of one network."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in ("agenet", *args.peers, "opencv"):
            log(f"{work.model}: starting {name}")
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
        # The loader is the same, compiled or not.
        loading |= {peer: (workers[peer], "load") for peer in args.peers[:1]}
        loading |= {"opencv": (workers["opencv"], "load")}
        rates: list[dict[str, float]] = []
        batch, trained = prepare_largest(f"{work.model}, training", training, requested)
        turns = {"rounds": args.rounds, "seconds": args.seconds}
        take_turns(
            f"{work.model}, training",
            training,
            trained,
            each_round=lambda: rates.append(limits.ask("rates")),
            **turns,
        )
        loaded = prepare(f"{work.model}, loading", loading, batch)
        take_turns(f"{work.model}, loading", loading, loaded, **turns)
    ours = trained["agenet, step"]
    if "median" in ours and not limits.error:
        ours |= roofline(ours["flops"], ours["bytes"], ours["rounds"], rates)
    compare(trained, loaded, args.placements[0] if args.placements else "")
    return {
        "model": work.model,
        "size": work.size,
        "dtype": work.dtype,
        "batch": batch,
        "requested": requested,
        "training": trained,
        "loading": loaded,
        **summary(trained, loaded, batch),
    }


def compare(trained: dict[str, Figures], loaded: dict[str, Figures], first: str) -> None:
    """Adds, where both were measured, what share of something else a speed is.

    `of_step` is that of a loop, of the same framework's bare step; `ratio` that of agenet, of a
    peer at the same, its loop with the pictures in the `first` place; `of_opencv` that of a loader.
    """

    def share(figures: dict[str, Figures], name: str, of: str) -> float | None:
        both = [figures.get(each, {}).get("rounds") for each in (name, of)]
        return median_ratio(both[0], both[1]) if both[0] and both[1] else None

    for name, found in trained.items():
        framework, stage = name.split(", ")[:2]
        ours = "agenet, step" if stage == "step" else f"agenet, loop, {first}"
        if stage == "loop" and (value := share(trained, name, f"{framework}, step")):
            found["of_step"] = value
        if framework != "agenet" and (value := share(trained, ours, name)):
            found["ratio"] = value
    for name, found in loaded.items():
        if name != "opencv" and (value := share(loaded, name, "opencv")):
            found["of_opencv"] = value


def summary(trained: dict[str, Figures], loaded: dict[str, Figures], batch: int) -> Figures:
    """The figures that this module's description lists."""
    step = trained["agenet, step"]
    rates = {
        f"{what}{name}": batch / found["median"]
        for what, figures in (("", trained), ("loading: ", loaded))
        for name, found in figures.items()
        if "median" in found
    }

    def of_agenet(start: str) -> dict[str, float]:
        return {name.removeprefix(start): rates[name] for name in rates if name.startswith(start)}

    return {
        "parameters": step.get("parameters"),
        "step_pictures_per_second": rates.get("agenet, step"),
        "step_program_bytes": step.get("program_bytes"),
        "loop_pictures_per_second": of_agenet("agenet, loop, "),
        "load_pictures_per_second": of_agenet("loading: agenet, "),
        "host_seconds_per_step": loaded.get("agenet, device", {}).get("median"),
        "pictures_per_second": rates,
    }


def print_model(figures: Figures) -> None:
    """What trains, what loads, the limit, and what failed."""
    batch, parameters = figures["batch"], figures["parameters"] or 0
    halved = f" ({figures['requested']}: out of memory)" if batch < figures["requested"] else ""
    print(
        f"\n### {figures['model']}, {figures['size']} px, batch {batch}{halved}, "
        f"{figures['dtype']}, {parameters:,} parameters\n"
    )
    columns = ["pictures/s", "of its step", "agenet", "preparing, s", "memory, GB"]
    print_header(columns, "training")
    for name, found in figures["training"].items():
        rate = {"rate": batch / found.get("median", float("inf"))}
        cells = [cell(rate, "rate"), percent(found, "of_step"), cell(found, "ratio")]
        cells += [cell(found, "prepare_seconds"), cell(found, "peak_bytes", 1e-9)]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    print_header(["pictures/s", "of OpenCV", "ms a batch"], "loading")
    for name, found in figures["loading"].items():
        rate = {"rate": batch / found.get("median", float("inf"))}
        cells = [cell(rate, "rate"), percent(found, "of_opencv"), cell(found, "median", 1e3)]
        print(f"| {name} | {' | '.join(cells)} |")
    step = figures["training"]["agenet, step"]
    if host := figures["host_seconds_per_step"]:
        share = f", {host / step['median']:.1%} of a step" if "median" in step else ""
        print(f"\nHost time per step: {host * 1e6:,.0f} µs{share}.")
    print_roofline({"step": step})
    print_problems({stage: figures[stage] for stage in ("training", "loading")})


def percent(figures: Figures, key: str) -> str:
    return f"{figures[key]:.1%}" if key in figures else "-"


if __name__ == "__main__":
    with one_line_errors():
        main()
