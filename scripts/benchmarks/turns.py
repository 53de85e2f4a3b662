"""Lets frameworks take turns, and computes medians, ratios and rooflines from their times.

A machine's speed may change from one minute to the next. Therefore a ratio is the median over
rounds, in each of which every framework has a turn.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from agenet.errors import UserError
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from agenet.runs.allocation import LARGE_PAGES
from scripts.benchmarks import tables
from scripts.benchmarks.engines import Limits, Work

# By name in the table: a process, and the stage of it that is timed.
Contestants = Mapping[str, tuple[Worker, str]]

_RESTING = 0.1  # seconds


def use_environment() -> None:
    """Sets the environment that the processes of all frameworks inherit."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # frameworks share the device
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # compilation is measured
    # A step allocates its memory anew each time, which in pages of 4 kB can take as long as the
    # computation. Every process reads this when it starts, so it is the same for all frameworks.
    os.environ.setdefault("GLIBC_TUNABLES", LARGE_PAGES)


def run_networks(
    args: argparse.Namespace,
    result: Figures,
    packages: Sequence[str],
    choose: Callable[[bool], None],
    bench: Callable[[Work, int, Worker], Figures],
    print_network: Callable[[Figures], None],
) -> None:
    """Measures all networks of the options, prints their tables and writes `--json`.

    Args:
        args: options of `tables.add_network_options` and `tables.add_turn_options`.
        result: what the JSON file is to hold besides the machine and the networks.
        packages: whose versions are printed.
        choose: completes the options, given whether the device is a CPU.
        bench: measures one network, given its work, the largest batch and the device's limits.
        print_network: prints the tables of one network.

    Raises:
        UserError: JAX does not start.
    """
    from agenet.distributed.cores import available_cores

    use_environment()
    with Worker("limits", Limits, Work(), args.limit) as limits:
        device = limits.start()
        if "error" in device:
            raise UserError(f"JAX does not start: {device['error']}")
        work = tables.work_on(device, args.dtype, available_cores())
        on_cpu = work.platform == "cpu"
        choose(on_cpu)
        result |= {"machine": device["machine"], "dtype": work.dtype, "models": []}
        result |= {"load": os.getloadavg()[0], "malloc": os.environ["GLIBC_TUNABLES"]}
        result["machine"]["versions"] |= tables.versions(packages)
        shared = (work.dtype, result.get("data_set"))
        tables.print_machine(result, "; ".join(filter(None, shared)))
        limits.ask("fill", work.dtype)
        for name in args.models:
            size = args.size or tables.input_size(name)
            of_network = dataclasses.replace(work, model=name, size=size)
            figures = bench(of_network, args.batch_size or (16 if on_cpu else 256), limits)
            result["models"].append(figures)
            print_network(figures)
            tables.write_json(args, result)  # now, so that an interrupted run has left something


def prepare(what: str, contestants: Contestants, batch: int) -> dict[str, Figures]:
    """Prepares a stage of each, and returns their figures or errors."""
    figures = {}
    for name, (worker, stage) in contestants.items():
        log(f"{what}, batch {batch}: preparing {name}")
        figures[name] = worker.ask("prepare", stage, batch)
    return figures


def prepare_largest(
    what: str, contestants: Contestants, batch: int
) -> tuple[int, dict[str, Figures]]:
    """Like `prepare`, with the batch halved until it fits in all frameworks."""
    while True:
        figures = prepare(what, contestants, batch)
        full = [name for name, found in figures.items() if _out_of_memory(found)]
        if not full or batch == 1:
            return batch, figures
        batch //= 2
        log(f"{what}: out of memory in {', '.join(full)}: halving the batch to {batch}")


def take_turns(
    what: str,
    contestants: Contestants,
    figures: dict[str, Figures],
    *,
    rounds: int,
    seconds: float,
    each_round: Callable[[], None] = lambda: None,
) -> None:
    """Times all that are prepared, and adds the times or an error to their figures.

    Times are seconds per call: `rounds` has a list for each round, `median` is the median of the
    rounds' medians. `ratio` is the speed of "agenet" divided by this one's. `idle` is the largest
    share of a core that the process used during others' turns.
    """
    able = [name for name in contestants if "error" not in figures[name]]
    times: dict[str, list[list[float]]] = {name: [] for name in able}
    for number in range(rounds if able else 0):
        log(f"{what}: round {number + 1} of {rounds}")
        each_round()
        first = number % len(able)
        for name in able[first:] + able[:first]:
            worker, stage = contestants[name]
            answer = worker.ask("measure", stage, seconds)
            if isinstance(answer, dict):
                figures[name] |= answer
                continue
            times[name].append(answer)
            waited, busy = worker.idle
            # Threads that stop soon after their own turn disturb nobody.
            if waited > _RESTING:
                figures[name]["idle"] = max(figures[name].get("idle", 0.0), busy / waited)
    for worker in dict.fromkeys(contestants[name][0] for name in able):
        worker.ask("release")
    done = {name: times[name] for name in able if "error" not in figures[name]}
    for name, found in done.items():
        figures[name] |= {
            "rounds": found,
            "median": statistics.median(map(statistics.median, found)),
            "minimum": min(map(min, found)),
        }
        if name != "agenet" and "agenet" in done:
            figures[name]["ratio"] = median_ratio(done["agenet"], found)


def _out_of_memory(answer: Figures) -> bool:
    error = answer.get("error", "").lower()
    return any(sign in error for sign in ("out of memory", "resource_exhausted", "memoryerror"))


def median_ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """How many times as fast `ours` is: the median over rounds of the ratio of median times."""
    return statistics.median(
        statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)
    )


def roofline(
    flops: float,
    moved: float,
    rounds: Sequence[Sequence[float]],
    rates: Sequence[dict[str, float]],
) -> Figures:
    """The limit of the device that binds, and the fraction of it that is reached.

    S. Williams et al., "Roofline: An Insightful Visual Performance Model", CACM 2009.

    Args:
        flops: floating-point operations of a call.
        moved: bytes that a call moves.
        rounds: seconds of calls, a list for each round.
        rates: the limits in each round, bytes/s as "copy" and flop/s as "product".
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


def log(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
