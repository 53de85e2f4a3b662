"""Measures how fast networks run and train on this machine, in agenet and in other frameworks.

python scripts/benchmarks/models.py [--models=efficientnet_b0,resnet50] [--peers=torch,onnxruntime]

Each framework runs in a process of its own. They take turns, and a ratio is the median over rounds,
because a machine's speed may change from one minute to the next.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from scripts.benchmarks import tables, turns
from scripts.benchmarks.engines import (
    ENGINES,
    PEERS,
    STAGES,
    OnnxExport,
    Work,
    stages_of,
)

MODELS = "efficientnet_b0,resnet50,efficientnet_lite0,levi_hassner"
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "openvino")
NOTES = """
A ratio is agenet's speed divided by the other's. Memory is the peak of the process after the stage
has run once; on a GPU, what the framework has allocated. Bytes moved are XLA's count; they may stay
in a cache, so more than 100 % of the memory limit is possible. On Linux all frameworks use large
pages for the C library's memory (GLIBC_TUNABLES above), unless that variable was set. Load is that
of other programs, in cores; it slows down some frameworks more than others.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every network in every framework and prints tables.

    Raises:
        UserError: an option is wrong, or JAX does not start.
    """
    args = parse(arguments)

    def choose(on_cpu: bool) -> None:
        if args.peers is None:
            args.peers = ["torch", *(PEERS[2:] if on_cpu else PEERS[1:2])]

    def bench_network(work: Work, batch: int, limits: Worker) -> Figures:
        return bench(work, batch, limits, args)

    turns.run_networks(args, {}, PACKAGES, choose, bench_network, print_model)
    print(NOTES)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options, with `models` and `peers` as lists."""
    parser = ArgumentParser(
        description="Speed, memory and limits of networks in agenet and other frameworks. About "
        "7 minutes on two CPU cores; torch_compiled, which is not a default there, takes several "
        "minutes more for each network.",
    )
    tables.add_network_options(parser, MODELS)
    parser.add_argument(
        "--peers",
        help=f'list of {", ".join(PEERS)}, or "" (default: on a CPU all but '
        "torch_compiled, else torch and torch_compiled)",
    )
    tables.add_turn_options(parser, rounds=3, seconds=1.0)
    args = parser.parse_args(arguments)
    tables.check_options(args, batch_size=1, size=1, rounds=1)
    tables.check_names(args, "peers", PEERS)
    return args


def bench(work: Work, batch_size: int, limits: Worker, args: argparse.Namespace) -> Figures:
    """Measures one network: for each stage the batch, and each engine's figures or error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = dataclasses.replace(work, onnx=Path(folder) / "model.onnx")
        workers = [
            Worker(name, ENGINES[name], work, args.limit) for name in ("agenet", *args.peers)
        ]
        for worker in workers:
            stack.enter_context(worker)
        exported = [worker for worker in workers if worker.name in ("onnxruntime", "openvino")]
        if exported and work.platform == "cpu":
            turns.log(f"{work.model}: exporting to ONNX")
            with Worker("export", OnnxExport, work, args.limit) as exporter:
                exporter.start()
            for worker in exported:
                worker.error = exporter.error and f"ONNX export: {exporter.error}"
        descriptions = []
        for worker in workers:
            turns.log(f"{work.model}: starting {worker.name}")
            descriptions.append(worker.start())
        if workers[0].error:
            raise UserError(f"{work.model}: {workers[0].error}")
        stages = {stage: run_stage(stage, batch_size, workers, limits, args) for stage in STAGES}
    return {"model": work.model, "size": work.size, **descriptions[0], "stages": stages}


def run_stage(
    stage: str,
    batch_size: int,
    workers: Sequence[Worker],
    limits: Worker,
    args: argparse.Namespace,
) -> Figures:
    """Times one stage: the batch that fits everywhere, and each engine's figures or error."""
    requested = 1 if stage == "latency" else batch_size
    able = {worker.name: (worker, stage) for worker in workers if stage in stages_of(worker.name)}
    what = f"{workers[0].work.model}: {stage}"
    batch, figures = turns.prepare_largest(what, able, requested)
    rates: list[dict[str, float]] = []
    turns.take_turns(
        what,
        able,
        figures,
        rounds=args.rounds,
        seconds=args.seconds,
        each_round=lambda: rates.append(limits.ask("rates")),
    )
    ours = figures["agenet"]
    if "median" in ours and not limits.error:
        ours |= turns.roofline(ours["flops"], ours["bytes"], ours["rounds"], rates)
    return {"batch": batch, "requested": requested, "engines": figures}


def print_model(figures: Figures) -> None:
    """Prints one row per engine: for each stage its speed and the ratio to agenet's."""
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
    rows = {}
    for name in stages["latency"]["engines"]:
        found = {stage: stages[stage]["engines"].get(name, {}) for stage in STAGES}
        latency = found["latency"]
        cells = [tables.cell(latency, "median", 1e3), tables.cell(latency, "minimum", 1e3)]
        cells.append(tables.cell(latency, "ratio"))
        for stage in STAGES[1:]:
            cells.append(tables.rate_cell(found[stage], stages[stage]["batch"]))
            cells.append(tables.cell(found[stage], "ratio"))
        for key, scale in (("prepare_seconds", 1.0), ("peak_bytes", 1e-9)):
            cells.append(" / ".join(tables.cell(found[stage], key, scale) for stage in STAGES))
        rows[name] = cells
    tables.print_table(header, rows)
    tables.print_problems({stage: found["engines"] for stage, found in stages.items()})
    tables.print_roofline({stage: found["engines"]["agenet"] for stage, found in stages.items()})


if __name__ == "__main__":
    with one_line_errors():
        main()
