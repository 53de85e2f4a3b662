"""Who may import whom, and what must stay out."""

import ast
from pathlib import Path

from tests.conftest import ROOT, run_program

# Each floor imports from the floors above it in this list, or from its own.
FLOORS = [
    {"agenet.errors", "agenet.labels"},
    {"agenet.models", "agenet.weights", "agenet.data", "agenet.losses", "agenet.metrics"}
    | {"agenet.optim", "agenet.freeze", "agenet.sharding", "agenet.figures", "agenet.writers"}
    | {"agenet.features", "agenet.faces", "agenet.processes", "agenet.compiled", "agenet.identity"}
    | {"agenet.profile", "agenet.default_weights"},
    {"agenet.lineage", "agenet.state", "agenet.steps", "agenet.objective"}
    | {"agenet.checkpoint", "agenet.report"},
    {"agenet.initial", "agenet.experiment", "agenet.batches", "agenet.evaluation"}
    | {"agenet.train", "agenet.launch", "agenet.serving", "agenet.export", "agenet.engines"}
    | {"agenet.predict", "agenet.memory", "agenet.dry_run"},
    {"agenet.main", "agenet.evaluate", "agenet.programs"},
]


def floor(module: str) -> int:
    name = ".".join(module.split(".")[:2])
    found = [number for number, modules in enumerate(FLOORS) if name in modules]
    assert found, f"{module} has no floor: give it one"
    return found[0]


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def modules() -> dict[str, Path]:
    paths = [p for p in (ROOT / "agenet").rglob("*.py") if p != ROOT / "agenet" / "__init__.py"]
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in paths
    }


def test_floors_import_only_upwards() -> None:
    for module, path in modules().items():
        for name in imports(path):
            if name.startswith("agenet."):
                assert floor(name) <= floor(module), f"{module} imports {name}"


def test_agenet_needs_neither_builders_nor_tensorflow() -> None:
    for module, path in modules().items():
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"data_prep", "tensorflow"} or module == "agenet.writers"
        assert "data_prep" not in roots
    code = "import sys, agenet.launch; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = run_program("-c", code)
    assert "'jax'" in loaded
    assert "'tensorflow'" not in loaded
    assert "'tensorboard'" not in loaded


def test_predicting_starts_without_jax() -> None:
    code = "import sys, agenet.predict; print(sorted({m.split('.')[0] for m in sys.modules}))"
    assert not {"'jax'", "'flax'", "'onnx'", "'PIL'"} & set(run_program("-c", code).split(", "))
