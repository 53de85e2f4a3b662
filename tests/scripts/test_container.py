"""What the container's files promise; no container engine is needed."""

import re
import shlex

import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "scripts" / "container"


def instructions() -> list[tuple[str, str]]:
    """The names and arguments of the Dockerfile's instructions, with continued lines joined."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and line[0] != "#"]  # type: ignore[misc]


def test_the_result_is_slim_and_not_of_root() -> None:
    found = instructions()
    starts = [i for i, (name, _) in enumerate(found) if name == "FROM"]
    assert all("-slim" in found[i][1] for i in starts) and len(starts) == 2
    last = dict(found[starts[-1] :])
    assert last["USER"] == "10001:10001" and last["EXPOSE"] == "8000"
    assert "/readyz" in last["HEALTHCHECK"] and "RUN" not in last
    assert "ADD" not in dict(found)


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    for name, arguments in instructions():
        if name == "COPY" and not arguments.startswith("--from"):
            for source in shlex.split(arguments)[:-1]:
                assert (ROOT / source).exists() and source in kept, source


def test_compose() -> None:
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["agenet"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    build = service["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).samefile(FOLDER / "Dockerfile")
    assert service["environment"]["AGENET_TOKEN"].startswith("${AGENET_TOKEN:?")
