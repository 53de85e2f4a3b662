"""Makes mutated inputs, gives them to agenet and counts what it does: python -m tests.mutations."""

import argparse
import tempfile
from pathlib import Path

from tests.mutations import ALL
from tests.mutations.harness import run_cases
from tests.mutations.judge import BAD, FINE, ONE_LINE, Verdict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(ALL)} (default: all)")
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone, to see it again")
    parser.add_argument("--keep", type=Path, default=Path("mutations"), help="for bad inputs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show every case")
    options = parser.parse_args()
    kinds = [name for name in ALL if not options.kinds or name in options.kinds]
    if unknown := set(options.kinds) - set(ALL):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}")
    numbers = range(options.count) if options.only is None else [options.only]

    def report(kind: str, number: int, verdict: Verdict) -> None:
        if options.verbose or options.only is not None or verdict.word not in (FINE, ONE_LINE):
            print(f"{kind} {number}: {verdict.change}\n  {verdict.word}: {verdict.detail}")
        if verdict.word not in (FINE, ONE_LINE):
            again = f"python -m tests.mutations {kind} --seed={options.seed} --only={number}"
            print(f"  {again}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        results = run_cases(
            kinds,
            Path(folder),
            seed=options.seed,
            numbers=lambda kind: numbers,
            keep=options.keep,
            processes=options.processes,
            report=report,
        )
    print(f"| {'kind':16} | tried | {FINE} | {ONE_LINE} | {BAD} | CPU s |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind, verdicts in results.items():
        words = [verdict.word for _, verdict in verdicts]
        fine, one_line = words.count(FINE), words.count(ONE_LINE)
        bad = len(words) - fine - one_line
        seconds = sum(verdict.seconds for _, verdict in verdicts)
        counts = f"{len(words):5} | {fine:4} | {one_line:8} | {bad:3} | {seconds:5.1f}"
        print(f"| {kind:16} | {counts} |")


if __name__ == "__main__":
    main()
