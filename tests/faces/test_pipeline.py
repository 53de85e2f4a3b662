import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces import pipeline as pipeline_module
from agenet.faces.channel import Channel, Closed, start_thread
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection, Face, Prediction
from agenet.faces.frames import Frame, VideoSource
from agenet.faces.pipeline import Pipeline
from agenet.faces.tracking import TrackedFace
from agenet.faces.video import open_video


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Camera(VideoSource):
    """Returns frames at a given pace; live by default."""

    def __init__(self, count: int, seconds: float = 0.0, live: bool = True) -> None:
        self.name, self.live, self.rate, self.count = "camera 0", live, 25.0, None
        self.left, self.number, self.seconds, self.closed = count, 0, seconds, False
        self.image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)

    def read(self) -> Frame | None:
        if self.number == self.left:
            return None
        time.sleep(self.seconds)
        self.number += 1
        return Frame(self.number - 1, (self.number - 1) / 25, self.image.copy())

    def close(self) -> None:
        self.closed = True


class Fake:
    """A detector of so many faces and a predictor, each of which may take its time."""

    name = "hog"

    def __init__(self, faces: int = 1, detecting: float = 0.0, predicting: float = 0.0) -> None:
        self.faces, self.detecting, self.predicting = faces, detecting, predicting
        self.detected = self.predicted = 0
        self.most = 0

    def detect(self, image: np.ndarray) -> list[Detection]:
        time.sleep(self.detecting)
        self.detected += 1
        rows = range(self.faces)
        return [Detection(Box(9 * i, 9, 9 * i + 8, 20), 0.9) for i in rows]

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        assert detections is not None
        time.sleep(self.predicting)
        self.predicted += 1
        self.most = max(self.most, len(detections))
        return [Face(detection, Prediction(age=33.0)) for detection in detections]

    def load(self) -> "Fake":
        return self


def go(
    source: VideoSource,
    fake: Fake,
    load: Callable[[], Fake] | None = None,
    every_frame: bool = False,
) -> list[tuple[Frame, list[TrackedFace]]]:
    with Pipeline(source, fake, load or fake.load, every_frame=every_frame) as pipeline:
        return [item for item in pipeline if item is not None]


# Channels.


def test_channel_blocks_or_drops_the_oldest() -> None:
    kept, newest = Channel[int](2), Channel[int](2, newest=True)
    for number in range(5):
        assert newest.put(number)
    assert [newest.get(), newest.get()] == [3, 4]
    with pytest.raises(TimeoutError):
        newest.get(0)
    taken = []
    thread = start_thread(lambda: taken.extend([kept.get() for _ in range(5)]), kept, "reader")
    assert all(kept.put(number) for number in range(5))
    thread.join(5)
    assert taken == [*range(5)]


def test_closed_channel() -> None:
    channel = Channel[int](2)
    channel.put(1)
    channel.close()
    channel.close(ValueError("too late"))
    assert not channel.put(2)
    assert channel.get() == 1
    with pytest.raises(Closed):
        channel.get()


def test_closing_wakes_waiting_threads() -> None:
    full, empty = Channel[int](1), Channel[int](1)
    full.put(1)
    threads = [
        start_thread(lambda: bool(full.put(2)) and None, Channel[int](1), "writer"),
        start_thread(lambda: bool(empty.get()) and None, Channel[int](1), "reader"),
    ]
    for channel in (full, empty):
        channel.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_errors_are_raised_in_the_reading_thread() -> None:
    def fail() -> None:
        raise UserError("no such thing")

    output = Channel[int](1)
    start_thread(fail, output, "fails").join(5)
    with pytest.raises(UserError, match="no such thing"):
        output.get()


# Frames that come as they come.


def test_display_never_waits() -> None:
    """Slow detection and prediction cost no frame; faces are shown between detections."""
    fake = Fake(2, detecting=0.15, predicting=0.3)
    gaps, seen, before = [], [], time.monotonic()
    with Pipeline(Camera(60, 0.02), fake, fake.load, every_frame=False) as pipeline:
        for item in pipeline:
            assert item is not None
            gaps.append(time.monotonic() - before)
            before = time.monotonic()
            seen.append(len(item[1]))
    assert len(gaps) > 30 and np.median(gaps) < 0.1
    assert fake.detected < 20 and fake.predicted < 10
    first = seen.index(2)
    assert first < 40 and set(seen[first:]) == {2}  # No blinking.


def test_detection_does_not_wait_for_prediction() -> None:
    fake = Fake(1, predicting=0.4)
    frames = go(Camera(50, 0.02), fake)
    assert fake.detected > 3 * fake.predicted
    assert frames[-1][1][0].face.prediction.age == pytest.approx(33)


