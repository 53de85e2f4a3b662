"""What clients get from a real server."""

import base64
import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from agenet.cli.app import run_command
from agenet.server.schema import Answer, Options
from tests.server.running import JPEG, JSON, PARTS, PHOTO, Server, parts, png, run_server

CONTENT = PHOTO.read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with run_server("--model=other=default", "--model=default", "--max-images=4") as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `agenet predict --jsonl` writes for the photograph."""
    path = tmp_path_factory.mktemp("lines") / "faces.jsonl"
    with pytest.raises(SystemExit, match="0"):
        run_command(["predict", str(PHOTO), "--jsonl", str(path), "--threads=1"])
    fields = json.loads(path.read_text())
    assert len(fields["faces"]) == 1
    return fields


def check(found: dict, expected: dict, file: str | None) -> None:
    """The answer for an image is that of `agenet predict`."""
    assert found["file"] == file
    assert (found["width"], found["height"]) == (expected["width"], expected["height"])
    (face,), (right,) = found["faces"], expected["faces"]
    assert face.keys() == right.keys()
    for name in ("box", "age", "age_interval", "age_group", "gender", "landmarks"):
        assert face[name] == right[name], name
    assert face["score"] == pytest.approx(right["score"], abs=1e-4)
    assert face["gender_probability"] == pytest.approx(right["gender_probability"], abs=1e-4)
    assert len(face["landmarks"]) == 5


def test_image_as_body(server: Server, expected: dict) -> None:
    for kind in ("image/jpeg", "image/png", "application/octet-stream"):
        answer = server.ask(body=CONTENT, headers={"Content-Type": kind})
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        Answer.model_validate_json(answer.body, strict=False)
        (image,) = answer.json["images"]
        check(image, expected, None)
        assert answer.json["model"] == "default"


def test_several_files(server: Server, expected: dict) -> None:
    body = parts(("a.jpg", CONTENT), ("bad.jpg", b"no image"), ("家.jpg", CONTENT))
    answer = server.ask(body=body, headers=PARTS)
    assert answer.status == 200
    Answer.model_validate_json(answer.body)
    first, bad, third = answer.json["images"]
    check(first, expected, "a.jpg")
    check(third, expected, "家.jpg")
    assert bad.keys() == {"file", "error"} and bad["error"].startswith("not a JPEG")


def test_base64(server: Server, expected: dict) -> None:
    data = base64.b64encode(CONTENT).decode()
    body = json.dumps({"images": [{"data": data}, {"data": data, "name": "b"}]}).encode()
    answer = server.ask(body=body, headers=JSON)
    assert answer.status == 200
    first, second = answer.json["images"]
    check(first, expected, None)
    check(second, expected, "b")


def test_nothing_could_be_read(server: Server) -> None:
    answer = server.ask(body=CONTENT[:2000], headers=JPEG)
    assert answer.status == 422
    assert answer.json["images"] == [{"file": None, "error": "damaged or cut short"}]


def test_options(server: Server) -> None:
    answer = server.ask(
        "/v1/predict?age_groups=0-17,18-99&distribution=true&model=other", CONTENT, JPEG
    )
    (face,) = answer.json["images"][0]["faces"]
    Answer.model_validate_json(answer.body)
    assert answer.json["model"] == "other"
    assert face["age_group"] == "18-99"
    assert list(face["age_probabilities"]) == ["0-17", "18-99"]
    assert sum(face["age_distribution"]) == pytest.approx(1)

    def count(query: str) -> int:
        answer = server.ask(f"/v1/predict?{query}", CONTENT, JPEG)
        assert answer.status == 200, answer.body
        return len(answer.json["images"][0]["faces"])

    left, _, right, _ = face["box"]
    assert count(f"min_size={right - left - 1}") == 1
    assert count(f"min_size={right - left + 9}") == 0
    assert count(f"min_score={face['score'] - 0.01}") == 1
    assert count(f"min_score={face['score'] + 0.01}") == 0
    assert count("max_faces=1") == 1
    answer = server.ask("/v1/predict?cropped=true", CONTENT, JPEG)
    (whole,) = answer.json["images"]
    assert whole["faces"][0]["box"] == [0, 0, whole["width"], whole["height"]]
    assert whole["faces"][0]["landmarks"] is None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("age_groups=0-17,5-99", "must not overlap"),
        ("age_groups=" + "9" * 900, "must be like 18-64"),
        ("age_groups=" + "9" * 9000, "age_groups: String should have at most"),
        ("model=gone", "other, default"),
        ("max_faces=0", "greater than or equal to 1"),
        ("max_faces=101", "max_faces: 100 at most"),
        ("min_score=nan", "min_score: Input should be a finite number"),
        ("colour=" + quote("\x1b[2J"), "colour: Extra inputs"),
        (quote("\x1b[2J\n") + "=1", "?[2J?: Extra inputs"),
    ],
)
def test_wrong_options(server: Server, query: str, words: str) -> None:
    answer = server.ask(f"/v1/predict?{query}", CONTENT, JPEG)
    assert answer.status == 422
    error = answer.json["error"]
    assert words in error and error.isprintable() and len(error) < 400


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({}, CONTENT, 415, "multipart/form-data"),
        ({"Content-Type": "text/html"}, CONTENT, 415, "multipart/form-data"),
        ({"Content-Type": "x" * 500}, CONTENT, 415, "multipart/form-data"),
        (JPEG | {"Content-Encoding": "gzip"}, CONTENT, 415, "Content-Encoding"),
        (PARTS, parts(*[("a", b"x")] * 5), 413, "more than 4 images"),
        (PARTS, parts(), 422, "no image"),
        (PARTS, parts(("a", b"x"))[:-20], 422, "Unexpected end"),
        ({"Content-Type": "multipart/form-data"}, parts(("a", b"x")), 422, "boundary"),
        (JSON, b"{", 422, "Invalid JSON"),
        (JSON, b'{"images": []}', 422, "images: List should have at least 1"),
        (JSON, b'{"images": [{}]}', 422, "images.0: give either data or url"),
        (JSON, b'{"images": [{"url": "http://example.org/a.jpg"}]}', 422, "--allow-urls"),
        (JSON, b'{"images": [{"data": "*"}]}', 422, "images.0.data"),
        (JSON, b'{"images": [' + b'{"data": "eA=="},' * 4 + b'{"data": "eA=="}]}', 413, "4 images"),
    ],
)
def test_wrong_bodies(server: Server, headers: dict, body: bytes, status: int, words: str) -> None:
    answer = server.ask(body=body, headers=headers)
    assert answer.status == status, answer.body
    assert words in answer.json["error"]


def test_wrong_paths(server: Server) -> None:
    assert server.ask("/gone").json == {"error": "not found"}
    answer = server.ask("/v1/predict")
    assert answer.status == 405 and answer.headers["allow"] == "POST"
    assert server.ask("/v1/predict/..%2f..%2fetc/passwd").status == 404


def test_description(server: Server) -> None:
    document = server.ask("/openapi.json").json
    predict = document["paths"]["/v1/predict"]["post"]
    assert {p["name"] for p in predict["parameters"]} == set(Options.model_fields)
    text = json.dumps(document)
    for name in ("ImageAnswer", "FaceAnswer", "JsonImage"):
        assert name in document["components"]["schemas"]
        assert f'"#/components/schemas/{name}"' in text
    assert server.ask("/v1/models").json["models"] == ["other", "default"]


def test_probes_and_metrics(server: Server) -> None:
    assert server.ask("/healthz").body == b"ok\n"
    assert server.ask("/readyz").body == b"ready\n"
    before = [server.metric(f"agenet_{name}_total") for name in ("images", "faces")]
    assert server.ask(body=parts(("a", CONTENT), ("b", png(9, 9))), headers=PARTS).status == 200
    after = [server.metric(f"agenet_{name}_total") for name in ("images", "faces")]
    assert after == [before[0] + 2, before[1] + 1]
    server.ask("/secret-path", method="SECRET")
    text = server.ask("/metrics").body.decode()
    assert 'path="other"' in text and "secret" not in text.lower()
    assert "process_resident_memory_bytes" in text


def test_log_has_no_names(server: Server) -> None:
    server.ask("/secret-path?secret-query=1", method="SECRET")
    server.ask("/v1/predict?model=other", parts(("secret.jpg", CONTENT)), PARTS)
    lines = server.log_lines()
    assert lines[0]["event"] == "listening" and lines[0]["models"] == ["other", "default"]
    last = lines[-1]
    assert last["path"] == "/v1/predict" and last["status"] == 200
    assert (last["model"], last["images"], last["faces"]) == ("other", 1, 1)
    text = json.dumps(lines).lower()
    assert "secret" not in text and "127.0.0.1" not in json.dumps(lines[1:])


def test_upload_stays_in_memory(server: Server, expected: dict) -> None:
    """A part of several megabytes, which other parsers write to a temporary file."""
    body = parts(("a.jpg", CONTENT + bytes(3_000_000)))
    with server.connect() as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: {PARTS['Content-Type']}\r\nConnection: close\r\n\r\n"
        before = server.open_files()
        connection.sendall(head.encode() + body[:-1])
        time.sleep(0.5)
        assert server.open_files() == before
        connection.sendall(body[-1:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer
    check(json.loads(answer.partition(b"\r\n\r\n")[2])["images"][0], expected, "a.jpg")
