"""Addresses on the hub, against a server on this machine."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenet.data.records import open_records
from agenet.errors import UserError
from agenet.places import copies
from agenet.places.fetching import fetch
from agenet.places.weights import find_weights
from agenet.runs.identity import digest_weights
from agenet.runs.initial_weights import find_initial
from agenet.weights.bundled import DEFAULT_FILE
from agenet.weights.load import read_weights
from tests.hub_server import Hub, Repository, serve, use

DATA = "datasets/alice/data"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(copies, "cache_dir", lambda: tmp_path / "cache")
    with serve() as hub:
        use(hub.endpoint, tmp_path, monkeypatch)
        hub.repositories[DATA] = Repository()
        yield hub


def commit(hub: Hub, files: dict[str, Any]) -> None:
    hub.repositories[DATA].commit(files)


def test_a_table(hub: Hub) -> None:
    commit(hub, {"own/faces.csv": b"path,age\n"})
    assert fetch(f"hf://{DATA}/own/faces.csv").read_bytes() == b"path,age\n"
    commit(hub, {"own/faces.csv": b"path,age\na.jpg,5\n"})
    assert fetch(f"hf://{DATA}/own/faces.csv").read_bytes() == b"path,age\na.jpg,5\n"
    with pytest.raises(UserError, match=r"data/own/x.csv: there is no such bucket"):
        fetch(f"hf://{DATA}/own/x.csv")
    with pytest.raises(
        UserError, match=r"hf://datasets/alice/other/a.csv: there is no such bucket"
    ):
        fetch("hf://datasets/alice/other/a.csv")


def test_a_prepared_data_set(hub: Hub, drawn_faces: Path) -> None:
    files = {
        f"prepared/{path.relative_to(drawn_faces).as_posix()}": path.read_bytes()
        for path in drawn_faces.rglob("*")
        if path.is_file()
    }
    commit(hub, files)
    here = open_records("drawn_faces/faces", str(drawn_faces))
    there = open_records("drawn_faces/faces", f"hf://{DATA}/prepared")
    assert there.fingerprint() == here.fingerprint() and there.checksum() == here.checksum()
    # Once only.
    hub.requests.clear()
    open_records("drawn_faces/faces", f"hf://{DATA}/prepared")
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]
    with pytest.raises(UserError, match=f"is not prepared in hf://{DATA}/none"):
        open_records("drawn_faces/faces", f"hf://{DATA}/none")


def test_a_run_starts_from_published_weights(hub: Hub) -> None:
    content = DEFAULT_FILE.read_bytes()
    oid = hashlib.sha256(content).hexdigest()
    hub.objects[oid] = content
    listed = {"weights.safetensors": {"size": len(content), "sha256": oid}}
    manifest = json.dumps({"format": 1, "agenet": "1", "files": listed}).encode()
    repository = hub.repositories.setdefault("alice/faces", Repository())
    repository.commit({"agenet.json": manifest, "weights.safetensors": oid.encode()})
    expected = read_weights(find_weights("hf://alice/faces"))
    found = find_initial("hf://alice/faces", expected.spec.model, "")
    assert found is not None and found.init == "hf://alice/faces"
    assert found.spec == expected.spec and found.read().keys() == expected.tensors.keys()
    assert digest_weights("hf://alice/faces") == digest_weights(str(DEFAULT_FILE))
    assert digest_weights("hf://alice/missing") is None
    with pytest.raises(UserError, match="hf://alice/missing: there is no such repository"):
        find_initial("hf://alice/missing", expected.spec.model, "")
