"""Stores on this machine for the tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from agenet.places.stores import STORES, Store


def use_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes memory://bucket an address; returns the fsspec file system."""
    memory = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem
    monkeypatch.setitem(STORES, "memory", Store("s3", "fsspec", "set AN_ACCOUNT", {}))
    monkeypatch.setattr(memory, "store", {})
    monkeypatch.setattr(memory, "pseudo_dirs", ["", "/bucket"])
    return memory()


def serve_s3(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a server that speaks S3, with the bucket `bucket`; yields a client of Amazon's."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "name"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-a-test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        patch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    try:
        yield client
    finally:
        server.stop()
