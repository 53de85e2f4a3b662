"""Detects, tracks and predicts the faces of a video in background threads."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agenet.faces.channel import Channel, Closed, start_thread
from agenet.faces.face import Detection, Detector, Face, FacePredictor
from agenet.faces.frames import TIMEOUT, Frame, VideoSource
from agenet.faces.tracking import Scene, Track, TrackedFace, Tracker, TrackRecorder

LIVE_BUDGET, FILE_BUDGET = 4, 32  # maximum number of faces predicted per frame
POLL = 0.5  # seconds to wait for a frame before yielding None


@dataclass(frozen=True)
class _Request:
    """Faces of a frame to predict; only the detector thread may use the tracks."""

    frame: Frame
    tracks: Sequence[Track]
    detections: Sequence[Detection]


class Pipeline:
    """Yields frames with their faces, in order; a context manager that ends its threads.

    One thread reads frames. For live display, a second thread detects and tracks and a third one
    predicts, and frames do not wait for either: boxes follow the optical flow until the next
    detection, and predictions appear when they are available. With `every_frame`, one thread
    detects, tracks and predicts each frame, so that results do not depend on the machine's speed.

    Args:
        source: read and closed by a thread.
        detector: used by one thread.
        load: loads the predictor; in a thread if the source is live.
        every_frame: process every frame and wait for its result.
        mirror: flip frames horizontally.
        recorder: is informed of each track, by one of the threads.
    """

    def __init__(
        self,
        source: VideoSource,
        detector: Detector,
        load: Callable[[], FacePredictor],
        *,
        every_frame: bool,
        mirror: bool = False,
        recorder: TrackRecorder | None = None,
    ) -> None:
        self._source, self._detector, self._load = source, detector, load
        self._every_frame, self._mirror = every_frame, mirror
        self.tracker = Tracker(FILE_BUDGET if every_frame else LIVE_BUDGET, recorder)
        self._predictor: FacePredictor | None = None
        self._frames = Channel[Frame](2, newest=source.live)
        self._done = Channel[tuple[Frame, Scene]](2)  # every frame
        self._inbox = Channel[Frame](1, newest=True)
        self._scenes = Channel[Scene](1, newest=True)
        self._requests = Channel[_Request](1)
        self._results = Channel[tuple[_Request, list[Face]]](1)
        self._threads: list[threading.Thread] = []

    @property
    def loaded(self) -> bool:
        """Whether the predictor has been loaded."""
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
            self._threads.append(start_thread(self._process_all, self._done, "faces"))
        else:
            self._threads.append(start_thread(self._detect, self._scenes, "detector"))
            self._threads.append(start_thread(self._predict, self._results, "predictor"))
        return self

    def __exit__(self, *_: object) -> None:
        self._source.stop()
        for channel in (
            self._frames,
            self._done,
            self._inbox,
            self._scenes,
            self._requests,
            self._results,
        ):
            channel.close()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def __iter__(self) -> Iterator[tuple[Frame, list[TrackedFace]] | None]:
        """Yields frames and their faces, or None whenever no frame arrived for `POLL` seconds.

        Raises:
            UserError: the error that ended a thread.
        """
        # Channels raise `Closed` at the end of the video.
        with contextlib.suppress(Closed):
            while self._every_frame:
                frame, scene = self._done.get()
                yield frame, list(scene.faces)
            yield from self._live_frames()

    def _live_frames(self) -> Iterator[tuple[Frame, list[TrackedFace]] | None]:
        scene: Scene | None = None
        waited = 0.0
        # After some time the camera hangs.
        while not self._source.live or self._source.waits or waited < TIMEOUT + 2:
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

    def _process_all(self) -> None:
        predictor = self._predictor = self._predictor or self._load()
        while True:
            frame = self._frames.get()
            self.tracker.update(frame.image, frame.seconds, self._detector.detect(frame.image))
            if due := self.tracker.due_tracks():
                faces = predictor.predict_faces(frame.image, [track.detection for track in due])
                self.tracker.add_predictions(due, faces, frame.seconds)
            self._done.put((frame, self.tracker.scene()))

    def _detect(self) -> None:
        is_predicting = False
        while True:
            frame = self._inbox.get()
            self.tracker.update(frame.image, frame.seconds, self._detector.detect(frame.image))
            with contextlib.suppress(TimeoutError):
                request, faces = self._results.get(0)
                self.tracker.add_predictions(request.tracks, faces, request.frame.seconds)
                is_predicting = False
            if not is_predicting and (due := self.tracker.due_tracks()):
                is_predicting = self._requests.put(
                    _Request(frame, due, [track.detection for track in due])
                )
            self._scenes.put(self.tracker.scene())

    def _predict(self) -> None:
        predictor = self._predictor = self._predictor or self._load()
        while True:
            request = self._requests.get()
            faces = predictor.predict_faces(request.frame.image, request.detections)
            self._results.put((request, faces))
