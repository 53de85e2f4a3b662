"""Shows video frames in a window and handles its keys."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from agenet.errors import UserError, say
from agenet.faces.drawing import draw_faces
from agenet.faces.frames import Frame
from agenet.faces.image_io import write_image

KEYS = {ord("q"): "quit", 27: "quit", ord(" "): "pause", ord("s"): "snapshot"}
# Without Qt's toolbar, which has its own key bindings.
WINDOW_FLAGS = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
NOTICE = 2.0  # seconds that a message is shown


class Screen(Protocol):
    """Shows images and reads keys."""

    def show(self, image: np.ndarray) -> None:
        """Shows an image RGB uint8 [H, W, 3]."""
        ...

    def key(self, seconds: float) -> str:
        """Waits up to `seconds` for a key; returns its action, a value of `KEYS`, or ""."""
        ...


class Window:
    """A window of OpenCV."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = False

    def show(self, image: np.ndarray) -> None:
        if not self._shown:
            cv2.namedWindow(self._title, WINDOW_FLAGS)
            cv2.resizeWindow(self._title, image.shape[1], image.shape[0])
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._shown = True

    def key(self, seconds: float) -> str:
        if not self._shown:  # Without a window `waitKey` does not wait.
            time.sleep(seconds)
            return ""
        try:
            code = cv2.waitKey(max(1, round(1000 * seconds)))
            closed = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # Raised by Qt after the last window was closed.
            closed = True
        if closed:  # By the button of the window.
            return "quit"
        return KEYS.get(code & 0xFF, "") if code >= 0 else ""


def check_window() -> None:
    """Raises `UserError`, with alternatives, if no window can be opened on this machine."""
    instead = "give --output FILE or --json FILE to run without a window"
    no_display = UserError(f"this machine has no display: {instead}")
    linux = sys.platform.startswith("linux")
    if linux and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        raise no_display
    gui = [line for line in cv2.getBuildInformation().splitlines() if line.strip()[:4] == "GUI:"]
    if any("NONE" in line for line in gui):
        raise UserError(
            "this OpenCV has no windows: pip uninstall -y opencv-python-headless && pip install "
            f"--force-reinstall --no-deps opencv-python; or {instead}"
        )
    if not linux:
        return
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # About fonts.
    # Qt aborts the process if it cannot open the display, so another process tries first.
    attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('agenet')"]
    if subprocess.run(attempt, capture_output=True, check=False).returncode:
        raise no_display


class Display:
    """Shows frames on a screen and handles quit, pause and snapshot.

    Args:
        screen: shows the frames.
        paced: show frames at their timestamps, not as soon as they are available.
        clock: seconds.
    """

    def __init__(self, screen: Screen, *, paced: bool, clock: Callable[[], float]) -> None:
        self._screen, self._paced, self._clock = screen, paced, clock
        self._start: float | None = None
        self._drawn: np.ndarray | None = None
        self._notice, self._notice_until = "", 0.0

    @property
    def notice(self) -> str:
        """The message about the latest snapshot, for `NOTICE` seconds; else ""."""
        return self._notice if self._clock() < self._notice_until else ""

    def show(self, frame: Frame, drawn: np.ndarray) -> bool:
        """Shows a frame with its drawings at its time; returns False if the user quits."""
        self._drawn = drawn
        if self._start is None:
            self._start = self._clock() - frame.seconds
        wait = self._start + frame.seconds - self._clock() if self._paced else 0.0
        # A video that is too fast for this machine is shown more slowly, without skipping.
        self._start -= min(wait, 0.0)
        action = self._screen.key(wait) if wait > 0 else ""
        self._screen.show(drawn)
        return self._do(action or self._screen.key(0))

    def idle(self, status: str) -> bool:
        """Shows a status while there is no new frame; returns False if the user quits."""
        if self._drawn is not None:
            self._screen.show(draw_faces(self._drawn, [], status=status))
        return self._do(self._screen.key(0))

    def _do(self, action: str) -> bool:
        if action == "snapshot":
            self._snapshot()
        elif action == "pause":
            began = self._clock()
            action = self._pause()
            if self._start is not None:
                self._start += self._clock() - began
        return action != "quit"

    def _pause(self) -> str:
        """Waits for a key; returns "pause" to continue, or "quit"."""
        status = "paused: space resumes, q quits"
        while True:
            if self._drawn is not None:
                self._screen.show(draw_faces(self._drawn, [], status=self.notice or status))
            action = self._screen.key(0.05)
            if action in ("pause", "quit"):
                return action
            if action == "snapshot":
                self._snapshot()

    def _snapshot(self) -> None:
        if self._drawn is None:
            return
        path = Path(f"agenet-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3] + ".png")
        try:
            write_image(path, self._drawn)
            self._notice = f"saved {path}"
        except OSError as error:
            self._notice = f"not saved: {error.strerror}"
        say(self._notice)
        self._notice_until = self._clock() + NOTICE
