"""A trace of a few training steps, for TensorBoard: what the device did, and when."""

import logging
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from agenet.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """The steps to trace: so many, after the first ones of a session, which compile."""

    first: int = 5
    count: int = 5


def parse_window(text: str) -> Window | None:
    """The window of "FIRST:COUNT", for example "100:20"; the usual one of "true", none of "false".

    Raises:
        UserError: it does not read so.
    """
    if text in ("true", "false"):
        return Window() if text == "true" else None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or found[2] == "0":
        raise UserError(f'--profile={text} is not FIRST:COUNT, such as "5:5"')
    return Window(int(found[1]), int(found[2]))


class Profile(AbstractContextManager["Profile"]):
    """Traces the steps of a window into a folder, where TensorBoard finds them."""

    def __init__(self, directory: Path, window: Window | None):
        """Nothing is traced without a window."""
        self._directory = directory
        self._window = window
        self._steps = 0  # begun in this session
        self._first: int | None = None  # step that the trace under way began with

    def before(self, step: int, state: Any) -> None:
        """To be called before each step, with what the step before has computed.

        The trace begins and ends when that is there, so that it holds whole steps.
        """
        if self._window is None:
            return
        if self._steps == self._window.first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # To note every call would slow down the host.
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._first = step
        elif self._steps == self._window.first + self._window.count:
            jax.block_until_ready(state)
            self._stop()
        self._steps += 1

    def __exit__(self, *_: object) -> None:
        if self._first is not None:
            self._stop()
        elif self._window is not None and self._steps <= self._window.first:
            log.info(
                "no profile: it was to begin after %d steps, and there were %d: --profile=1:%d "
                "begins earlier",
                self._window.first,
                self._steps,
                self._window.count,
            )

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        log.info(
            "profile: from step %d in %s; its largest costs: python scripts/read_profile.py %s; "
            "all of it: pip install xprof, then tensorboard --logdir=%s",
            self._first,
            self._directory,
            self._directory.parent,
            self._directory,
        )
        self._first = None
