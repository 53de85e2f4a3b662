"""Who may use a server: the token, the host that is asked for, and the pages that ask."""

import hmac
import ipaddress
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agenet.errors import UserError
from agenet.server.answers import refuse
from agenet.server.limits import Refused

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
TOKEN_VARIABLE = "AGENET_TOKEN"
CAMERA = "/v1/camera"
# Paths that need no token: they say nothing about images and do no work, or are the page, which
# asks for the token. A browser cannot send a header for the camera, which sends the token itself.
OPEN = ("/", "/page.css", "/page.js", "/healthz", "/readyz", "/openapi.json", CAMERA)
_SHORTEST, _LONGEST = 16, 1000  # characters of a token
_HOW = 'python -c "import secrets; print(secrets.token_urlsafe())"'


def read_token(path: Path | None) -> str | None:
    """Reads the token from a file or the environment variable AGENET_TOKEN; None without either.

    Raises:
        UserError: the file cannot be read, others may read it, or it holds no token.
    """
    if path is None:
        token = os.environ.get(TOKEN_VARIABLE)
        return None if token is None else _checked(token, TOKEN_VARIABLE)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not path.is_dir():
            raise UserError(f"--token-file {path}: not a file")
        with path.open("rb") as file:
            content = file.read(_LONGEST + 2)
    except OSError as error:
        raise UserError(f"--token-file {path}: {error.strerror}") from error
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        raise UserError(f"--token-file {path}: others may read it: chmod 600 {path}")
    return _checked(content.decode("ascii", "replace"), f"--token-file {path}")


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not (_SHORTEST <= len(token) <= _LONGEST and token.isascii() and token.isprintable()):
        raise UserError(
            f"{where}: a token has {_SHORTEST} to {_LONGEST} printable ASCII characters: {_HOW}"
        )
    if " " in token:
        raise UserError(f"{where}: a token has no spaces: {_HOW}")
    return token


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


@dataclass(frozen=True)
class Access:
    """Who may use a server.

    Attributes:
        token: that clients must send; None: none is needed.
        hosts: the names under which the server may be asked; none: any. On a loopback address this
            keeps out pages whose own name was made to lead there (DNS rebinding).
        origins: of other pages that may use the server.
    """

    token: str | None = None
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()

    def check(self, path: str, headers: Headers) -> None:
        """Raises `Refused` for a request that may not be answered."""
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            raise Refused(400, "the host is not one of this server's: see --allow-host")
        origin = headers.get("origin")
        # Not the scheme: a proxy may have taken TLS off.
        is_own = origin is not None and bool(host) and urlsplit(origin).netloc == host
        if origin is not None and not is_own and origin not in self.origins:
            raise Refused(403, "pages of this origin may not use the server: see --allow-origin")
        if path in OPEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if not self.allows(given.strip() if kind.lower() == "bearer" else ""):
            raise Refused(
                401,
                "the token is missing or wrong: Authorization: Bearer TOKEN",
                www_authenticate="Bearer",
            )

    def allows(self, token: str) -> bool:
        """Whether a client with this token may use the server."""
        return self.token is None or hmac.compare_digest(token.encode(), self.token.encode())


def _name(host: str) -> str | None:
    """The host's name in a header, in small letters, without its port and an address's brackets."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class Guard:
    """ASGI middleware that refuses requests which `Access` does not allow."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._access.check(scope["path"], Headers(scope=scope))
            except Refused as refused:
                if scope["type"] == "http":
                    await refuse(refused)(scope, receive, send)
                else:  # Refused before it is accepted, which is status 403.
                    await send({"type": "websocket.close", "code": 1008})
                return
        await self._app(scope, receive, send)
