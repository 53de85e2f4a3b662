"""What a trace of agenet.main --profile says: the operations that cost most.

python scripts/read_profile.py RUN [--rows=15]
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.runs.series import table

# Of the path to an operation, what is in every path or only JAX's own way to it.
_NOT_A_PLACE = re.compile(r"\w+\(.*\)|closed_call|while|body|cond|branch_\d+_fun")


@dataclass(frozen=True)
class Trace:
    """Training steps that were traced.

    Attributes:
        steps: their number.
        seconds: what they took together.
        costs: seconds and calls of each operation, by its kind and its place in the program.
    """

    steps: int
    seconds: float
    costs: Mapping[tuple[str, str], tuple[float, int]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints two tables, of kinds of operations and of single ones.

    Raises:
        UserError: there is no trace, or nothing in it.
    """
    parser = ArgumentParser(description="The largest costs of a run that was traced.")
    parser.add_argument("run", type=Path, help="--workdir of a run with --profile, or a trace")
    parser.add_argument("--rows", type=int, default=15, help="of a table (default: 15)")
    args = parser.parse_args(arguments)
    trace = read_trace(find_trace(args.run))
    print(f"{trace.steps} steps, {1000 * trace.seconds / trace.steps:,.1f} ms each.\n")
    print(cost_table("Kind", trace, args.rows) + "\n")
    print(cost_table("Operation", trace, args.rows))
    print(
        "\nShares are of the time of all operations, some of which may run beside each other. What "
        "the compiler has fused goes by the name of its last part."
    )


def find_trace(run: Path) -> Path:
    """The newest trace in a work directory; raises `UserError` if there is none."""
    found = [run] if run.is_file() else sorted(run.glob("**/*.xplane.pb"))
    if not found:
        raise UserError(f"{run} holds no trace: run agenet.main with --profile")
    return found[-1]


def read_trace(path: Path) -> Trace:
    """What is in a file that `jax.profiler` wrote."""
    from jax.profiler import ProfileData

    sources = read_sources(path.read_bytes())
    starts, ends = [], []
    costs: dict[tuple[str, str], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for plane in ProfileData.from_file(str(path)).planes:
        events = [(event, dict(event.stats)) for line in plane.lines for event in line.events]
        # A CPU's operation that is handed to other threads is over when this is noted there.
        over = {
            (stats.get("_ct"), stats.get("_c")): event.start_ns
            for event, stats in events
            if event.name.startswith("end: ")
        }
        for event, stats in events:
            if "step_num" in stats:
                starts.append(event.start_ns)
            if "hlo_op" in stats:
                noted = over.get((stats.get("_pt"), stats.get("_p")), 0)
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
    """Kind and place of an operation, from the path that JAX gives it.

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
    """The largest costs, of kinds or of single operations."""
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
    """For each program and operation of a trace the path that JAX gives it.

    The compiled programs lie in the trace, in messages of tsl's xplane.proto and xla's hlo.proto.
    To read these few fields takes no library: TensorBoard's weighs more than all else here.
    """
    sources = {}
    for plane in _select(trace, 1):
        for entry in _select(plane, 4):  # event_metadata, a map
            for metadata in _select(entry, 2):
                names = list(_select(metadata, 2))
                module = names[0].decode().partition("(")[0] if names else ""
                for instruction in _below(metadata, (5, 6, 1, 3, 2)):  # ... HloInstructionProto
                    name = b"".join(_select(instruction, 1))
                    source = b"".join(_below(instruction, (7, 2)))  # metadata.op_name
                    if source:
                        sources[module, name.decode()] = source.decode()
    return sources


def _below(message: bytes, path: Sequence[int]) -> Iterator[bytes]:
    for value in _select(message, path[0]):
        if len(path) == 1:
            yield value
        else:
            yield from _below(value, path[1:])


def _select(message: bytes, field: int) -> Iterator[bytes]:
    """The values of a field of a protocol buffer that are messages, bytes or text."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key = varint()
        if key & 7 == 0:
            varint()
            continue
        length = {1: 8, 5: 4}.get(key & 7) or varint()
        if key == field << 3 | 2:
            yield message[position : position + length]
        position += length


if __name__ == "__main__":
    with one_line_errors():
        main()
