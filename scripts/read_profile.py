"""Prints the operations that take most time in a trace of `agenet train --profile`.

python scripts/read_profile.py RUN [--rows=15]

For traces of TPUs and GPUs xprof has more to show. Of a CPU's traces it shows no operation (xprof
2.24.2: hlo_stats and op_profile are empty), which is why this script exists.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.runs.series import table
from agenet.weights.formats.caffe import fields

# Parts of an operation's path that every path has, or that JAX inserts.
_NOT_A_PLACE = re.compile(r"\w+\(.*\)|closed_call|while|body|cond|branch_\d+_fun")


@dataclass(frozen=True)
class Trace:
    """Training steps in a trace.

    Attributes:
        steps: their number.
        seconds: how long they took together.
        costs: seconds and calls of each operation, by its kind and its place in the program.
    """

    steps: int
    seconds: float
    costs: Mapping[tuple[str, str], tuple[float, int]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints two tables, one by kind of operation and one by operation.

    Raises:
        UserError: there is no trace, or nothing in it.
    """
    parser = ArgumentParser(description="Prints the most expensive operations of a traced run.")
    parser.add_argument("run", type=Path, help="work directory of a run with --profile, or a trace")
    parser.add_argument("--rows", type=int, default=15, help="rows of each table (default: 15)")
    args = parser.parse_args(arguments)
    trace = read_trace(find_trace(args.run))
    print(f"{trace.steps} steps, {1000 * trace.seconds / trace.steps:,.1f} ms each.\n")
    print(cost_table("Kind", trace, args.rows) + "\n")
    print(cost_table("Operation", trace, args.rows))
    print(
        "\nShares are of the time of all operations, some of which may run in parallel. A fusion "
        "has the name of its last operation."
    )


def find_trace(run: Path) -> Path:
    """The newest trace in a work directory; raises `UserError` if there is none."""
    found = [run] if run.is_file() else sorted(run.glob("**/*.xplane.pb"))
    if not found:
        raise UserError(f"{run} holds no trace: run agenet.main with --profile")
    return found[-1]


def read_trace(path: Path) -> Trace:
    """Reads a file that `jax.profiler` wrote."""
    from jax.profiler import ProfileData

    sources = read_sources(path.read_bytes())
    starts, ends = [], []
    costs: dict[tuple[str, str], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for plane in ProfileData.from_file(str(path)).planes:
        events = [(event, dict(event.stats)) for line in plane.lines for event in line.events]
        # An operation that a CPU hands to other threads ends when they note its end.
        ends_noted = {
            (stats.get("_ct"), stats.get("_c")): event.start_ns
            for event, stats in events
            if event.name.startswith("end: ")
        }
        for event, stats in events:
            if "step_num" in stats:
                starts.append(event.start_ns)
            if "hlo_op" in stats:
                noted = ends_noted.get((stats.get("_pt"), stats.get("_p")), 0)
                end = max(event.start_ns + event.duration_ns, noted)
                operation = str(stats["hlo_op"])
                source = sources.get((str(stats.get("hlo_module")), operation), operation)
                seconds, count = costs[name_operation(source)]
                took = (end - event.start_ns) / 1e9
                costs[name_operation(source)] = (seconds + took, count + 1)
                ends.append(end)
    if not starts or not ends:
        raise UserError(f"{path} holds no training step")
    return Trace(len(starts), (max(ends) - min(starts)) / 1e9, costs)


def name_operation(source: str) -> tuple[str, str]:
    """Splits the path that JAX gives an operation into its kind and its place.

    >>> name_operation("jit(train_step)/transpose(jvp(Classifier))/backbone/stem/mul")
    ('mul, backward', 'backbone/stem')
    >>> name_operation("fusion.3")
    ('fusion.3', '')
    """
    *path, kind = source.split("/")
    backward = ", backward" if any(part.startswith("transpose(") for part in path) else ""
    place = "/".join(part for part in path if not _NOT_A_PLACE.fullmatch(part))
    return kind + backward, place


def cost_table(title: str, trace: Trace, rows: int) -> str:
    """The largest costs as a table, by kind or by operation."""
    costs: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for (kind, place), (seconds, count) in trace.costs.items():
        name = kind if title == "Kind" else f"{kind}: {place}".removesuffix(": ")
        costs[name] = (costs[name][0] + seconds, costs[name][1] + count)
    total = sum(seconds for seconds, _ in costs.values())
    largest = sorted(costs.items(), key=lambda item: -item[1][0])
    shown, rest = largest[:rows], largest[rows:]
    if rest:
        seconds, count = (sum(values) for values in zip(*(cost for _, cost in rest), strict=True))
        shown.append((f"{len(rest)} more", (seconds, int(count))))
    return table(
        [title, "Share %", "ms a step", "Calls a step"],
        [
            [
                name,
                f"{100 * seconds / total:.1f}",
                f"{1000 * seconds / trace.steps:,.2f}",
                f"{count / trace.steps:,.3g}",
            ]
            for name, (seconds, count) in shown
        ],
    )


def read_sources(trace: bytes) -> dict[tuple[str, str], str]:
    """The path that JAX gives each operation of each program in a trace.

    The trace holds the compiled programs, in messages of tsl's xplane.proto and xla's hlo.proto.
    """
    sources = {}
    for metadata in _below(memoryview(trace), 1, 4, 2):  # plane, event_metadata, its value
        module = b"".join(_below(metadata, 2)).decode().partition("(")[0]
        for instruction in _below(metadata, 5, 6, 1, 3, 2):  # ... HloInstructionProto
            name = b"".join(_below(instruction, 1)).decode()
            if source := b"".join(_below(instruction, 7, 2)):  # metadata.op_name
                sources[module, name] = source.decode()
    return sources


def _below(message: memoryview, *path: int) -> Iterator[memoryview]:
    """Messages, bytes or text at a path of field numbers in a protocol buffer."""
    for number, value in fields(message):
        if number == path[0] and isinstance(value, memoryview):
            yield from _below(value, *path[1:]) if path[1:] else [value]


if __name__ == "__main__":
    with one_line_errors():
        main()
