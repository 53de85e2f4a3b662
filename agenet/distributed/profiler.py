"""Traces a few training steps with JAX's profiler, for TensorBoard."""

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
    """The steps to trace: `count` steps after the `first` ones, which include compilation."""

    first: int = 5
    count: int = 5


def parse_window(text: str) -> Window | None:
    """Parses "FIRST:COUNT", for example "100:20"; "true" is the default window, "false" none.

    Raises:
        UserError: the text is malformed.
    """
    if text in ("true", "false"):
        return Window() if text == "true" else None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or found[2] == "0":
        raise UserError(f'--profile={text} is not FIRST:COUNT, such as "5:5"')
    return Window(int(found[1]), int(found[2]))


class Profile(AbstractContextManager["Profile"]):
    """Traces the steps of a window into a folder for TensorBoard."""

    def __init__(self, directory: Path, window: Window | None):
        """With `window` None nothing is traced."""
        self._directory = directory
        self._window = window
        self._steps = 0  # started in this session
        self._first: int | None = None  # first step of the current trace

    def before(self, step: int, state: Any) -> None:
        """Must be called before each step, with the result of the previous step.

        The trace starts and stops once that result is computed, so that it has whole steps.
        """
        if self._window is None:
            return
        if self._steps == self._window.first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Tracing every Python call slows down the host.
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
                "no profile: it starts after %d steps, and there were only %d: --profile=1:%d "
                "starts earlier",
                self._window.first,
                self._steps,
                self._window.count,
            )

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        log.info(
            "profile: from step %d in %s; largest costs: python scripts/read_profile.py %s; "
            "everything: pip install xprof, then tensorboard --logdir=%s",
            self._first,
            self._directory,
            self._directory.parent,
            self._directory,
        )
        self._first = None
