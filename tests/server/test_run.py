"""Starting and stopping: mistakes are one line each, and what was accepted is answered."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.server.running import JPEG, PHOTO, png, run_server

CONTENT = PHOTO.read_bytes()
TOKEN = "a-token-of-some-length"


def mistake(*options: str, code: str = "pass", **environment: str) -> str:
    """The line with which a server that does not start ends."""
    program = f"import sys; {code}; from agenet.cli import main; main('serve')"
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_mistakes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: address already in use" in mistake(f"--port={port}")
    assert "no.such.name.invalid" in mistake("--host=no.such.name.invalid")
    assert "add --token-file" in mistake("--host=0.0.0.0", "--port=0")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o640)
    assert "chmod 600" in mistake("--port=0", f"--token-file={token}")
    assert "AGENET_TOKEN: a token has" in mistake("--port=0", AGENET_TOKEN="short")
    assert "no.safetensors" in mistake("--port=0", "--model=no.safetensors")
    assert "default is named twice" in mistake("--model=a", "--model=b")
    missing = mistake(code="sys.modules['uvicorn'] = None")
    assert 'needs the extra "serve" (uvicorn is not installed)' in missing
    assert '"yunett" is not one of' in mistake("--port=0", "--detector=yunett")


def test_token_and_pages() -> None:
    options = ("--host=0.0.0.0", "--allow-origin=https://page.example")
    with run_server(*options, AGENET_TOKEN=TOKEN) as server:
        server.address = "127.0.0.1", server.address[1]
        assert server.ask(body=CONTENT, headers=JPEG).status == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert server.ask(body=CONTENT, headers=JPEG | bearer).status == 200
        assert server.ask("/metrics").headers["www-authenticate"] == "Bearer"
        preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        preflight["Access-Control-Request-Headers"] = "Authorization"
        answer = server.ask("/v1/predict", headers=preflight, method="OPTIONS")
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        preflight["Origin"] = "https://evil.example"
        answer = server.ask("/v1/predict", headers=preflight, method="OPTIONS")
        assert "access-control-allow-origin" not in answer.headers
        evil = JPEG | bearer | {"Origin": "https://evil.example"}
        assert server.ask(body=CONTENT, headers=evil).status == 403


def test_loopback_is_closed_to_other_names() -> None:
    with run_server("--allow-host=proxy.example", "--allow-urls") as server:
        for host, status in (("evil.example", 400), ("proxy.example", 200), ("localhost:1", 200)):
            headers = JPEG | {"Host": host}
            assert server.ask(body=CONTENT, headers=headers).status == status, host
        assert "access-control-allow-origin" not in server.ask("/").headers
        url = f"http://127.0.0.1:{server.address[1]}/"
        body = f'{{"images": [{{"url": "{url}", "name": "a"}}]}}'.encode()
        answer = server.ask(body=body, headers={"Content-Type": "application/json"})
        assert answer.status == 422
        error = "its host is not on the internet"
        assert answer.json["images"] == [{"file": "a", "error": error}]


def test_sigterm_answers_what_was_accepted() -> None:
    answers = []
    with run_server("--timeout=60") as server:
        server.ask(body=CONTENT, headers=JPEG)

        def ask() -> None:
            answers.append(server.ask(body=png(4400, 4400), headers=JPEG).status)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while server.metric("agenet_queue_images") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        idle = server.connect()
        assert server.stop() == 0
        for thread in threads:
            thread.join()
        assert answers == [200] * 3
        with pytest.raises(ConnectionError):
            server.connect()
        idle.close()
