"""Requests with random methods, paths, headers and bodies, some of them nearly right.

python -m tests.server.random_requests HOST:PORT [COUNT] sends them to a running server, which
should have a short --timeout.
"""

import socket
import sys

import numpy as np

from tests.server.running import BOUNDARY, PHOTO, parts

_METHODS = (b"POST", b"GET", b"PUT", b"OPTIONS", b"HEAD", b"post", b"P\0ST", b"CONNECT")
_PATHS = (
    *(b"/v1/predict", b"/", b"/metrics", b"/openapi.json", b"/readyz", b"/v1/predict?cropped=1"),
    *(
        b"*",
        b"//",
        b"/%00",
        b"/v1/predict?max_faces=\xff",
        b"http://x/v1/predict",
        b"/?" + b"a" * 999,
    ),
    b"/v1/predict?age_groups=0-9&age_groups=0-100&distribution=yes",
)
_TYPES = (
    *(b"image/jpeg", b"application/json", b"text/plain", b"image/", b"\xff", b"application/json;"),
    f"multipart/form-data; boundary={BOUNDARY}".encode(),
    *(
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="',
    ),
)
_HEADERS = (
    *(b"Expect: 100-continue", b"Connection: upgrade\r\nUpgrade: websocket", b"Connection: close"),
    *(
        b"Authorization: Bearer \xff",
        b"Host: [::1",
        b"Origin: null",
        b"X: \0",
        b"Transfer-Encoding: x",
    ),
    *(
        b"Content-Encoding: gzip",
        b"Content-Length: 5",
        b"Cookie: " + b"a" * 3000,
        b"No colon",
        b":",
    ),
)


def random_request(seed: int, image: bytes) -> bytes:
    """The bytes of a request, the same for the same seed; it ends with the connection."""
    rng = np.random.default_rng(seed)

    def pick(choices: tuple[bytes, ...], likely: float = 0.6) -> bytes:
        return choices[0] if rng.random() < likely else choices[rng.integers(len(choices))]

    bodies = (
        image,
        parts(("a.jpg", image), ("b", rng.bytes(99))),
        b'{"images": [{"data": "eA=="}]}',
        rng.bytes(int(rng.integers(3000))),
        b"",
    )
    body = _damage(rng, bodies[rng.integers(len(bodies))])
    lines = [pick(_METHODS) + b" " + pick(_PATHS) + b" HTTP/1.1", b"Host: 127.0.0.1"]
    lines.append(b"Content-Type: " + _TYPES[rng.integers(len(_TYPES))])
    if rng.random() < 0.3:
        lines.append(_HEADERS[rng.integers(len(_HEADERS))])
    if rng.random() < 0.3:
        lines.append(b"Transfer-Encoding: chunked")
        cut = int(rng.integers(len(body) + 1))
        body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:cut], body[cut:], b"") if p)
        body += b"0\r\n\r\n"
    else:
        lines.append(b"Content-Length: %d" % len(body))
    lines.append(b"Connection: close")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if rng.random() < 0.2:
        head = _damage(rng, head)
    # A body that is awaited would take the server's whole patience.
    return head + body + b"\r\n\r\n" * 2


def _damage(rng: np.random.Generator, content: bytes) -> bytes:
    """Changes, removes or repeats a piece."""
    if not content or rng.random() < 0.5:
        return content
    start, stop = sorted(rng.integers(len(content) + 1, size=2).tolist())
    stop = min(stop, start + int(rng.integers(1, 40)))
    new = (rng.bytes(stop - start), b"", content[start:stop] * 3)[rng.integers(3)]
    return content[:start] + new + content[stop:]


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    image = PHOTO.read_bytes()
    for seed in range(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000):
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            try:
                connection.sendall(random_request(seed, image))
                answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))
            except ConnectionError:
                continue
            if answer.startswith(b"HTTP/1.1 500"):
                sys.exit(f"seed {seed}: {answer!r}")


if __name__ == "__main__":
    main()
