"""Addresses in Google Cloud Storage, against a server on this machine.

It does not know the condition by which leases are created; the tests of S3 show that.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agenet.errors import UserError
from agenet.places import copies
from agenet.places.fetching import fetch
from agenet.places.working import look_at_workdir, open_workdir


@pytest.fixture
def gcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    monkeypatch.setattr(copies, "cache_dir", lambda: tmp_path / "cache")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


def test_a_work_directory(gcs: None, capsys: pytest.CaptureFixture[str]) -> None:
    with open_workdir("gs://bucket/runs/a") as place:
        state = place.folder / "checkpoints/latest/5/state"
        state.mkdir(parents=True)
        (state / "d").write_bytes(b"1" * 1000)
        (place.folder / "report.json").write_text("{}")
    assert "this store has no locks" in capsys.readouterr().err
    with open_workdir("gs://bucket/runs/a", exists=True) as place:
        (place.folder / "report.json").write_text("{ }")
    copy = look_at_workdir("gs://bucket/runs/a")
    assert (copy / "checkpoints/latest/5/state/d").read_bytes() == b"1" * 1000
    assert fetch("gs://bucket/runs/a/report.json").read_text() == "{ }"


def test_mistakes(gcs: None) -> None:
    for address in ("gs://bucket/a.csv", "gs://missing/runs/a"):
        with pytest.raises(UserError, match=f"{address}: there is no such bucket, folder or file"):
            fetch(address)
    with (
        pytest.raises(UserError, match="gs://missing/a: there is no such bucket"),
        open_workdir("gs://missing/a"),
    ):
        pass
