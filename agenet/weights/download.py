"""One file over HTTPS: resumed where it broke off, and never seen by others half done."""

import logging
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from io import FileIO
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

from agenet.errors import UserError, printable

log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
# Left free on the disk, beyond the file.
_SPARE_BYTES = 2**24


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up.

    Attributes:
        timeout: seconds without a connection, or without a byte on it.
        attempts: connections for one file.
        pause: seconds before the second attempt; doubled before each further one.
        max_bytes: size beyond which a file is not taken.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    max_bytes: int = 2 * 2**30


DEFAULT_RETRIES = RetryPolicy()


class _TransferError(Exception):
    """The transfer broke off in a way that may pass."""


def download(
    url: str, path: Path, check: Callable[[Path], None], patience: RetryPolicy = DEFAULT_RETRIES
) -> None:
    """Brings the file at `url` to `path`, whose folder must be there.

    What has arrived is kept in `NAME.part` and continued by a later attempt or process, provided
    that the server still has the same file (its ETag or date, in `NAME.part.version`). The file
    takes its place at once, after `check`. Of two processes only one may call this for a path.

    Raises:
        UserError: it cannot be had, or written, or what `check` raises; then it is deleted.
    """
    if urlsplit(url).scheme != "https" and not _is_local(url):
        raise UserError(f"{url} is not an https address")
    part = _Part(path)
    try:
        for attempt in range(1, patience.attempts + 1):
            try:
                _continue(url, part, patience)
                break
            except _TransferError as interruption:
                if attempt == patience.attempts:
                    raise UserError(_gave_up(url, interruption, part)) from interruption
                pause = patience.pause * 2 ** (attempt - 1)
                log.info("%s: %s, trying again in %g s", path.name, interruption, pause)
                time.sleep(pause)
        try:
            check(part.path)
        except UserError:
            part.delete()
            raise
        os.replace(part.path, path)
        part.delete()
    except OSError as error:  # Of the disk; the network's are _TransferError.
        where = error.filename or path.parent
        raise UserError(f"cannot write {where}: {error.strerror or error}") from error


class _Part:
    """What has arrived of a file, and of which version of it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self._version = path.with_name(path.name + ".part.version")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str:
        """The ETag or date that the server gave; empty where nothing can be continued."""
        if not self.size() or not self._version.exists():
            return ""
        return self._version.read_text(encoding="latin-1")

    def begin(self, version: str) -> None:
        self.delete()
        self._version.write_text(version, encoding="latin-1")

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


def _continue(url: str, part: _Part, patience: RetryPolicy) -> None:
    """One connection: brings `part` to the file's full size, or as far as it gets."""
    version = part.version()
    with _open(url, part.size() if version else 0, version, patience.timeout) as response:
        start, total = _range(response)
        served = _strong_version(response.headers)
        if start and (start != part.size() or served not in ("", version)):
            part.delete()
            raise _TransferError("the server answered with a part that does not fit")
        _check_size(url, part.path, start, total, patience.max_bytes)
        if not start:
            part.begin(served)
        label = part.path.name.removesuffix(".part")
        with (
            # Unbuffered: what has arrived outlives a kill.
            part.path.open("ab", buffering=0) as file,
            tqdm(
                desc=label, total=total, initial=start, unit="B", unit_scale=True, disable=None
            ) as progress,
        ):
            size = start
            for chunk in _chunks(response):
                size += len(chunk)
                if size > patience.max_bytes:
                    part.delete()
                    raise UserError(f"{url} has more than {patience.max_bytes:,} bytes: not taken")
                _write(file, chunk)
                progress.update(len(chunk))
            os.fsync(file.fileno())
    if total is not None and size != total:
        raise _TransferError(f"broke off after {size:,} of {total:,} bytes")


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:  # An unbuffered write may take less than it is given.
        rest = rest[file.write(rest) :]


def _open(url: str, start: int, version: str, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "agenet", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    host = urlsplit(url).hostname
    try:
        # Proxies are taken from the environment.
        opener = urllib.request.build_opener(_OnlySafeRedirects)
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # Nothing from there on: the file has shrunk.
            return _open(url, 0, "", timeout)
        answer = f"{host} answered {error.code} {printable(error.reason)}"
        if error.code in _TRY_AGAIN:
            raise _TransferError(answer) from error
        raise UserError(f"{url}: {answer}") from error
    except urllib.error.URLError as error:
        reason = _reason(error.reason)
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: {host} has no valid certificate: {reason}") from error
        raise _TransferError(f"no connection to {host}: {reason}") from error
    except (OSError, HTTPException) as error:
        raise _TransferError(f"no answer from {host}: {_reason(error)}") from error


class _OnlySafeRedirects(urllib.request.HTTPRedirectHandler):
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
            raise UserError(f"{req.full_url} leads to {newurl}: only https is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK


def _strong_version(headers: HTTPMessage) -> str:
    etag = headers.get("ETag", "")
    # A weak ETag does not promise the same bytes.
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _range(response: HTTPResponse) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the file's size where the server tells."""
    try:
        if response.status == 206:
            unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
            first_last, _, total = rest.partition("/")
            if unit != "bytes":
                raise ValueError
            return int(first_last.partition("-")[0]), None if total == "*" else int(total)
        length = response.headers.get("Content-Length")
        return 0, None if length is None else int(length)
    except ValueError as error:
        raise _TransferError("the server's answer has no readable size") from error


def _check_size(url: str, path: Path, start: int, total: int | None, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise UserError(f"{url} has {total:,} bytes, more than the {max_bytes:,} that are taken")
    free = shutil.disk_usage(path.parent).free
    if total - start + _SPARE_BYTES > free:
        raise UserError(
            f"{path.parent} has {free:,} bytes free; {path.name} needs {total - start:,} more"
        )


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(2**18):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _TransferError(f"broke off: {_reason(error)}") from error


def _reason(error: object) -> str:
    """For one line; some of these texts are the server's."""
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    strerror = getattr(error, "strerror", None)
    return printable(str(strerror or error or type(error).__name__), 300)


def _gave_up(url: str, interruption: _TransferError, part: _Part) -> str:
    size = part.size()
    kept = f"; {size:,} bytes are kept, the same command continues from there" if size else ""
    return f"cannot download {url}: {interruption}{kept}"
