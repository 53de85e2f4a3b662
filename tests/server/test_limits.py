"""Bad input over HTTP: no crash, no growth, and other clients are served."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.random_requests import random_request
from tests.server.running import JPEG, JSON, PARTS, PHOTO, Server, parts, png, run_server

CONTENT = PHOTO.read_bytes()
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
CONNECTIONS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = f"--max-body=1 --timeout=3 --queue=3 --max-connections={CONNECTIONS}"
    with run_server(*options.split(), "--max-pixels=20", "--max-faces=5") as running:
        yield running


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _still_serves(server: Server) -> Iterator[None]:
    yield
    # A process may still decode what was abandoned.
    wait_until(lambda: server.ask(body=CONTENT, headers=JPEG).status == 200)
    assert len(server.ask(body=CONTENT, headers=JPEG).json["images"][0]["faces"]) == 1
    wait_until(lambda: server.metric("agenet_queue_images") == 0)
    errors = [line for line in server.log_lines() if "traceback" in line]
    assert not errors, errors


def test_random_requests(server: Server) -> None:
    for seed in range(300):
        answer = server.raw(random_request(seed, CONTENT))
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
        assert not answer.startswith(b"HTTP/1.1 500"), (seed, answer)


def test_too_large(server: Server) -> None:
    large = bytes(1_000_001)
    for headers in (JPEG, PARTS, JSON):
        answer = server.ask(body=large, headers=headers)
        assert answer.status == 413 and "1,000,000 bytes" in answer.json["error"]
    # Without a length, and although it would go on for ever.
    with server.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            connection.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                assert connection.recv(999).startswith(b"HTTP/1.1 413")
                break
            connection.settimeout(30)
        else:
            pytest.fail("no answer")


def test_false_lengths(server: Server) -> None:
    longer = server.raw(HEAD + b"Content-Length: 99999\r\n\r\n" + CONTENT[:99])
    assert longer.startswith(b"HTTP/1.1 408") and b"within 3 seconds" in longer
    shorter = server.raw(HEAD + b"Content-Length: 10\r\n\r\n" + CONTENT)
    assert shorter.startswith(b"HTTP/1.1 422") and b"HTTP/1.1 400" in shorter
    for length in (b"-1", b"1e3", b"99999999999999999999", b"5, 6"):
        answer = server.raw(HEAD + b"Content-Length: " + length + b"\r\n\r\n" + CONTENT[:99])
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), length


def test_slow_body(server: Server) -> None:
    start = time.monotonic()
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 99999\r\n\r\n")
        while time.monotonic() - start < 20:
            connection.settimeout(0.2)
            try:
                assert connection.recv(999).startswith(b"HTTP/1.1 408")
                break
            except TimeoutError:
                connection.sendall(b"x")
        else:
            pytest.fail("no answer")
    assert 2 < time.monotonic() - start < 10


def test_slow_head(server: Server) -> None:
    """A request that never gets complete, a byte at a time."""
    start = time.monotonic()
    with server.connect(0.3) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        while time.monotonic() - start < 30:
            connection.sendall(b"X")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(99) == b""
                break
    assert 2 < time.monotonic() - start < 10


def test_half_closed_and_abandoned(server: Server) -> None:
    """What its client no longer waits for leaves the queue, and is not predicted."""
    busy = png(4400, 4400)
    sent = HEAD + f"Content-Length: {len(busy)}\r\n\r\n".encode() + busy
    before = server.metric("agenet_images_total")
    with contextlib.ExitStack() as stack:
        for way in (socket.SHUT_WR, socket.SHUT_RDWR):
            for content in (sent, sent[:500], HEAD):
                connection = stack.enter_context(server.connect())
                connection.sendall(content)
                connection.shutdown(way)
    wait_until(lambda: server.metric("agenet_queue_images") == 0)
    time.sleep(0.5)
    assert server.metric("agenet_images_total") == before


def test_full_queue(server: Server) -> None:
    busy = png(4400, 4400)

    def ask(_: int) -> tuple[int, str | None]:
        answer = server.ask(body=busy, headers=JPEG)
        return answer.status, answer.headers.get("retry-after")

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert (200, None) in answers and (429, "1") in answers
    assert set(answers) <= {(200, None), (429, "1"), (503, "1")}
    too_many = server.ask(body=parts(*[("a", b"x")] * 4), headers=PARTS)
    assert too_many.status == 429


def test_bombs(server: Server) -> None:
    deep = b'{"images": ' + b"[" * 499_000 + b"]" * 499_000 + b"}"
    flat = b'{"images": [' + b"{}," * 300_000 + b"{}]}"
    digits = b'{"images": ' + b"9" * 900_000 + b"}"
    many_parts = b"".join(b"--edge\r\n\r\n\r\n" for _ in range(70_000))
    many_headers = b"--edge\r\n" + b"A: b\r\n" * 100_000
    long_header = b"--edge\r\nContent-Disposition: form-data; " + b'a="\\";' * 100_000
    no_boundary = b"-" * 900_000
    server.ask(body=CONTENT, headers=JPEG)
    before = server.resident_bytes(peak=True)
    start = time.monotonic()
    for body in (deep, flat, digits, b'"' * 900_000, b'{"images": [' + b" " * 900_000):
        answer = server.ask(body=body, headers=JSON)
        assert answer.status == 422 and len(answer.body) < 500
    for body in (many_parts, many_headers, long_header, no_boundary):
        answer = server.ask(body=body, headers=PARTS)
        assert answer.status in (413, 422) and len(answer.body) < 500
    for head in (b"X: y\r\n" * 10_000, b"X: " + b"y" * 100_000 + b"\r\n"):
        assert server.raw(HEAD + head + b"\r\n").startswith((b"HTTP/1.1 4", b"")), head[:9]
    assert time.monotonic() - start < 20
    assert server.resident_bytes(peak=True) - before < 50e6


def test_images_that_claim_much(server: Server) -> None:
    answer = server.ask(body=png(5000, 4001), headers=JPEG)
    error = "5000x4001: more than 20,000,000 pixels"
    assert answer.json["images"] == [{"file": None, "error": error}]


def test_idle_connections(server: Server) -> None:
    """More than there may be: those that have been idle for longest make room."""
    before = server.resident_bytes()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(1000)]
        for connection in idle[::10]:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"POST /v1/predict HTT")
        assert server.ask(body=CONTENT, headers=JPEG).status == 200
        assert server.metric("process_open_fds") < CONNECTIONS + 100
    assert server.resident_bytes() - before < 50e6


def test_no_growth(server: Server) -> None:
    """Requests of all kinds, after as many to warm up."""

    def some(count: int) -> None:
        for seed in range(count):
            server.raw(random_request(1000 + seed, CONTENT))
            server.ask(body=CONTENT, headers=JPEG)

    some(40)
    before = server.resident_bytes()
    some(40)
    assert server.resident_bytes() - before < 20e6


def test_pipelined_requests(server: Server) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert server.raw(one * 200 + last).count(b"HTTP/1.1 200") == 201


def test_client_that_does_not_read(server: Server) -> None:
    """Its answers wait in the system's buffers, not in the server."""
    before = server.resident_bytes()
    with server.connect(1) as connection:
        one = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(10_000):
                connection.sendall(one)
        assert server.ask("/healthz").status == 200
        assert server.resident_bytes() - before < 50e6


def test_other_clients_meanwhile(server: Server) -> None:
    """Probes are answered at once while images are processed."""
    busy = png(4400, 4400)
    slowest = 0.0
    threads = [
        threading.Thread(target=server.ask, kwargs={"body": busy, "headers": JPEG})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for _ in range(20):
        start = time.monotonic()
        assert server.ask("/healthz").status == 200
        slowest = max(slowest, time.monotonic() - start)
    for thread in threads:
        thread.join()
    assert slowest < 1


def test_json_names(server: Server) -> None:
    body = json.dumps({"images": [{"data": "eA==", "name": "\ud800"}]}).encode()
    assert server.ask(body=body, headers=JSON).status == 422
