"""How fast the networks run and train on this machine, beside other frameworks.

python scripts/bench_models.py [--models=efficientnet_b0,resnet50] [--peers=torch,onnxruntime]

Every framework has a process of its own. They take turns, and a ratio is the median of those of
the rounds, because a machine's speed may change from one minute to the next.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agenet.errors import ArgumentParser, UserError, one_line_errors  # noqa: E402
from scripts.bench_engines import (  # noqa: E402
    PEERS,
    STAGES,
    Figures,
    Work,
    export_onnx,
    stages_of,
)
from scripts.bench_worker import Worker  # noqa: E402

MODELS = "efficientnet_b0,resnet50,efficientnet_lite0,levi_hassner"
DTYPES = ("float32", "bfloat16")
NOTES = """
Ratios are agenet's speed over the other's. Memory is the most that the process had taken when the
stage had run once, on a GPU the framework's share of the device's memory. What XLA counts as bytes
moved may stay in a cache, so that more than 100 % of a memory limit can be reached. On Linux all
frameworks have the C library's memory in large pages, as if started with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, unless that variable is set to something else. What other
programs take (their load is in cores) slows down one framework more than another.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every network in every framework and prints tables.

    Raises:
        UserError: an option names what there is not.
    """
    args = parse(arguments)
    from agenet.data.resident import available_cores

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others share the device
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # to see what compiling takes
    # A step's memory comes from the system anew each time, which in pages of 4 kB can take as long
    # as the computation. Read when a process starts, so by all frameworks alike.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    with Worker("limits", Work(), args.limit) as limits:
        device = limits.start()
        if "error" in device:
            raise UserError(f"JAX does not start: {device['error']}")
        work = Work(
            # Every accelerator but a TPU has a backend in PyTorch that goes by the name of cuda.
            platform={"cpu": "cpu", "tpu": "tpu"}.get(device["platform"], "gpu"),
            dtype=args.dtype or ("float32" if device["platform"] == "cpu" else "bfloat16"),
            cores=available_cores(),
        )
        on_cpu = work.platform == "cpu"
        batch = args.batch_size or (16 if on_cpu else 256)
        peers = args.peers
        if peers is None:
            peers = ["torch", *(PEERS[2:] if on_cpu else PEERS[1:2])]
        result: Figures = {"machine": device["machine"], "dtype": work.dtype, "models": []}
        result["machine"]["versions"] |= _versions(peers)
        result["load"] = os.getloadavg()[0]
        result["malloc"] = os.environ["GLIBC_TUNABLES"]
        print_machine(result)
        limits.ask("fill", work.dtype)
        for name in args.models:
            size = args.size or _input_size(name)
            figures = bench(
                dataclasses.replace(work, model=name, size=size), batch, peers, limits, args
            )
            result["models"].append(figures)
            print_model(figures)
            print_roofline(figures)
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
    parser.add_argument("--models", default=MODELS, help=f'list, or "all" (default: {MODELS})')
    parser.add_argument(
        "--peers",
        help=f'list of {", ".join(PEERS)}, or "all", or "" (default: on a CPU all but '
        "torch_compiled, else torch and torch_compiled)",
    )
    parser.add_argument(
        "--batch_size", type=int, help="of inference and training (default: 16 on a CPU, else 256)"
    )
    parser.add_argument("--size", type=int, help="side of the input (default: the network's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of a turn, at least one call (default: 1)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=300.0,
        help="seconds after which a framework that prepares a stage is given up (default: 300)",
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args(arguments)
    for option in ("batch_size", "size", "rounds"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option}={value} must be at least 1")
    if args.json and not args.json.resolve().parent.is_dir():
        raise UserError(f"--json: there is no folder {args.json.resolve().parent}")
    if args.peers is not None:
        args.peers = list(PEERS) if args.peers == "all" else _names(args.peers)
        for name in args.peers:
            if name not in PEERS:
                raise UserError(f"--peers: {name!r} is not one of {', '.join(PEERS)}")
    from agenet.models import MODELS as KNOWN

    args.models = list(KNOWN) if args.models == "all" else _names(args.models)
    for name in args.models:
        _input_size(name)  # raises for an unknown one
    return args


def bench(
    work: Work, batch_size: int, peers: Sequence[str], limits: Worker, args: argparse.Namespace
) -> Figures:
    """All figures of one network: per stage the batch and each engine's figures or error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = dataclasses.replace(work, onnx=Path(folder) / "model.onnx")
        workers = [
            stack.enter_context(Worker(name, work, args.limit)) for name in ("agenet", *peers)
        ]
        exported = [worker for worker in workers if worker.engine in ("onnxruntime", "openvino")]
        if exported and work.platform == "cpu":
            _log(f"{work.model}: exporting to ONNX")
            if error := _export(work):
                for worker in exported:
                    worker.error = error
        descriptions = []
        for worker in workers:
            _log(f"{work.model}: starting {worker.engine}")
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
    requested = batch = 1 if stage == "latency" else batch_size
    able = [worker for worker in workers if stage in stages_of(worker.engine)]
    what = f"{workers[0].work.model}: {stage}"
    while True:
        figures: dict[str, Figures] = {}
        for worker in able:
            _log(f"{what}, batch {batch}: preparing {worker.engine}")
            figures[worker.engine] = worker.ask("prepare", stage, batch)
        full = [name for name, found in figures.items() if _out_of_memory(found)]
        if not full or batch == 1:
            break
        batch //= 2
        _log(f"{what}: out of memory in {', '.join(full)}: halving the batch to {batch}")
    able = [worker for worker in able if "error" not in figures[worker.engine]]
    rounds: dict[str, list[list[float]]] = {worker.engine: [] for worker in able}
    rates = []
    for number in range(args.rounds if able else 0):
        _log(f"{what}, batch {batch}: round {number + 1} of {args.rounds}")
        rates.append(limits.ask("rates"))
        for worker in able[number % len(able) :] + able[: number % len(able)]:
            found = figures[worker.engine]
            times = worker.ask("measure", stage, args.seconds)
            if isinstance(times, dict):
                found |= times
                continue
            rounds[worker.engine].append(times)
            found["idle"] = max(found.get("idle", 0.0), worker.idle[1] / worker.idle[0])
    for worker in able:
        worker.ask("release")
    done = {name: rounds[name] for name in rounds if "error" not in figures[name]}
    for name, times in done.items():
        figures[name] |= {
            "rounds": times,
            "median": statistics.median(map(statistics.median, times)),
            "minimum": min(map(min, times)),
        }
        if name != "agenet" and "agenet" in done:
            figures[name]["ratio"] = median_ratio(done["agenet"], times)
    if "agenet" in done and not limits.error:
        ours = figures["agenet"]
        ours |= roofline(ours["flops"], ours["bytes"], done["agenet"], rates)
    return {"batch": batch, "requested": requested, "engines": figures}


