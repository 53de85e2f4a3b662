"""One request over HTTPS: the answer as a stream, whose end no server can delay for ever."""

import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from typing import IO
from urllib.parse import urlsplit

from agenet.errors import UserError, printable

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


class TransferError(Exception):
    """The transfer failed in a way that may pass, so that another attempt is worthwhile."""


@dataclass(frozen=True)
class Answer:
    """The head of a server's answer: which part of which version of the file follows."""

    start: int
    total: int | None
    version: str
    ranges: str  # its header Accept-Ranges


def receive(
    url: str, start: int, version: str, timeout: float, deadline: float
) -> Generator[Answer | bytes, None, None]:
    """Yields the head of the server's answer and then its bytes.

    They come from a thread: looking up a name has no time limit, and a socket's limit is one for
    each packet, so that a server could send its headers a byte at a time for days.
    """
    items: queue.Queue[Answer | bytes | Exception] = queue.Queue(maxsize=4)
    stopped = threading.Event()

    def work() -> None:
        try:
            with _open(url, start, version, timeout) as response:
                ranges = response.headers.get("Accept-Ranges", "")
                served = _strong_version(response.headers)
                items.put(Answer(*_content_range(response), served, ranges))
                while not stopped.is_set() and (chunk := _read(response)):
                    items.put(chunk)
            items.put(b"")
        except (UserError, TransferError) as error:
            items.put(error)
        except Exception as error:  # Whatever urllib raises for what a server may send.
            items.put(UserError(f"{url}: an answer that cannot be used: {_reason(error)}"))

    threading.Thread(target=work, daemon=True).start()
    try:
        wait = 2 * timeout  # It may redirect.
        while True:
            try:
                item = items.get(timeout=max(min(wait, deadline - time.monotonic()), 0))
            except queue.Empty:
                raise TransferError("interrupted: timed out") from None
            if isinstance(item, Exception):
                raise item
            if item == b"":
                return
            yield item
            wait = timeout
    finally:
        stopped.set()
        while not items.empty():  # The thread may be waiting for a place.
            items.get_nowait()


def _open(url: str, start: int, version: str, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "agenet", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    host = urlsplit(url).hostname
    try:
        # urllib takes proxies from the environment.
        opener = urllib.request.build_opener(_SafeRedirects)
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # There is nothing from there on: the file has shrunk.
            return _open(url, 0, "", timeout)
        # Of a circle of redirects, urllib says so in several lines.
        answer = f"{host} answered {error.code} {printable(str(error.reason).split(chr(10))[0])}"
        if error.code in _TRANSIENT_STATUS:
            raise TransferError(answer) from error
        raise UserError(f"{url}: {answer}") from error
    except (InvalidURL, ValueError, OverflowError) as error:  # The address in the table is valid.
        raise UserError(
            f"{url}: {host} redirects to an invalid address: {_reason(error)}"
        ) from error
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: {host} has no valid certificate: {_reason(cause)}") from error
        raise TransferError(f"no connection to {host}: {_reason(cause)}") from error


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, except from one local server to another."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        secure = urlsplit(newurl).scheme == "https"
        if not secure and (req.type == "https" or not is_local(newurl)):
            shown = printable(newurl, 200)
            raise UserError(f"{req.full_url} redirects to {shown}: only https is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> IO[bytes] | None:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except Exception:  # The address is refused, or is none.
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def is_offline() -> bool:
    """Whether the user forbids connections to other machines: AGENET_OFFLINE=1."""
    return os.environ.get("AGENET_OFFLINE", "0") not in ("", "0")


def is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK


def _strong_version(headers: HTTPMessage) -> str:
    etag = headers.get("ETag", "")
    # A weak ETag does not promise the same bytes.
    version = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return version if version.isascii() and version.isprintable() else ""  # to send it back


def _content_range(response: HTTPResponse) -> tuple[int, int | None]:
    """Returns where the response starts in the file, and the file's size if the server says."""
    if response.status != 206:
        return 0, response.length
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-\d*/(\d{1,18}|\*)", text)
    if not match:
        raise TransferError("the server sent a part without a readable range")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(2**18)
    except (OSError, HTTPException) as error:
        raise TransferError(f"interrupted: {_reason(error)}") from error


def _reason(error: object) -> str:
    """A one-line reason; some of these texts come from the server."""
    if isinstance(error, TimeoutError):
        return "timed out"
    strerror = getattr(error, "strerror", None)
    return printable(str(strerror or error or type(error).__name__), 300)
