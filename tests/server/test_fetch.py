import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agenet.server import fetch
from agenet.server.fetch import Fetcher, FetchError, is_global
from agenet.server.limits import BodyMemory, Busy
from tests.server.running import PHOTO

CONTENT = PHOTO.read_bytes()


class Site(BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        type(self).seen.append(f"{self.headers['Host']}{self.path}")
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/loop":
            self.send_response(307)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "image/jpeg")
        self.end_headers()
        if self.path == "/slow":
            threading.Event().wait(2)
        with contextlib.suppress(ConnectionError):  # It is given up.
            self.wfile.write(CONTENT)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Site.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def get(url: str, most: int = 1_000_000, memory: int = 1_000_000, **options: Any) -> bytes | str:
    async def main() -> bytes | str:
        fetcher = Fetcher(most, **options)
        try:
            with BodyMemory(memory).reserve() as reserved:
                return await fetcher.fetch(url, reserved)
        except FetchError as error:
            return str(error)
        finally:
            await fetcher.close()

    return asyncio.run(main())


def anywhere(address: str) -> bool:
    return True


def test_fetches(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert get(f"http://{site}/a", is_allowed=anywhere) == CONTENT
    assert get(f"http://{site}/to//b", is_allowed=anywhere) == CONTENT
    assert Site.seen == [f"{site}/a", f"{site}/to//b", f"{site}/b"]


def test_what_is_no_image(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(path: str, most: int = 1_000_000) -> bytes | str:
        return get(f"http://{site}{path}", most, is_allowed=anywhere)

    assert reason("/gone") == "its server answers with status 404"
    assert reason("/page") == "its server does not send it as an image"
    assert reason("/loop") == "more than 3 redirects"
    assert reason("/a", most=1000) == "more than 1,000 bytes"
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    assert reason("/slow") == "not fetched within 0.3 seconds"
    with pytest.raises(Busy):
        get(f"http://{site}/a", memory=1000, is_allowed=anywhere)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.org/a", "file:///etc/passwd", "http://", "http:///a", "//example.org/a"),
        *("http://user:word@example.org/", "http://exämple.org/", "http://[::1/", "a b", ""),
        *("http://example.org:0/", "http://example.org:99999/", "http://example.org/\r\nX: y"),
    ],
)
def test_wrong_addresses(url: str) -> None:
    assert get(url).startswith("not an address like")  # type: ignore[union-attr]


def test_own_network_is_closed(site: str) -> None:
    """Also by other spellings of its address, and by a redirect to it."""
    port = site.partition(":")[2]
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
        found = get(f"http://{host}:{port}/a")
        assert found in ("its host is not on the internet", "there is no such host"), host
    assert Site.seen == []
    only_first = iter([True, False])
    found = get(f"http://{site}/to/http://{site}/b", is_allowed=lambda address: next(only_first))
    assert found == "its host is not on the internet"
    assert Site.seen == [f"{site}/to/http://{site}/b"]


def test_names_whose_address_changes(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one that is connected to."""
    port = int(site.partition(":")[2])
    answers = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"]]
    connected = []

    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (address, port)) for address in answers[0]]

    async def connect(self: Any, host: str, *_: Any) -> Any:
        connected.append(host)
        raise fetch.httpcore.ConnectError

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    assert get(f"http://name.example:{port}/a") == "its host is not on the internet"
    answers[0] = ["93.184.216.34"]
    monkeypatch.setattr(fetch.httpcore.AnyIOBackend, "connect_tcp", connect)
    assert get(f"http://name.example:{port}/a") == "its server does not answer as it should"
    assert connected == ["93.184.216.34"]


def test_global_addresses() -> None:
    for address in ("93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"):
        assert is_global(address), address
    for address in (
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1"),
    ):
        assert not is_global(address), address