def _out_of_memory(answer: Figures) -> bool:
    error = answer.get("error", "").lower()
    return any(sign in error for sign in ("out of memory", "resource_exhausted", "memoryerror"))


def median_ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """How many times as fast we are: the median over rounds of their median time over ours."""
    return statistics.median(
        statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)
    )


def roofline(
    flops: float,
    moved: float,
    rounds: Sequence[Sequence[float]],
    rates: Sequence[dict[str, float]],
) -> Figures:
    """Which limit of the device binds, and the fraction of it reached, by the median round.

    S. Williams et al., "Roofline: An Insightful Visual Performance Model", CACM 2009. `moved` are
    bytes; `rates` are the limits in each round, bytes/s as "copy" and flop/s as "product".
    """
    copy = statistics.median(rate["copy"] for rate in rates)
    product = statistics.median(rate["product"] for rate in rates)
    fractions = [
        max(moved / rate["copy"], flops / rate["product"]) / statistics.median(times)
        for times, rate in zip(rounds, rates, strict=True)
    ]
    return {
        "bandwidth": copy,
        "peak_flops": product,
        "bound": "memory" if moved / copy > flops / product else "arithmetic",
        "fraction": statistics.median(fractions),
    }


def print_machine(result: Figures) -> None:
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    print(f"{machine['devices']}; {machine['processor']}; {result['dtype']}; {versions}")
    print(f"GLIBC_TUNABLES={result['malloc']}; other programs' load {result['load']:.1f}")


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
    print(f"| | {' | '.join(header)} |")
    print("|---|" + "---:|" * len(header))
    for name in stages["latency"]["engines"]:
        found = {stage: stages[stage]["engines"].get(name, {}) for stage in STAGES}
        latency = found["latency"]
        cells = [_number(latency, "median", 1e3), _number(latency, "minimum", 1e3)]
        cells.append(_number(latency, "ratio"))
        for stage in STAGES[1:]:
            speed = {"speed": stages[stage]["batch"] / found[stage].get("median", float("inf"))}
            cells += [_number(speed, "speed"), _number(found[stage], "ratio")]
        for key, scale in (("prepare_seconds", 1.0), ("peak_bytes", 1e-9)):
            cells.append(" / ".join(_number(found[stage], key, scale) for stage in STAGES))
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for stage in STAGES:
        for name, found in stages[stage]["engines"].items():
            if "error" in found:
                print(f"- {name}, {stage}: failed: {found['error']}")
            if found.get("idle", 0.0) > 0.05:
                print(f"- {name}, {stage}: busy for {found['idle']:.0%} of others' turns")


def print_roofline(figures: Figures) -> None:
    """What XLA counts in each stage, and the limits of the device that this comes near to."""
    print("\n| agenet | GFLOP | GB moved | GFLOP/s | GB/s | reached | compiling, s | program, GB |")
    print("|---|" + "---:|" * 7)
    for stage, found in figures["stages"].items():
        ours = found["engines"]["agenet"]
        if "fraction" not in ours:
            continue
        seconds = ours["median"]
        cells = [
            f"{ours['flops'] / 1e9:.3g}",
            f"{ours['bytes'] / 1e9:.3g}",
            f"{ours['flops'] / seconds / 1e9:,.0f} of {ours['peak_flops'] / 1e9:,.0f}",
            f"{ours['bytes'] / seconds / 1e9:,.1f} of {ours['bandwidth'] / 1e9:,.1f}",
            f"{ours['fraction']:.0%} of {ours['bound']}",
            _number(ours, "compile_seconds"),
            _number(ours, "program_bytes", 1e-9),
        ]
        print(f"| {stage} | {' | '.join(cells)} |")


def _number(figures: Figures, key: str, scale: float = 1.0) -> str:
    value = figures.get(key, 0.0) * scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else "-"


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _input_size(model: str) -> int:
    from agenet.models import create_model

    return int(create_model(model, {"imagenet": 1}).backbone.input_size)


def _versions(peers: Sequence[str]) -> dict[str, str]:
    versions = {}
    for package in ("torch", "torchvision", "timm", "onnxruntime", "openvino"):
        if peers:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
    return versions


def _log(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
