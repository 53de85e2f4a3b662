"""A sample of mutated inputs of each kind does no harm; `python -m tests.mutations` runs more."""

from pathlib import Path

import pytest

from tests.mutations import ALL
from tests.mutations.harness import find_kind, run_cases
from tests.mutations.judge import FINE, ONE_LINE

SEED = 0


# Of sweeps and folds a single case takes a minute: these are left to the command.
@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ALL if find_kind(kind).sample])
def test_no_input_does_harm(kind: str, tmp_path: Path) -> None:
    count = find_kind(kind).sample
    results = run_cases([kind], tmp_path, seed=SEED, numbers=lambda _: range(count))
    bad = [
        f"{verdict.change}: {verdict.detail}\n  python -m tests.mutations {kind} --only={number}"
        for number, verdict in results[kind]
        if verdict.word not in (FINE, ONE_LINE)
    ]
    assert not bad, "\n".join(bad)
    assert len(results[kind]) == count
