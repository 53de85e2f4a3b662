"""Cache and download, against a local server that stalls, breaks off and changes its files."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from agenet.errors import UserError
from agenet.weights import cache, download
from agenet.weights.cache import find_file
from agenet.weights.download import RetryPolicy
from agenet.weights.known import KNOWN, FileHash, KnownWeights, Package
from tests.conftest import ROOT

BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
HALF = len(BODY) // 2
QUICK = RetryPolicy(timeout=0.3, attempts=3, pause=0.01)


@dataclass
class Reply:
    """A response of the server: after `pause_at` bytes it waits, or closes the connection."""

    status: int = 200
    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    pause_at: int | None = None
    pause: float = 0.0  # seconds; 0 closes the connection
    reason: str | None = None  # text of the status line


class Server(ThreadingHTTPServer):
    """Sends its `replies` in turn and then repeats the last; records the headers of requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies = [Reply()]
        self.requests: list[Message] = []
        self.closing = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/net.pth"

    def known(self) -> KnownWeights:
        hash_ = FileHash("sha256", hashlib.sha256(BODY).hexdigest()[:8])
        return replace(KNOWN[0], url=self.url, hash=hash_)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        server.requests.append(self.headers)
        status, start, total = reply.status, 0, len(reply.body)
        same = self.headers["If-Range"] == reply.headers.get("ETag")
        if "Range" in self.headers and reply.ranges and same:
            status, start = 206, int(self.headers["Range"][len("bytes=") : -1])
        self.send_response(status, reply.reason)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        pause_at = total if reply.pause_at is None else reply.pause_at
        self.wfile.write(reply.body[start:pause_at])
        if reply.pause and not server.closing.wait(reply.pause):
            self.wfile.write(reply.body[pause_at:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # Clients disconnect.
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the source in a temporary cache."""
    monkeypatch.setenv("AGENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("AGENET_OFFLINE", raising=False)
    monkeypatch.setattr(cache, "_verified", set())
    return tmp_path / "cache" / KNOWN[0].source


def remaining(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_downloads_once(server: Server, folder: Path) -> None:
    path = find_file(server.known(), QUICK)
    assert path == folder / KNOWN[0].file_name
    assert path.read_bytes() == BODY
    assert remaining(folder) == [path.name]
    cache._verified.clear()
    assert find_file(server.known(), QUICK) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        Reply(pause_at=HALF),
        Reply(pause_at=HALF, pause=5),
        Reply(pause_at=HALF, headers={"ETag": 'W/"weak"', "Last-Modified": "then"}),
    ],
    ids=["breaks off", "stalls", "weak etag"],
)
def test_interrupted_download_resumes(server: Server, broken: Reply) -> None:
    version = broken.headers.get("Last-Modified", '"one"')
    server.replies = [broken, Reply(headers={"ETag": version})]
    assert find_file(server.known(), QUICK).read_bytes() == BODY
    assert server.requests[1]["Range"] == f"bytes={HALF}-"
    assert server.requests[1]["If-Range"] == version


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Reply(pause_at=HALF), Reply(ranges=False)),
        (Reply(pause_at=HALF, body=OTHER), Reply(headers={"ETag": '"two"'})),
        (Reply(pause_at=HALF, headers={}), Reply()),
        (Reply(pause_at=HALF, body=OTHER), Reply(status=416, ranges=False)),
        (Reply(status=500), Reply()),
        (Reply(status=429), Reply()),
    ],
    ids=["no ranges", "changed", "no version", "416", "500", "429"],
)
def test_download_restarts(server: Server, first: Reply, second: Reply) -> None:
    server.replies = [first, second, Reply()]
    assert find_file(server.known(), QUICK).read_bytes() == BODY


def test_part_of_another_version_is_not_appended(server: Server) -> None:
    # A server that supports Range but not If-Range.
    unfit = Reply(status=206, headers={"ETag": '"two"', "Content-Range": f"bytes {HALF}-9/10"})
    server.replies = [Reply(pause_at=HALF, body=OTHER), replace(unfit, ranges=False), Reply()]
    assert find_file(server.known(), QUICK).read_bytes() == BODY
    assert server.requests[2]["Range"] is None


@pytest.mark.parametrize(
    ("reply", "retries", "message", "requests"),
    [
        (Reply(status=404), QUICK, "answered 404", 1),
        (Reply(status=503), QUICK, "answered 503", 3),
        (Reply(status=404, reason="\x1b[2Jgone"), QUICK, r"answered 404 \?\[2Jgone$", 1),
        (Reply(status=503, reason="\x1b[2Jlater"), QUICK, r"answered 503 \?\[2Jlater", 3),
        (Reply(pause_at=HALF), QUICK, "150,000 bytes are kept, the same command resumes", 3),
        (Reply(body=OTHER), QUICK, "not .* as published: deleted", 1),
        (Reply(), replace(QUICK, max_bytes=1000), "300,000 bytes, more than the limit", 1),
        (Reply(status=302, headers={"Location": "http://example.org"}), QUICK, "only https", 1),
    ],
)
def test_failed_download_is_one_line(
    server: Server, folder: Path, reply: Reply, retries: RetryPolicy, message: str, requests: int
) -> None:
    server.replies = [reply]
    with pytest.raises(UserError, match=message) as error:
        find_file(server.known(), retries)
    assert "\n" not in str(error.value)
    assert len(server.requests) == requests
    kept = [KNOWN[0].file_name + suffix for suffix in (".part", ".part.version")]
    assert remaining(folder) == (kept if "kept" in message else [])


def test_unreachable_host(server: Server) -> None:
    known = replace(server.known(), url="https://no-such-host.invalid/net.pth")
    with pytest.raises(UserError, match=r"no connection to no-such-host.invalid: "):
        find_file(known, replace(QUICK, attempts=1))
    with pytest.raises(UserError, match="is not an https address"):
        find_file(replace(known, url="http://example.org/net.pth"), QUICK)


def test_full_disk(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    if Path("/dev/full").exists():
        (folder / f"{KNOWN[0].file_name}.part").symlink_to("/dev/full")
        monkeypatch.setattr(download._Part, "begin", lambda *_: None)
        with pytest.raises(UserError, match="No space left"):
            find_file(server.known(), QUICK)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"has 1,000 bytes free; .* needs 300,000 more"):
        find_file(server.known(), QUICK)


def test_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGENET_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to the cache .* set AGENET_CACHE"):
        find_file(server.known(), QUICK)


def test_damaged_file_is_downloaded_again(
    server: Server, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = find_file(server.known(), QUICK)
    path.write_bytes(BODY[:-1])
    with caplog.at_level(logging.WARNING):
        assert find_file(server.known(), QUICK).read_bytes() == BODY
    assert "is damaged: downloading it again" in caplog.text


def test_offline(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    path = folder / KNOWN[0].file_name
    with pytest.raises(UserError, match=f"{path} is not there and AGENET_OFFLINE .*{server.url}"):
        find_file(server.known(), QUICK)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert find_file(server.known(), QUICK) == path
    assert not server.requests


def test_file_of_an_installed_package(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(server.known(), package=Package("some-weights", "1.0", "weights/net.pth"))
    metadata = tmp_path / "site" / "some_weights-1.0.dist-info" / "METADATA"
    file = tmp_path / "site" / "weights" / "net.pth"
    for path, content in (metadata, b"Name: some-weights\nVersion: 1.0\n"), (file, BODY):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match="a package: pip install some-weights=="):
        find_file(replace(known, url=""))
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_file(known) == file
    file.write_bytes(OTHER)
    assert find_file(known, QUICK) != file


def child(server: Server) -> "subprocess.Popen[bytes]":
    code = (
        "from dataclasses import replace; from agenet.weights.known import *;"
        "from agenet.weights.cache import find_file;"
        f"print(find_file(replace(KNOWN[0], url={server.url!r}, hash={server.known().hash!r})))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)


def test_two_processes_download_once(server: Server, folder: Path) -> None:
    server.replies = [Reply(pause_at=HALF, pause=1)]
    children = [child(server), child(server)]
    outputs = [process.communicate(timeout=60)[0].decode().strip() for process in children]
    assert outputs == [str(folder / KNOWN[0].file_name)] * 2
    assert len(server.requests) == 1


def test_killed_download_resumes(server: Server, folder: Path) -> None:
    server.replies = [Reply(pause_at=HALF, pause=60), Reply()]
    part = folder / f"{KNOWN[0].file_name}.part"
    with child(server) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == HALF):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert find_file(server.known(), QUICK).read_bytes() == BODY
    assert server.requests[1]["Range"] == f"bytes={HALF}-"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_dir() == Path("/somewhere/agenet")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which its specification forbids")
    assert cache.cache_dir() == Path.home() / ".cache" / "agenet"
