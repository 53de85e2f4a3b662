"""Downloads one file over HTTPS: resumable, verified, and placed atomically.

No library is used: pooch restarts interrupted downloads from the first byte, compares whole hashes
only (torchvision and timm publish eight digits), follows redirects to plain http, and has no lock
and no size limit; huggingface_hub downloads from its own hub, where these files are not.
"""

import logging
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

from agenet.errors import UserError, printable

log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
# Left free on the disk, beyond the file.
_SPARE_BYTES = 2**24


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up a download.

    Attributes:
        timeout: seconds to wait for a connection, and for the next byte.
        attempts: number of connections for one file.
        pause: seconds before the second attempt; doubled before each further one.
        max_bytes: largest size of a file.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    max_bytes: int = 2 * 2**30


DEFAULT_RETRIES = RetryPolicy()


class _TransferError(Exception):
    """The transfer failed in a way that may pass, so that another attempt is worthwhile."""


def download(
    url: str, path: Path, verify: Callable[[Path], None], retries: RetryPolicy = DEFAULT_RETRIES
) -> None:
    """Downloads `url` to `path`, whose folder must exist.

    Received bytes are kept in `NAME.part`, and a later attempt or process resumes from there if
    the server still has the same version of the file (its ETag or date, kept in
    `NAME.part.version`). After `verify` the file is moved into place atomically. The caller makes
    sure that one process at a time downloads to a path.

    Raises:
        UserError: the file cannot be downloaded or written, or `verify` raised this; then what
            was received is deleted.
    """
    if urlsplit(url).scheme != "https" and not _is_local(url):
        raise UserError(f"{url} is not an https address")
    part = _Part(path)
    try:
        for attempt in range(1, retries.attempts + 1):
            try:
                _transfer(url, part, retries)
                break
            except _TransferError as error:
                if attempt == retries.attempts:
                    kept = f"; {part.size():,} bytes are kept, the same command resumes from there"
                    advice = kept if part.size() else ""
                    raise UserError(f"cannot download {url}: {error}{advice}") from error
                pause = retries.pause * 2 ** (attempt - 1)
                log.info("%s: %s, trying again in %g s", path.name, error, pause)
                time.sleep(pause)
        try:
            verify(part.path)
        except UserError:
            part.delete()
            raise
        os.replace(part.path, path)
        part.delete()
    except OSError as error:  # From the disk; network errors have become _TransferError.
        where = error.filename or path.parent
        raise UserError(f"cannot write {where}: {error.strerror or error}") from error


class _Part:
    """The received part of a file, and the version of the file that it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self._version = path.with_name(path.name + ".part.version")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str:
        """The server's ETag or date; empty if there is nothing to resume."""
        if not self.size() or not self._version.exists():
            return ""
        return self._version.read_text(encoding="latin-1")

    def begin(self, version: str) -> None:
        self.delete()
        self._version.write_text(version, encoding="latin-1")

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


def _transfer(url: str, part: _Part, retries: RetryPolicy) -> None:
    """Makes one connection and appends to `part` until the file is complete."""
    version = part.version()
    with _open(url, part.size() if version else 0, version, retries.timeout) as response:
        start, total = _content_range(response)
        served = _strong_version(response.headers)
        if start and (start != part.size() or served not in ("", version)):
            part.delete()
            raise _TransferError("the server sent a part that does not fit")
        _check_size(url, part.path, start, total, retries.max_bytes)
        if not start:
            part.begin(served)
        size = start
        bar = {"desc": part.path.stem, "total": total, "initial": start, "disable": None}
        with part.path.open("ab") as file, tqdm(**bar, unit="B", unit_scale=True) as progress:
            while chunk := _read(response):
                size += len(chunk)
                if size > retries.max_bytes:
                    part.delete()
                    raise UserError(
                        f"{url} is larger than the limit of {retries.max_bytes:,} bytes"
                    )
                file.write(chunk)
                file.flush()  # Received bytes survive a kill.
                progress.update(len(chunk))
            os.fsync(file.fileno())
    if total is not None and size != total:
        raise _TransferError(f"interrupted after {size:,} of {total:,} bytes")


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
        answer = f"{host} answered {error.code} {printable(error.reason)}"
        if error.code in _TRANSIENT_STATUS:
            raise _TransferError(answer) from error
        raise UserError(f"{url}: {answer}") from error
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: {host} has no valid certificate: {_reason(cause)}") from error
        raise _TransferError(f"no connection to {host}: {_reason(cause)}") from error


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
        if not secure and (req.type == "https" or not _is_local(newurl)):
            fp.close()
            raise UserError(f"{req.full_url} redirects to {newurl}: only https is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK


def _strong_version(headers: HTTPMessage) -> str:
    etag = headers.get("ETag", "")
    # A weak ETag does not promise the same bytes.
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _content_range(response: HTTPResponse) -> tuple[int, int | None]:
    """Returns where the response starts in the file, and the file's size if the server says."""
    if response.status != 206:
        return 0, response.length
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-\d*/(\d{1,18}|\*)", text)
    if not match:
        raise _TransferError("the server sent a part without a readable range")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _check_size(url: str, path: Path, start: int, total: int | None, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise UserError(f"{url} has {total:,} bytes, more than the limit of {max_bytes:,}")
    free = shutil.disk_usage(path.parent).free
    if total - start + _SPARE_BYTES > free:
        raise UserError(
            f"{path.parent} has {free:,} bytes free; {path.name} needs {total - start:,} more"
        )


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(2**18)
    except (OSError, HTTPException) as error:
        raise _TransferError(f"interrupted: {_reason(error)}") from error


def _reason(error: object) -> str:
    """A one-line reason; some of these texts come from the server."""
    if isinstance(error, TimeoutError):
        return "timed out"
    strerror = getattr(error, "strerror", None)
    return printable(str(strerror or error or type(error).__name__), 300)
