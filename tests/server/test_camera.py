"""Frames over a WebSocket, with a client that is no browser."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.server.running import JPEG, PHOTO, Server, run_server

client = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-more-than-16-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with run_server("--timeout=2", "--max-faces=5", AGENET_TOKEN=TOKEN) as running:
        yield running


def connect(server: Server, query: str = "", **options: Any) -> Any:
    address = "ws://{}:{}/v1/camera".format(*server.address)
    return client.connect(f"{address}{query}", compression=None, proxy=None, **options)


def closed(socket: Any) -> tuple[int, str]:
    """The code and reason with which the server closes."""
    with pytest.raises(ConnectionClosed) as raised:
        socket.recv(30)
    assert raised.value.rcvd is not None
    return raised.value.rcvd.code, raised.value.rcvd.reason


def test_a_face_is_tracked(server: Server) -> None:
    photo = PHOTO.read_bytes()
    headers = {**JPEG, "Authorization": f"Bearer {TOKEN}"}
    (face,) = server.ask(body=photo, headers=headers).json["images"][0]["faces"]
    with connect(server, "?min_score=0.5") as socket:
        socket.send(json.dumps({"token": TOKEN}))
        answers = []
        for _ in range(4):
            socket.send(photo)
            answers.append(json.loads(socket.recv(30)))
        socket.send(b"no image")
        assert "error" in json.loads(socket.recv(30))
        socket.send(photo)
        answers.append(json.loads(socket.recv(30)))
    for answer in answers:
        (tracked,) = answer["faces"]
        assert tracked["track"] == 1 and tracked["gender"] == face["gender"]
        assert tracked["box"] == pytest.approx(face["box"], abs=0.2)
        assert tracked["age"] == face["age"]
        assert (answer["width"], answer["height"]) == (480, 480)


@pytest.mark.parametrize(
    ("query", "messages", "code", "reason"),
    [
        ("", ["{}"], 1008, "the token is missing or wrong"),
        ("", ['{"token": 7}'], 1008, "the token is missing or wrong"),
        ("", ["[" * 5000], 1008, "the token is missing or wrong"),
        ("", [b"\xff\xd8"], 1008, "send the token as text first"),
        ("?model=none", [json.dumps({"token": TOKEN})], 1008, "model: there is none"),
        ("?min_score=x", [json.dumps({"token": TOKEN})], 1008, "min_score: "),
        ("", [json.dumps({"token": TOKEN}), "text"], 1008, "send the token as text first"),
        ("", [json.dumps({"token": TOKEN})], 1001, "no frame arrived"),
        ("", [], 1001, "no frame arrived"),
    ],
)
def test_mistakes_and_silence(
    server: Server, query: str, messages: list[str | bytes], code: int, reason: str
) -> None:
    with connect(server, query) as socket:
        for message in messages:
            socket.send(message)
        found, said = closed(socket)
    assert found == code and reason in said
    assert server.ask("/readyz").status == 200


def test_a_frame_that_is_too_large(server: Server) -> None:
    def send(size: int) -> None:
        with connect(server) as socket:
            socket.send(json.dumps({"token": TOKEN}))
            socket.send(b"x" * size)
            socket.recv(30)

    send(3_000_000)
    # The code of the refusal may be lost, because the server reads no further.
    with pytest.raises(ConnectionClosed):
        send(5_000_000)
    assert server.ask("/readyz").status == 200


def test_other_pages_are_refused(server: Server) -> None:
    with pytest.raises(InvalidStatus) as raised:
        connect(server, origin="https://elsewhere.example")
    assert raised.value.response.status_code == 403
    with connect(server, origin="http://{}:{}".format(*server.address)):
        pass


def test_places(server: Server) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(server)) for _ in range(9)]
        assert closed(sockets[-1]) == (1013, "too many cameras: try again later")
    with connect(server) as socket:
        socket.send(json.dumps({"token": TOKEN}))
        socket.send(PHOTO.read_bytes())
        assert len(json.loads(socket.recv(30))["faces"]) == 1


def test_ends_with_the_server() -> None:
    with run_server() as running, connect(running) as socket:
        socket.send("{}")
        socket.send(PHOTO.read_bytes())
        socket.recv(30)
        assert running.stop() == 0
        assert closed(socket)[0] in (1001, 1012)
