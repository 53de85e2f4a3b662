"""Stores behind addresses: which there are, how they are opened, and what went wrong in one line.

The clients are fsspec's. They find accounts where their own tools do, in the environment and in
files; an address holds none. Nothing is contacted but what an address names, and the services that
these clients ask for the account.
"""

import errno
import importlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenet.errors import UserError, did_you_mean, needs_extra, printable
from agenet.weights import hub
from agenet.weights.connection import is_offline

# Of the clients' exceptions: others are mistakes of agenet's.
_CLIENTS = (
    *("aiobotocore", "aiohttp", "asyncio", "botocore", "gcsfs", "google", "http"),
    *("huggingface_hub", "requests", "s3fs", "urllib3"),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Store:
    """A kind of store.

    Attributes:
        extra: of agenet, which installs its client.
        package: the client.
        account: how the user gives an account.
        options: of the client.
    """

    extra: str
    package: str
    account: str
    options: Mapping[str, Any]


STORES = {
    "gs": Store(
        "gcs",
        "gcsfs",
        "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
        {"use_listings_cache": False},
    ),
    "hf": Store(
        "hub",
        "huggingface_hub",
        "set HF_TOKEN, or run `hf auth login`",
        {"skip_instance_cache": True},
    ),
    "s3": Store(
        "s3",
        "s3fs",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket "
        "FSSPEC_S3_ANON=true",
        {
            "use_listings_cache": False,
            "config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 3}},
        },
    ),
}


@dataclass(frozen=True)
class Address:
    """A file or a folder in a store.

    Attributes:
        scheme: a key of `STORES`.
        path: bucket and name, such as "bucket/runs/a".
    """

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> "Address":
        return Address(self.scheme, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Address":
        return Address(self.scheme, self.path.rpartition("/")[0])


def parse_address(text: str | Path) -> Address:
    """Reads an address.

    Raises:
        UserError: there is no such kind of store, or it is not the address of a file or a folder.
    """
    # A `Path` has only one slash left.
    scheme, _, path = str(text).partition(":")
    shown, path = printable(f"{scheme}://{path.strip('/')}", 200), path.strip("/")
    bucket = path.partition("/")[0]
    # First of all, for it must not be shown.
    if "@" in bucket or (":" in bucket and scheme != "hf"):
        known = STORES.get(scheme)
        how = f": {known.account}" if known else ""
        raise UserError(f"an address of {printable(scheme)}:// cannot hold an account{how}")
    if scheme not in STORES:
        there_are = ", ".join(f"{name}://" for name in STORES)
        near = did_you_mean(scheme, STORES) if scheme != "file" else ": give the path alone"
        raise UserError(
            f"{shown}: {printable(scheme)}:// cannot be read{near}; there are {there_are}"
        )
    if any(part in ("", ".", "..") for part in path.split("/")) or re.search(
        r"[?*#\[\]\s\\]", path
    ):
        raise UserError(f"{shown} is not an address: write it like {scheme}://BUCKET/FOLDER/NAME")
    if scheme == "hf" and not re.match(r"datasets/[^/@]+/[^/@]+(@[^/]+)?(/|$)", path):
        raise UserError(
            f"{shown}: data on the hub is in hf://datasets/USER/NAME/FOLDER; hf://USER/NAME is for "
            "weights that agenet push has published"
        )
    return Address(scheme, path)


def open_store(address: Address) -> Any:
    """The fsspec file system that an address is in.

    Raises:
        UserError: AGENET_OFFLINE is set, or the client is not installed.
    """
    if is_offline():
        raise UserError(f"AGENET_OFFLINE forbids to look up {address}")
    store = STORES[address.scheme]
    try:
        importlib.import_module(store.package)
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        raise needs_extra(store.extra, f"{address.scheme}://", error) from error
    if address.scheme == "hf":  # The client's own reports of use.
        hub.import_hub(f"{address.scheme}://")
    for name in ("gcsfs", "s3fs", "fsspec"):  # They log the tracebacks of errors that they raise.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with store_errors_explained(address):
        return fsspec.filesystem(address.scheme, **store.options)


def check_writable(address: Address) -> None:
    """Raises `UserError` for a place that nothing is written to."""
    if address.scheme == "hf":
        raise UserError(
            f"{address}: nothing is written to the hub file by file: name a folder here or in "
            "another store; agenet push RUN hf://USER/NAME publishes a finished run"
        )


@contextmanager
def store_errors_explained(address: Address, *, missing_passes: bool = False) -> Iterator[None]:
    """Turns what a store's client raises into a `UserError` of one line.

    Errors of this machine's disk pass, and `FileNotFoundError` if that `missing_passes`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        account = STORES[address.scheme].account
        cause, kind = _first_line(error), type(error).__name__
        if isinstance(error, OSError) and (error.filename or error.errno in _FULL):
            raise
        if isinstance(error, FileNotFoundError) and missing_passes:
            raise
        if isinstance(error, FileNotFoundError):
            raise UserError(
                f"{address}: there is no such bucket, folder or file, or this account may not know "
                f"({cause})"
            ) from error
        if isinstance(error, PermissionError) or cause.startswith("Forbidden"):
            raise UserError(f"{address}: the store denies this ({cause}): {account}") from error
        if "Credentials" in kind or "Token" in kind:
            raise UserError(f"{address}: no account to use ({cause}): {account}") from error
        if not (isinstance(error, OSError) or type(error).__module__.startswith(_CLIENTS)):
            raise
        raise UserError(f"{address}: no answer to use: {cause}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0], 300).rstrip(".")
