"""Frames of a source with the faces on them, worked on in threads of their own."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agenet.faces.channel import Channel, Closed, start_thread
from agenet.faces.face import Detection, Detector, Face, FacePredictor
from agenet.faces.tracking import Scene, Track, TrackedFace, Tracker
from agenet.faces.video import TIMEOUT, Frame, VideoSource

LIVE_BUDGET, FILE_BUDGET = 4, 32  # faces predicted at once, at most
POLL = 0.5  # seconds after which one who waits for a picture is told that there is none yet


@dataclass(frozen=True)
class _Request:
    """Faces of a frame to predict; the tracks belong to the detector's thread."""

    frame: Frame
    tracks: Sequence[Track]
    detections: Sequence[Detection]


class Pipeline:
    """Frames with their faces, in order; use it as a context, which ends its threads.

    One thread reads. To show frames as they come, one thread detects and tracks and one predicts,
    and nobody waits for them: the faces move along by their optical flow until the detector's next
    word, and get their predictions when there are some. To work on every frame instead, one thread
    does it all, so that the result does not depend on the machine's speed.

    Args:
        source: read and closed by a thread.
        detector: used by one thread.
        load: makes the predictor; in its own thread if the source is live, which does not wait.
        every_frame: work on each frame and wait for its result.
        mirror: flip the pictures, as a looking glass does.
    """

    def __init__(
        self,
        source: VideoSource,
        detector: Detector,
        load: Callable[[], FacePredictor],
        *,
        every_frame: bool,
        mirror: bool = False,
    ) -> None:
        self._source, self._detector, self._load = source, detector, load
        self._every_frame, self._mirror = every_frame, mirror
        self.tracker = Tracker(FILE_BUDGET if every_frame else LIVE_BUDGET)
        self._predictor: FacePredictor | None = None
        self._frames = Channel[Frame](2, newest=source.live)
        self._done = Channel[tuple[Frame, Scene]](2)  # every frame
        self._inbox = Channel[Frame](1, newest=True)
        self._scenes = Channel[Scene](1, newest=True)
        self._requests = Channel[_Request](1)
        self._answers = Channel[tuple[_Request, list[Face]]](1)
        self._threads: list[threading.Thread] = []

    @property
    def loaded(self) -> bool:
        """Whether there is a predictor already."""
        return self._predictor is not None

    def __enter__(self) -> "Pipeline":
        if not self._source.live:
            try:
                self._predictor = self._load()
            except BaseException:
                self._source.close()
                raise
        self._threads = [start_thread(self._read, self._frames, "frames")]
        if self._every_frame:
            self._threads.append(start_thread(self._follow, self._done, "faces"))
        else:
            self._threads.append(start_thread(self._detect, self._scenes, "detector"))
            self._threads.append(start_thread(self._predict, self._answers, "predictor"))
        return self

    def __exit__(self, *_: object) -> None:
        for channel in (
            self._frames,
            self._done,
            self._inbox,
            self._scenes,
            self._requests,
            self._answers,
        ):
            channel.close()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def __iter__(self) -> Iterator[tuple[Frame, list[TrackedFace]] | None]:
        """Frames and their faces; None each time that `POLL` seconds went by without one.

        Raises:
            UserError: whatever ended a thread.
        """
        # Any channel raises `Closed` at the end.
        with contextlib.suppress(Closed):
            while self._every_frame:
                frame, scene = self._done.get()
                yield frame, list(scene.faces)
            yield from self._as_they_come()

    def _as_they_come(self) -> Iterator[tuple[Frame, list[TrackedFace]] | None]:
        scene: Scene | None = None
        waited = 0.0
        while not self._source.live or waited < TIMEOUT + 2:  # Else the camera hangs.
            try:
                frame = self._frames.get(POLL)
            except TimeoutError:
                waited += POLL
                yield None
                continue
            waited = 0.0
            self._inbox.put(frame)
            with contextlib.suppress(TimeoutError):
                scene = self._scenes.get(0)
            yield frame, [] if scene is None else scene.at(frame.image, frame.seconds)

    def _read(self) -> None:
        with contextlib.closing(self._source):
            while (frame := self._source.read()) is not None:
                if self._mirror:
                    frame = replace(frame, image=np.ascontiguousarray(frame.image[:, ::-1]))
                if not self._frames.put(frame):
                    return

    def _follow(self) -> None:
        predictor = self._predictor = self._predictor or self._load()
        while True:
            frame = self._frames.get()
            self.tracker.update(frame.image, frame.seconds, self._detector.detect(frame.image))
            if due := self.tracker.due():
                faces = predictor.predict_faces(frame.image, [track.detection for track in due])
                self.tracker.learn(due, faces, frame.seconds)
            self._done.put((frame, self.tracker.scene()))

    def _detect(self) -> None:
        waiting = False  # for the predictor
        while True:
            frame = self._inbox.get()
            self.tracker.update(frame.image, frame.seconds, self._detector.detect(frame.image))
            with contextlib.suppress(TimeoutError):
                request, faces = self._answers.get(0)
                self.tracker.learn(request.tracks, faces, request.frame.seconds)
                waiting = False
            if not waiting and (due := self.tracker.due()):
                waiting = self._requests.put(
                    _Request(frame, due, [track.detection for track in due])
                )
            self._scenes.put(self.tracker.scene())

    def _predict(self) -> None:
        predictor = self._predictor = self._predictor or self._load()
        while True:
            request = self._requests.get()
            faces = predictor.predict_faces(request.frame.image, request.detections)
            self._answers.put((request, faces))
