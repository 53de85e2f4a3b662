"""Who may import whom, and what must stay out."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_program

# Each wing imports from wings on lower floors, or on its own floor where that makes no cycle.
FLOORS = {
    1: ("labels", "errors", "files"),
    2: ("models", "export"),
    3: ("weights",),
    4: ("distributed", "faces", "places"),
    5: ("data",),
    6: ("training", "evaluation"),
    7: ("inference",),
    8: ("runs",),
    9: ("frameworks", "server"),
    10: ("cli", "main"),
}
FLOOR_OF = {wing: floor for floor, wings in FLOORS.items() for wing in wings}
# The folders beside the package and what they may import of each other.
BESIDE = {
    "agenet": {"agenet"},
    "configs": {"configs"},
    "data_prep": {"data_prep", "agenet"},
    "scripts": {"agenet", "configs", "data_prep", "scripts"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path for folder in BESIDE for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, anywhere in it but for type checkers alone."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


IMPORTS = {module: sorted(set(imports(path))) for module, path in MODULES.items()}


def wing(module: str) -> str:
    return module.split(".")[1]


def check_acyclic(graph: Mapping[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"cycle: {' <- '.join(error.args[1])}")


def test_every_wing_has_a_floor() -> None:
    loose = {"__init__", "main", "labels", "errors", "files"}
    for path in (ROOT / "agenet").iterdir():
        if path.suffix == ".py":
            assert path.stem in loose, f"{path.name} lies loose: move it into a wing"
        elif path.is_dir() and any(path.rglob("*.py")):
            assert path.name in FLOOR_OF, f"{path.name} has no floor: give it one"


def test_wings_import_only_from_lower_floors() -> None:
    for module, names in IMPORTS.items():
        if not module.startswith("agenet."):
            continue  # agenet itself is the public face.
        for name in names:
            if name.startswith("agenet."):
                assert FLOOR_OF[wing(name)] <= FLOOR_OF[wing(module)], f"{module} imports {name}"


def test_no_cycle_between_files() -> None:
    check_acyclic({module: set(names) & MODULES.keys() for module, names in IMPORTS.items()})


def test_no_cycle_between_wings() -> None:
    graph: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        if module.startswith("agenet."):
            others = {wing(name) for name in names if name.startswith("agenet.")}
            graph.setdefault(wing(module), set()).update(others - {wing(module)})
    check_acyclic(graph)


def test_folders_beside_the_package() -> None:
    for module, names in IMPORTS.items():
        folder = module.split(".")[0]
        for name in names:
            other = name.split(".")[0]
            if other in BESIDE or other == "tests":
                assert other in BESIDE[folder], f"{module} imports {name}"
            if folder == "data_prep" and name.startswith("agenet."):
                assert FLOOR_OF[wing(name)] == 1, f"{module} imports {name}"


def test_one_place_changes_the_search_path() -> None:
    found = [m for m, path in MODULES.items() if "sys.path.insert" in path.read_text()]
    assert found == ["agenet.files"]


def test_tests_mirror_the_package() -> None:
    for folder in (path for path in (ROOT / "tests").iterdir() if path.is_dir()):
        if any(folder.glob("test_*.py")):
            assert folder.name in {*FLOOR_OF, *BESIDE}, f"tests/{folder.name} mirrors no wing"


def test_agenet_needs_neither_builders_nor_tensorflow() -> None:
    for module, names in IMPORTS.items():
        if module.startswith("agenet"):
            roots = {name.split(".")[0] for name in names}
            allowed = module.startswith("agenet.frameworks.")
            assert "tensorflow" not in roots or allowed
    code = "import sys, agenet.runs.launch; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = run_program("-c", code)
    assert "'jax'" in loaded
    assert "'tensorflow'" not in loaded
    assert "'tensorboard'" not in loaded


def test_predicting_starts_without_jax() -> None:
    code = (
        "import sys; from agenet import Predictor; "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    assert not {"'jax'", "'flax'", "'onnx'", "'PIL'"} & set(run_program("-c", code).split(", "))
