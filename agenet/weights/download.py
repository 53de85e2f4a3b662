"""Downloads one file over HTTPS: resumable, verified, and placed atomically.

No library is used: pooch restarts interrupted downloads from the first byte, compares whole hashes
only (torchvision and timm publish eight digits), follows redirects to plain http, and has no lock
and no size limit; huggingface_hub downloads from its own hub, where these files are not.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from agenet.errors import UserError
from agenet.weights.connection import Answer, TransferError, is_local, receive

log = logging.getLogger(__name__)

# Left free on the disk, beyond the file.
_SPARE_BYTES = 2**24


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up a download.

    Attributes:
        timeout: seconds to wait for the next bytes; twice that for a connection and its answer.
        attempts: number of connections for one file.
        pause: seconds before the second attempt; doubled before each further one.
        max_bytes: largest size of a file.
        min_rate: bytes a second, below which a connection is given up, over `timeout` seconds.
        total: seconds for all attempts together.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    max_bytes: int = 2 * 2**30
    min_rate: int = 1000
    total: float = 2 * 3600.0


DEFAULT_RETRIES = RetryPolicy()


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
    if urlsplit(url).scheme != "https" and not is_local(url):
        raise UserError(f"{url} is not an https address")
    part = _Part(path)
    deadline = time.monotonic() + retries.total
    try:
        for attempt in range(1, retries.attempts + 1):
            try:
                _transfer(url, part, retries, deadline)
                break
            except TransferError as error:
                pause = retries.pause * 2 ** (attempt - 1)
                if attempt == retries.attempts or time.monotonic() + pause > deadline:
                    late = f" within {retries.total:g} s" if attempt < retries.attempts else ""
                    raise UserError(
                        f"cannot download {url}{late}: {error}{part.keep_if_useful()}"
                    ) from error
                log.info("%s: %s, trying again in %g s", path.name, error, pause)
                time.sleep(pause)
        try:
            verify(part.path)
        except UserError:
            part.delete()
            raise
        os.replace(part.path, path)
        part.delete()
    except OSError as error:  # From the disk; network errors have become TransferError.
        where = error.filename or path.parent
        raise UserError(f"cannot write {where}: {error.strerror or error}") from error


class _Part:
    """The received part of a file, and the version of the file that it belongs to.

    Attributes:
        server_resumes: False once the server has shown that it sends whole files only.
    """

    server_resumes = True

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

    def keep_if_useful(self) -> str:
        """Deletes a part that cannot be resumed; says what the same command would do next."""
        if not self.size():
            return ""
        if self.version() and self.server_resumes:
            return f"; {self.size():,} bytes are kept, the same command resumes from there"
        self.delete()
        return "; this server cannot resume, the same command starts from the first byte"


def _transfer(url: str, part: _Part, retries: RetryPolicy, deadline: float) -> None:
    """Makes one connection and appends to `part` until the file is complete."""
    version = part.version()
    asked = part.size() if version else 0
    with closing(receive(url, asked, version, retries.timeout, deadline)) as received:
        answer = next(received)
        assert isinstance(answer, Answer)
        start, total = answer.start, answer.total
        if start and (start != part.size() or answer.version not in ("", version)):
            part.delete()
            raise TransferError("the server sent a part that does not fit")
        if answer.ranges == "none" or (asked and not start and answer.version == version):
            part.server_resumes = False
        _check_size(url, part.path, start, total, retries.max_bytes)
        if not start:
            part.begin(answer.version)
        size = start
        bar = {"desc": part.path.stem, "total": total, "initial": start, "disable": None}
        with part.path.open("ab") as file, tqdm(**bar, unit="B", unit_scale=True) as progress:
            since, size_then = time.monotonic(), size
            for chunk in received:
                assert isinstance(chunk, bytes)
                size += len(chunk)
                if size > retries.max_bytes:
                    part.delete()
                    raise UserError(
                        f"{url} is larger than the limit of {retries.max_bytes:,} bytes"
                    )
                file.write(chunk)
                file.flush()  # Received bytes survive a kill.
                progress.update(len(chunk))
                passed = time.monotonic() - since
                if passed > retries.timeout:
                    if size - size_then < retries.min_rate * passed:
                        raise TransferError(f"slower than {retries.min_rate:,} bytes a second")
                    since, size_then = time.monotonic(), size
            os.fsync(file.fileno())
    if total is not None and size != total:
        raise TransferError(f"interrupted after {size:,} of {total:,} bytes")


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
