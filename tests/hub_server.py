"""A server on this machine that speaks the part of the Hugging Face hub's protocol that is used.

Repositories are created, files uploaded (small ones in the commit, large ones as LFS objects whose
hash is checked), and resolved by revision with the headers that the client relies on. The files of
data sets are listed.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

TOKEN = "hf_secret_of_a_test"


@dataclass
class Repository:
    """Commits by branch or id, each with the contents of all files by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        before = self.commits.get(self.heads.get(branch, ""), {})
        identity = f"{len(self.commits)} {branch} {sorted(files)}"
        commit = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[commit] = before | files
        self.heads[branch] = commit
        return commit


@dataclass
class Hub:
    """What the server holds, and the requests that it got: method, path, and whether signed."""

    endpoint: str = ""
    storage: str = ""  # where large files are, which is another host
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".onnx"))


def hash_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        content = self._content()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self._send(400)
        self.hub.objects[oid] = content
        return self._send(200)

    def do_GET(self) -> None:
        self._content()
        if match := re.fullmatch(r"/objects/([0-9a-f]{64})", self.path):
            return self._send(200, self.hub.objects[match[1]])
        data_set = re.fullmatch(r"/api/(datasets/[\w.-]+/[\w.-]+)(/[^?]*)?(\?.*)?", self.path)
        if data_set:
            return self._describe(*data_set.groups(default="")[:2])
        match = re.fullmatch(
            r"/((?:datasets/)?[\w.-]+/[\w.-]+)/resolve/([^/]+)/([\w./-]+)", self.path
        )
        if not match:
            return self._send(404)
        name, revision, file = match.groups()
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._signed):
            return self._send(401 if not self._signed else 404, error="RepoNotFound")
        if repository.gated:
            return self._send(403, error="GatedRepo")
        revision = revision.replace("%2F", "/")
        commit = repository.heads.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, error="RevisionNotFound")
        content = repository.commits[commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._send(404, error="EntryNotFound", **headers)
        if not is_large(file):
            return self._send(200, content, ETag=f'"{hash_blob(content)}"', **headers)
        oid = content.decode()
        stored = self.hub.objects[oid]
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(stored))}
        return self._send(302, Location=f"{self.hub.storage}/objects/{oid}", **headers)

    def _describe(self, name: str, what: str) -> None:
        """A data set, or the list of its files."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._send(401, error="RepoNotFound")
        files = repository.commits[repository.heads["main"]]
        if not (match := re.fullmatch(r"/tree/main/?(.*)", what)):
            return self._json({"id": name.removeprefix("datasets/")})
        folder = unquote(match[1])
        listed = [
            {"type": "file", "path": path, "size": len(content), "oid": hash_blob(content)}
            for path, content in files.items()
            if path.startswith(f"{folder}/") or not folder
        ]
        return self._json(listed) if listed else self._send(404, error="EntryNotFound")

    def do_POST(self) -> None:
        content = self._content()
        if not self._signed:
            return self._send(401)
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            fields = json.loads(content)
            name = f"{fields['organization']}/{fields['name']}"
            if fields["organization"] != "alice":
                return self._send(403)
            private = fields.get("visibility") == "private" or bool(fields.get("private"))
            if name in self.hub.repositories:
                url = f"{self.hub.endpoint}/{name}"
                return self._json({"error": "You already created it", "url": url}, 409)
            self.hub.repositories[name] = Repository(private=private)
            self.hub.repositories[name].commit({})
            return self._json({"url": f"{self.hub.endpoint}/{name}"})
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self.path):
            objects = [self._action(entry) for entry in json.loads(content)["objects"]]
            return self._json({"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(\w+)/([^/?]+)", self.path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            return self._send(404, error="RepoNotFound")
        if match[2] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        if match[2] == "branch":
            repository.heads.setdefault(match[3], repository.heads["main"])
            return self._json({}, 201)
        files_of_commit = {}
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files_of_commit[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.hub.objects
                files_of_commit[value["path"]] = value["oid"].encode()
        commit = repository.commit(files_of_commit, match[3])
        url = f"{self.hub.endpoint}/{match[1]}/commit/{commit}"
        return self._json({"commitUrl": url, "commitOid": commit, "success": True})

    def _action(self, entry: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.storage}/objects/{entry['oid']}"
        known = entry["oid"] in self.hub.objects
        return entry if known else {**entry, "actions": {"upload": {"href": href}}}

    def _content(self) -> bytes:
        self._signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.hub.requests.append((self.command, self.path, self._signed))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes = b"", error: str = "", **headers: str) -> None:
        self.send_response(status)
        headers |= {"X-Error-Code": error} if error else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serve() -> Iterator[Hub]:
    """Runs the server in a thread."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the hub's client, without an account, use a server and agenet's cache in a folder."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AGENET_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("agenet.weights.hub.cache_dir", lambda: folder / "cache")
