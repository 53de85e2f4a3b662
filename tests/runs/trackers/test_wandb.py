import dataclasses
import socket
import sys
from pathlib import Path

import pytest

from agenet.runs.trackers.tracker import TrackedRun
from agenet.runs.trackers.wandb import WandbTracker, choose_mode

# What W&B warns of in its own code and dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("API_KEY", "IDENTITY_TOKEN_FILE", "MODE", "PROJECT", "NAME", "BASE_URL")
    for name in names:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.mark.slow
def test_offline(tracked: TrackedRun, capfd: pytest.CaptureFixture) -> None:
    wandb = pytest.importorskip("wandb")
    ids = set()
    for step in (0, 4):  # A resumed run keeps its id.
        tracker = WandbTracker(dataclasses.replace(tracked, step=step))
        tracker.log_scalars(step + 2, 1000.5, {"train/loss": 0.125})
        if step:
            tracker.log_report(8)
        tracker.close(bool(step))
        ids.add((tracked.workdir / "wandb.json").read_text())
    assert len(ids) == 1
    wandb.teardown()  # As at the end of a process: its service may still be writing.
    folders = sorted((tracked.workdir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    (record,) = folders[1].glob("*.wandb")
    content = record.read_bytes()
    for text in ("train/loss", "tiny", "f00", "report/confusion_age"):
        assert text.encode() in content
    # Neither the machine, nor the program, nor images of the data set.
    files = {path.name for path in folders[1].rglob("*") if path.is_file()}
    assert {"report.md", "report.json", "lineage.json"} <= files
    assert not files & {"report.html", "requirements.txt", "wandb-metadata.json"}
    host = socket.gethostname().encode()
    assert bytes([len(host)]) + host not in content  # As a field of a message.
    for text in (sys.executable, "faces_age"):
        assert text.encode() not in content
    assert capfd.readouterr().err == ""


def test_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_mode() == "offline"  # It would ask for a key.
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    assert choose_mode() == "online"
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    assert choose_mode() == "offline"
    monkeypatch.delenv("AGENET_OFFLINE")
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.invalid")
    assert choose_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert choose_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode() == "disabled"
