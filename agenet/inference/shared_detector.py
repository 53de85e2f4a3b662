"""Lets several threads, and processes, detect faces with one detector."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from agenet.faces.detectors import NAMES, create_detector
from agenet.faces.face import Detection, Detector
from agenet.faces.forks import restart_after_fork


class SharedDetector:
    """A detector for any number of threads; its copies in other processes create it again.

    Threads take turns with a detector that does not have the attribute `thread_safe = True`.

    Args:
        detector: see `agenet.faces.detectors.create_detector`. "auto" is resolved at the first use,
            and in a process that this was pickled for, any name.
        threads: of one search, see `create_detector`.

    Raises:
        UserError: there is no such detector.
    """

    def __init__(self, detector: str | Path | Detector, threads: int | None = None) -> None:
        self._given, self._threads = detector, threads
        self._start()
        if not (isinstance(detector, str) and detector == "auto"):
            self._find()  # A mistake shows at once.

    def _start(self) -> None:
        self._detector: Detector | None = None
        self._creating, self._turn = threading.Lock(), threading.Lock()
        restart_after_fork(self)

    def restart(self) -> None:
        """Starts with new locks: those of a parent may be held by its threads."""
        self._creating, self._turn = threading.Lock(), threading.Lock()

    @property
    def name(self) -> str:
        """The name of the detector.

        Raises:
            UserError: no detector is available.
        """
        return self._find().name

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first.

        Raises:
            UserError: no detector is available.
        """
        detector = self._find()
        with nullcontext() if getattr(detector, "thread_safe", False) else self._turn:
            return detector.detect(image)

    def _find(self) -> Detector:
        with self._creating:
            if self._detector is None:
                self._detector = create_detector(self._given, self._threads)
            return self._detector

    def __getstate__(self) -> dict[str, Any]:
        given = self._given
        if isinstance(given, str | Path) and str(given) not in NAMES:
            given = Path(given).expanduser().absolute()
        return {"given": given, "threads": self._threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The detector is created later: an error here would end a process of a pool.
        self._given, self._threads = state["given"], state["threads"]
        self._start()
