"""Says when XLA compiles, which takes from seconds to minutes in which nothing else is seen."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agenet.evaluation.summary import duration

log = logging.getLogger(__name__)


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """Logs that `what` is being compiled and, afterwards, how long it took."""
    log.info("compiling %s, which can take minutes", what)
    start = time.monotonic()
    yield
    log.info("compiled %s in %s", what, duration(time.monotonic() - start))


class LoggedFirstCall:
    """A compiled function whose first call, which compiles it, is logged.

    Args:
        function: made by `jax.jit`.
        what: name of it, for the log.
    """

    def __init__(self, function: Callable[..., Any], what: str):
        self._function, self._what = function, what
        self._called = False

    def __call__(self, *args: Any) -> Any:
        if self._called:
            return self._function(*args)
        self._called = True
        with compiling(self._what):
            return self._function(*args)

    def lower(self, *args: Any) -> Any:
        """As that of a function made by `jax.jit`."""
        function: Any = self._function
        return function.lower(*args)
