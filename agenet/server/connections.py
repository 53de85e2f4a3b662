"""Bounds the connections of uvicorn: their number, and the time in which a request must arrive."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from agenet.server.limits import Limits

_WATCH_SECONDS = 1.0
_GRACE_SECONDS = 10.0  # in which an answer must be read


class BoundedConnection(H11Protocol):
    """A connection that is closed when its client is too slow, or others need its place.

    uvicorn closes connections that are idle after an answer. One that never sends a request, or
    a byte a minute, it keeps for ever.

    Args:
        limits: of the server.
    """

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._since = 0.0  # when it was opened, or its last answer was complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._make_room()
        self._watch()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    @property
    def _is_idle(self) -> bool:
        """Whether the head of a request has yet to arrive."""
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        """Where there are too many, closes the one that has been without a request for longest."""
        others = [
            one
            for one in self.connections
            if isinstance(one, BoundedConnection) and not one.transport.is_closing()
        ]
        if len(others) > self._limits.connections:
            idle = [one for one in others if one._is_idle]
            min(idle, key=lambda one: one._since).transport.abort()

    def _watch(self) -> None:
        """Closes the connection if the client takes too long; otherwise looks again later."""
        limits = self._limits
        waits = self._is_idle and not self.transport.get_write_buffer_size()
        longest = limits.head_seconds
        if not waits:
            longest += limits.body_seconds + limits.seconds + _GRACE_SECONDS
        if self.loop.time() - self._since > longest:
            self.transport.abort()
        if self in self.connections:
            self.loop.call_later(_WATCH_SECONDS, self._watch)
