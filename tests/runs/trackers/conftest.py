"""A run to track, with a small report in its work directory."""

import json
from pathlib import Path

import pytest
from PIL import Image

from agenet.runs.trackers.tracker import TrackedRun

CONFIG = {"seed": 0, "model": {"name": "tiny"}, "tasks": "age,gender"}
LINEAGE = {
    "dataset": {"name": "noise/faces", "fingerprint": "f00"},
    "splits": {"train": 1},
    "initial": {"digest": None},
    "trained_on": {"noise": "AAAA"},
}


@pytest.fixture
def tracked(tmp_path: Path) -> TrackedRun:
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("confusion_age", "faces_age"):
        Image.new("RGB", (8, 6)).save(workdir / f"{name}.png")
    (workdir / "report.json").write_text(json.dumps({"format": 1}))
    (workdir / "report.html").write_text("<p>faces</p>")
    (workdir / "report.md").write_text("# Report\n")
    return TrackedRun(workdir, CONFIG, LINEAGE, step=0)
