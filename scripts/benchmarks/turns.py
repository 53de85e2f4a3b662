"""How the benchmarks have frameworks take turns, and what they make of the times.

A machine's speed may change from one minute to the next. So a ratio is the median of those of the
rounds, in each of which everyone has a turn.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker
from agenet.runs.allocation import LARGE_PAGES

# By the names of the table: a process, and which of its stages has the turns.
Contestants = Mapping[str, tuple[Worker, str]]

_RESTING = 0.1  # seconds


def use_environment() -> None:
    """Sets, for the processes to come, what all frameworks are to find alike."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others share the device
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # to see what compiling takes
    # A step's memory comes from the system anew each time, which in pages of 4 kB can take as long
    # as the computation. Read when a process starts, so by all frameworks alike.
    os.environ.setdefault("GLIBC_TUNABLES", LARGE_PAGES)


def prepare(what: str, contestants: Contestants, batch: int) -> dict[str, Figures]:
    """What each one says of its preparation, which may be an error."""
    figures = {}
    for name, (worker, stage) in contestants.items():
        log(f"{what}, batch {batch}: preparing {name}")
        figures[name] = worker.ask("prepare", stage, batch)
    return figures


def prepare_largest(
    what: str, contestants: Contestants, batch: int
) -> tuple[int, dict[str, Figures]]:
    """The same with the largest batch that fits everywhere: halved until it does."""
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
    """Adds to the figures of all that are prepared their times, or the error they end with.

    Times are seconds of a call: `rounds` has a list for each round; `median` is that of the
    rounds' medians. `ratio` is the speed of the contestant "agenet" over that of the others, and
    `idle` the share of a core that others' turns were disturbed by, at most.
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
            # Threads that come to rest after the turn before this one disturb nobody.
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


def log(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
