"""Starts real servers for the tests, and talks to them with nothing but the standard library."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.conftest import ROOT

PHOTO = ROOT / ".github" / "images" / "astronaut.jpg"
JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}
BOUNDARY = "edge"
PARTS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running `agenet serve`.

    Attributes:
        address: host and port.
        pid: of its process.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self._log = process, log
        self.pid = process.pid
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), (line, log.read_text())
        host, _, port = line.strip().removeprefix("http://").rpartition(":")
        self.address = host, int(port)

    def ask(
        self,
        path: str = "/v1/predict",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> Answer:
        """Sends one request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(
                method or ("GET" if body is None else "POST"), path, body, {**(headers or {})}
            )
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())
        finally:
            connection.close()

    def connect(self, seconds: float = 30) -> socket.socket:
        return socket.create_connection(self.address, timeout=seconds)

    def raw(self, sent: bytes, seconds: float = 30) -> bytes:
        """Sends bytes and returns all that comes back, until the server closes the connection."""
        with self.connect(seconds) as connection:
            try:
                connection.sendall(sent)
                return b"".join(iter(lambda: connection.recv(65536), b""))
            except ConnectionError:
                return b""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        found = [line for line in lines if line.partition("{")[0].partition(" ")[0] == name]
        assert found, name
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def resident_bytes(self, *, peak: bool = False) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0])

    def open_files(self) -> set[str]:
        """The files that its process has open, without sockets."""
        found = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):  # It was closed meanwhile.
                found.add(str(link.readlink()))
        return {name for name in found if name.startswith("/")}

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def run_server(*options: str, **environment: str) -> Iterator[Server]:
    """Runs a server on a free port, with one thread, until the end of the block."""
    command = [sys.executable, "-m", "agenet.cli", "serve", "--port=0", "--threads=1", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        timer = threading.Timer(300, process.kill)
        timer.start()
        try:
            yield Server(process, log)
        finally:
            timer.cancel()
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


def parts(*files: tuple[str, bytes]) -> bytes:
    """A body of multipart/form-data."""
    body = b""
    for name, content in files:
        head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
        body += f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def png(width: int, height: int) -> bytes:
    """An image of one colour, which takes much longer to process than to send."""
    content = BytesIO()
    Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(content, "PNG")
    return content.getvalue()
