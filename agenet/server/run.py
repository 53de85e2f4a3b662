"""Runs the server until it is told to stop, and lets it finish what it has begun."""

import functools
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette

from agenet.errors import UserError
from agenet.server.access import is_loopback
from agenet.server.connections import BoundedConnection
from agenet.server.limits import Limits

log = logging.getLogger(__name__)

_BACKLOG = 128  # connections that the system accepts before the server does
_FILES_BESIDE = 200  # that a process has open beside its connections


def bind(host: str, port: int) -> socket.socket:
    """Binds a socket, which does not listen yet.

    Raises:
        UserError: there is no such address here, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # There it would share the port with another program.
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {host} --port {port}: {reason.lower()}: choose another, or end the program "
            "that uses it"
        ) from error
    return bound


def is_private(bound: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return is_loopback(bound.getsockname()[0])


def url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Starlette, bound: socket.socket, limits: Limits, models: Sequence[str]) -> None:
    """Serves an application until SIGTERM or Ctrl-C, and then answers what it has accepted.

    Args:
        app: the application.
        bound: where to listen.
        limits: of the server.
        models: names of the networks, for the log.
    """
    _allow_files(limits.connections + _FILES_BESIDE)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=functools.partial(BoundedConnection, limits=limits),
        ws="websockets-sansio",
        ws_max_size=limits.frame,
        ws_per_message_deflate=False,  # JPEG files hardly compress.
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=round(limits.seconds),
    )
    # uvicorn raises the signal again after it has stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server = _Server(config, url(bound), models)
    server.run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, url: str, models: Sequence[str]) -> None:
        super().__init__(config)
        self._fields = {"url": url, "models": list(models)}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("listening", extra={"fields": self._fields})
        print(self._fields["url"], flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping")
        await super().shutdown(sockets)


def _allow_files(count: int) -> None:
    """Lets this process have so many files and connections open, where the system permits it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted: Any = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