def test_faces_are_shown_while_the_network_is_loaded() -> None:
    fake, ready = Fake(1), threading.Event()

    def load() -> Fake:
        ready.wait(5)
        return fake

    with Pipeline(Camera(60, 0.01), fake, load, every_frame=False) as pipeline:
        loaded, predicted = [], []
        for item in pipeline:
            assert item is not None
            loaded.append(pipeline.loaded)
            predicted += [face.face.prediction.age for face in item[1]]
            if len(loaded) == 20:
                ready.set()
    assert not any(loaded[:20]) and loaded[-1]
    assert predicted[0] is None and predicted[-1] == pytest.approx(33)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("every_frame", [True, False])
def test_threads_end(live: bool, every_frame: bool) -> None:
    """Ended early, in the middle of everything."""
    if live and every_frame:
        pytest.skip("a camera does not wait")
    camera, fake = Camera(10**6, 0.001, live), Fake(3, 0.01, 0.01)
    with Pipeline(camera, fake, fake.load, every_frame=every_frame) as pipeline:
        for _, item in zip(range(20), pipeline, strict=False):
            assert item is not None
    assert camera.closed and camera.number < 500


@pytest.mark.parametrize("every_frame", [True, False])
def test_memory_does_not_grow(every_frame: bool) -> None:
    camera, fake = Camera(250, 0.0005, live=not every_frame), Fake(3, 0.001, 0.001)
    tracemalloc.start()
    try:
        go_through(camera, fake, every_frame)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Of 250 frames, no more than a few are there at any time.
    assert camera.number == 250 and most < 30 * camera.image.nbytes


def go_through(source: VideoSource, fake: Fake, every_frame: bool) -> None:
    with Pipeline(source, fake, fake.load, every_frame=every_frame) as pipeline:
        for _ in pipeline:
            pass


def test_slow_reader_gets_newest_camera_frames_and_all_file_frames() -> None:
    for live in (True, False):
        fake = Fake(1)
        numbers = []
        with Pipeline(Camera(40, 0.005, live), fake, fake.load, every_frame=False) as pipeline:
            for item in pipeline:
                assert item is not None
                numbers.append(item[0].number)
                time.sleep(0.02)
        assert len(numbers) < 30 if live else numbers == [*range(40)]


def test_hanging_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "POLL", 0.05)
    monkeypatch.setattr(pipeline_module, "TIMEOUT", -1.7)

    class Hangs(Camera):
        def read(self) -> Frame | None:
            if self.number == 3:
                time.sleep(1.0)
                return None
            return super().read()

    fake = Fake(1)
    with Pipeline(Hangs(9), fake, fake.load, every_frame=False) as pipeline:
        items = list(pipeline)
        monkeypatch.undo()  # Its threads are waited for.
    assert items[-1] is None and 3 <= items.count(None) <= 8
    assert 1 <= len(items) - items.count(None) <= 3


def test_mirror() -> None:
    camera, fake = Camera(2), Fake(0)
    with Pipeline(camera, fake, fake.load, every_frame=False, mirror=True) as pipeline:
        for item in pipeline:
            assert item is not None
            np.testing.assert_array_equal(item[0].image, camera.image[:, ::-1])


# What goes wrong in a thread.


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("where", ["read", "load", "detect", "predict_faces"])
def test_errors_of_threads_are_raised(
    live: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera, fake = Camera(400, 0.005, live), Fake(1)

    def fail(*_: object) -> None:
        raise UserError(f"{where} failed")

    monkeypatch.setattr(camera if where == "read" else fake, where, fail)
    for every_frame in (False,) if live else (False, True):
        with pytest.raises(UserError, match=f"{where} failed"):
            go(camera, fake, every_frame=every_frame)
        assert camera.closed


# Every frame.


def test_every_frame_is_processed(real_data: Path) -> None:
    """The result does not depend on the machine's speed."""
    detector = create_detector("yunet")
    predicted = []
    for slow in (0.0, 0.01):
        fake = Fake(predicting=slow)
        source = open_video(str(real_data / "media" / "classroom.gif"))
        with Pipeline(source, detector, fake.load, every_frame=True) as pipeline:
            items = [item for item in pipeline if item is not None]
        assert [frame.number for frame, _ in items] == [*range(45)]
        assert {len(faces) for _, faces in items} == {4}
        ages = [face.face.prediction.age for _, faces in items for face in faces]
        assert ages == pytest.approx([33.0] * 4 * 45)
        predicted.append([[face.asdict() for face in faces] for _, faces in items])
    assert predicted[0] == predicted[1]
