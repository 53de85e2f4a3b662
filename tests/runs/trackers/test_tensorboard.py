import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agenet.runs.trackers.tensorboard import TensorBoardTracker
from agenet.runs.trackers.tracker import TrackedRun
from tests.conftest import ROOT


def read(workdir: Path) -> list[Any]:
    """The events in all files, whose checksums are verified."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        reader = PyRecordReader_New(str(path).encode())
        while True:
            try:
                reader.GetNext()
            except Exception:  # The end.
                break
            events.append(Event.FromString(reader.record()))
    return events


def test_scalars_config_lineage_and_report(tracked: TrackedRun) -> None:
    tracker = TensorBoardTracker(tracked)
    tracker.log_scalars(3, 1000.5, {"train/loss": 0.25, "epoch": 0.5})
    tracker.log_report(4)
    tracker.close(True)
    version, config, lineage, row, *report = read(tracked.workdir)
    assert version.file_version == "brain.Event:2"
    assert b'"name": "tiny"' in config.summary.value[0].tensor.string_val[0]
    assert b'"fingerprint": "f00"' in lineage.summary.value[0].tensor.string_val[0]
    assert (row.step, row.wall_time) == (3, 1000.5)
    assert {v.tag: v.simple_value for v in row.summary.value} == {"train/loss": 0.25, "epoch": 0.5}
    values = {event.summary.value[0].tag: event.summary.value[0] for event in report}
    assert set(values) == {"report/confusion_age", "report/faces_age", "report"}
    image = values["report/confusion_age"].image
    assert (image.width, image.height) == (8, 6)
    assert image.encoded_image_string == (tracked.workdir / "confusion_age.png").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_a_resumed_run(tracked: TrackedRun) -> None:
    """What was written after the last checkpoint is not drawn twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        tracker = TensorBoardTracker(dataclasses.replace(tracked, step=resumed))
        for step in steps:
            tracker.log_scalars(step, 0.0, {"train/loss": float(step + resumed)})
        tracker.close(False)
    events = EventAccumulator(str(tracked.workdir / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(2, 2.0), (4, 4.0), (6, 10.0), (8, 12.0)]
    assert set(events.Tags()["tensors"]) == {"config", "lineage"}


def test_tensorflow_is_not_imported(tracked: TrackedRun) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from agenet.runs.trackers.tensorboard import TensorBoardTracker\n"
        "from agenet.runs.trackers.tracker import TrackedRun\n"
        "TensorBoardTracker(TrackedRun(Path(sys.argv[1]), {}, {}, 0)).close(True)\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tracked.workdir)], cwd=ROOT, check=True)
