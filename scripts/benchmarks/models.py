"""How fast the networks run and train on this machine, beside other frameworks.

python scripts/benchmarks/models.py [--models=efficientnet_b0,resnet50] [--peers=torch,onnxruntime]

Every framework has a process of its own. They take turns, and a ratio is the median of those of
the rounds, because a machine's speed may change from one minute to the next.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from scripts.benchmarks.engines import (
    ENGINES,
    PEERS,
    STAGES,
    Limits,
    Work,
    export_onnx,
    not_installed,
    stages_of,
)
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
    prepare_largest,
    roofline,
    take_turns,
    use_environment,
)

MODELS = "efficientnet_b0,resnet50,efficientnet_lite0,levi_hassner"
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "openvino")
NOTES = """
Ratios are agenet's speed over the other's. Memory is the most that the process had taken when the
stage had run once, on a GPU the framework's share of the device's memory. What XLA counts as bytes
moved may stay in a cache, so that more than 100 % of a memory limit can be reached. On Linux all
frameworks have the C library's memory in large pages (GLIBC_TUNABLES above), unless that variable
was set to something else. What other programs take (their load is in cores) slows down one
framework more than another.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every network in every framework and prints tables.

    Raises:
        UserError: an option names what there is not.
    """
    args = parse(arguments)
    from agenet.data.decoding import available_cores

    use_environment()
    with Worker("limits", Limits, Work(), args.limit) as limits:
        device = limits.start()
        if "error" in device:
            raise UserError(f"JAX does not start: {device['error']}")
        work = work_on(device, args.dtype, available_cores())
        on_cpu = work.platform == "cpu"
        batch = args.batch_size or (16 if on_cpu else 256)
        peers = args.peers
        if peers is None:
            peers = ["torch", *(PEERS[2:] if on_cpu else PEERS[1:2])]
        result: Figures = {"machine": device["machine"], "dtype": work.dtype, "models": []}
        result["machine"]["versions"] |= versions(PACKAGES if peers else [])
        result["load"] = os.getloadavg()[0]
        result["malloc"] = os.environ["GLIBC_TUNABLES"]
        print_machine(result, work.dtype)
        limits.ask("fill", work.dtype)
        for name in args.models:
            size = args.size or input_size(name)
            figures = bench(
                dataclasses.replace(work, model=name, size=size), batch, peers, limits, args
            )
            result["models"].append(figures)
            print_model(figures)
            print_roofline(
                {stage: found["engines"]["agenet"] for stage, found in figures["stages"].items()}
            )
            if args.json:  # after each network, so that an interrupted run has left something
                args.json.write_text(json.dumps(result, indent=1))
    print(NOTES)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `models` and `peers` as lists."""
    parser = ArgumentParser(
        description="Speed, memory and limits of the networks, beside other frameworks. About "
        "7 minutes on two CPU cores; with torch_compiled, which is left out there by default, "
        "several minutes more for each network.",
    )
    add_network_options(parser, MODELS)
    parser.add_argument(
        "--peers",
        help=f'list of {", ".join(PEERS)}, or "all", or "" (default: on a CPU all but '
        "torch_compiled, else torch and torch_compiled)",
    )
    add_turn_options(parser, rounds=3, seconds=1.0)
    args = parser.parse_args(arguments)
    check_options(args, batch_size=1, size=1, rounds=1)
    if args.peers is not None:
        args.peers = list(PEERS) if args.peers == "all" else split_names(args.peers)
        for name in args.peers:
            if name not in PEERS:
                raise UserError(f"--peers: {name!r} is not one of {', '.join(PEERS)}")
    return args


def bench(
    work: Work, batch_size: int, peers: Sequence[str], limits: Worker, args: argparse.Namespace
) -> Figures:
    """All figures of one network: per stage the batch and each engine's figures or error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = dataclasses.replace(work, onnx=Path(folder) / "model.onnx")
        workers = [
            Worker(name, ENGINES[name], work, args.limit, not_installed(name, work.model))
            for name in ("agenet", *peers)
        ]
        for worker in workers:
            stack.enter_context(worker)
        exported = [worker for worker in workers if worker.name in ("onnxruntime", "openvino")]
        if exported and work.platform == "cpu":
            log(f"{work.model}: exporting to ONNX")
            if error := _export(work):
                for worker in exported:
                    worker.error = error
        descriptions = []
        for worker in workers:
            log(f"{work.model}: starting {worker.name}")
            descriptions.append(worker.start())
        if workers[0].error:
            raise UserError(f"{work.model}: {workers[0].error}")
        stages = {stage: run_stage(stage, batch_size, workers, limits, args) for stage in STAGES}
    return {"model": work.model, "size": work.size, **descriptions[0], "stages": stages}


def _export(work: Work) -> str:
    """Why it failed, if it did."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(export_onnx, work).result()
    except Exception as error:  # Any: the peers' failure is a line in the table.
        return f"ONNX export: {type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
    return ""


def run_stage(
    stage: str,
    batch_size: int,
    workers: Sequence[Worker],
    limits: Worker,
    args: argparse.Namespace,
) -> Figures:
    """The batch that fitted everywhere, and each engine's figures or error."""
    requested = 1 if stage == "latency" else batch_size
    able = {worker.name: (worker, stage) for worker in workers if stage in stages_of(worker.name)}
    what = f"{workers[0].work.model}: {stage}"
    batch, figures = prepare_largest(what, able, requested)
    rates: list[dict[str, float]] = []
    take_turns(
        what,
        able,
        figures,
        rounds=args.rounds,
        seconds=args.seconds,
        each_round=lambda: rates.append(limits.ask("rates")),
    )
    ours = figures["agenet"]
    if "median" in ours and not limits.error:
        ours |= roofline(ours["flops"], ours["bytes"], ours["rounds"], rates)
    return {"batch": batch, "requested": requested, "engines": figures}


def print_model(figures: Figures) -> None:
    """A row per engine: for each stage its speed and agenet's in relation to it."""
    stages = figures["stages"]
    print(f"\n### {figures['model']}, {figures['size']} px, {figures['parameters']:,} parameters\n")
    batches = {
        stage: f"batch {found['batch']}"
        + (f" ({found['requested']}: out of memory)" if found["batch"] < found["requested"] else "")
        for stage, found in stages.items()
    }
    header = [f"ms, {batches['latency']}", "minimum", "ratio"]
    header += [f"images/s, {batches['inference']}", "ratio"]
    header += [f"images/s training, {batches['training']}", "ratio"]
    header += ["preparing, s", "memory, GB"]
    print_header(header)
    for name in stages["latency"]["engines"]:
        found = {stage: stages[stage]["engines"].get(name, {}) for stage in STAGES}
        latency = found["latency"]
        cells = [cell(latency, "median", 1e3), cell(latency, "minimum", 1e3)]
        cells.append(cell(latency, "ratio"))
        for stage in STAGES[1:]:
            speed = {"speed": stages[stage]["batch"] / found[stage].get("median", float("inf"))}
            cells += [cell(speed, "speed"), cell(found[stage], "ratio")]
        for key, scale in (("prepare_seconds", 1.0), ("peak_bytes", 1e-9)):
            cells.append(" / ".join(cell(found[stage], key, scale) for stage in STAGES))
        print(f"| {name} | {' | '.join(cells)} |")
    print_problems({stage: found["engines"] for stage, found in stages.items()})


if __name__ == "__main__":
    with one_line_errors():
        main()
