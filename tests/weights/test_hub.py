import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.weights.hub import fetch_weights, is_hub_address, parse_address
from tests.hub_server import TOKEN, Hub, Repository, serve, use

NAME = "alice/faces"
ADDRESS = parse_address(f"hf://{NAME}")
WEIGHTS = b"weights of a network"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
LISTED = {"weights.safetensors": {"size": len(WEIGHTS), "sha256": SHA256}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as hub:
        use(hub.endpoint, tmp_path, monkeypatch)
        yield hub


def publish(hub: Hub, files: Any = LISTED, weights: bytes = WEIGHTS, **fields: Any) -> str:
    """Makes a repository with such a list of files; returns the commit."""
    oid = hashlib.sha256(weights).hexdigest()
    hub.objects[oid] = weights
    repository = hub.repositories.setdefault(NAME, Repository())
    content = {"format": 1, "agenet": "1", "files": files} | fields
    manifest = json.dumps(content).encode()
    return repository.commit({"agenet.json": manifest, "weights.safetensors": oid.encode()})


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://alice/faces", "alice/faces", ""),
        ("hf://alice/faces@v1.0", "alice/faces", "v1.0"),
        (str(Path("hf://alice/faces")), "alice/faces", ""),
    ],
)
def test_addresses(text: str, repository: str, revision: str) -> None:
    assert is_hub_address(text)
    address = parse_address(text)
    assert (address.repository, address.revision) == (repository, revision)


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://faces", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a/b@../x", "a/b"],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(UserError, match="is not an address on the hub: give hf://user/name"):
        parse_address(text)


def test_weights_are_downloaded_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = publish(hub)
    assert fetch_weights(ADDRESS).read_bytes() == WEIGHTS
    hub.requests.clear()
    path = fetch_weights(ADDRESS)
    assert (path.name, path.parent.name) == ("weights.safetensors", commit)
    assert {method for method, _, _ in hub.requests} == {"HEAD"}
    hub.requests.clear()
    assert fetch_weights(parse_address(f"hf://{NAME}@{commit}")) == path
    assert hub.requests == []  # A commit does not change.
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    assert fetch_weights(ADDRESS) == path
    assert hub.requests == []
    with pytest.raises(UserError, match="is not in the cache, and AGENET_OFFLINE is set"):
        fetch_weights(parse_address("hf://alice/other"))


def test_a_new_commit_is_found(hub: Hub) -> None:
    first = publish(hub)
    assert fetch_weights(ADDRESS).read_bytes() == WEIGHTS
    other = b"other weights"
    listed = {"size": len(other), "sha256": hashlib.sha256(other).hexdigest()}
    publish(hub, {"weights.safetensors": listed}, other)
    assert fetch_weights(ADDRESS).read_bytes() == other
    assert fetch_weights(parse_address(f"hf://{NAME}@{first}")).read_bytes() == WEIGHTS


def test_private_repositories_need_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub)
    hub.repositories[NAME].private = True
    with pytest.raises(UserError, match=r"no such repository, or it is private .* set HF_TOKEN"):
        fetch_weights(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch_weights(ADDRESS).read_bytes() == WEIGHTS
    # It is for the hub alone, not for where that stores large files.
    signed = {path for _, path, signed in hub.requests if signed}
    assert signed and not any("/objects/" in path for path in signed)


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "lists no weights.safetensors"),
        ({"../weights": LISTED["weights.safetensors"]} | LISTED, {}, "or files that cannot be"),
        ({"weights.safetensors": {"size": -1, "sha256": SHA256}}, {}, "lists no"),
        ({"weights.safetensors": {"size": 10**12, "sha256": SHA256}}, {}, "lists no"),
        ({"weights.safetensors": {"size": 20, "sha256": "x"}}, {}, "lists no"),
        ([], {}, "is not a list of files of agenet"),
        (LISTED, {"format": 2}, "is of another version of agenet"),
        (LISTED, {"x": "y" * 100_000}, "more than the limit of 100,000"),
        (
            {"weights.safetensors": {"size": 20, "sha256": "0" * 64}},
            {},
            "the hub has another weights.safetensors than agenet.json lists",
        ),
    ],
)
def test_hostile_lists(hub: Hub, files: Any, fields: Any, message: str) -> None:
    publish(hub, files, **fields)
    with pytest.raises(UserError, match=message) as caught:
        fetch_weights(ADDRESS)
    assert "\n" not in str(caught.value)


def test_damaged_on_the_way_or_in_the_cache(hub: Hub) -> None:
    publish(hub)
    hub.objects[SHA256] = b"W" + WEIGHTS[1:]
    with pytest.raises(UserError, match=r"but agenet.json lists .*: deleted from the cache"):
        fetch_weights(ADDRESS)
    hub.objects[SHA256] = WEIGHTS
    path = fetch_weights(ADDRESS)
    path.resolve().write_bytes(b"W" + WEIGHTS[1:])
    with pytest.raises(UserError, match="deleted from the cache"):
        fetch_weights(ADDRESS)
    assert fetch_weights(ADDRESS).read_bytes() == WEIGHTS


def test_other_mistakes_are_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(text: str) -> str:
        with pytest.raises(UserError) as caught:
            fetch_weights(parse_address(text))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    hub.repositories["alice/other"] = Repository()
    hub.repositories["alice/other"].commit({"README.md": b"#"})
    assert "is not a repository of agenet: it has no agenet.json" in message("hf://alice/other")
    assert "no such revision" in message("hf://alice/other@v9")
    hub.repositories["alice/other"].gated = True
    assert "its owner grants access on request" in message("hf://alice/other")
    use("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert "no answer from the hub" in message("hf://alice/faces")


def test_without_connection_what_is_cached_is_used(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(hub)
    path = fetch_weights(ADDRESS)
    use("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert fetch_weights(ADDRESS) == path
    assert "no connection to the hub: using the cached files" in caplog.text
