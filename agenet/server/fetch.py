"""Fetches images from addresses that clients name, but nothing from this machine's own network."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from agenet.server.limits import Reservation

SECONDS = 10.0  # for one image, with all redirects
_REDIRECTS = 3
_AT_ONCE = 8
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
# Global addresses that lead to an IPv4 address which they hold: NAT64 (RFC 6052) and 6to4.
_TRANSLATED = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")]

IsAllowed = Callable[[str], bool]


class FetchError(Exception):
    """Why an image was not fetched, in one line."""


def is_global(address: str) -> bool:
    """Whether an IP address is one of the internet's, and not of a network of its own."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in network for network in _TRANSLATED):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class Fetcher:
    """Fetches images over HTTP and HTTPS.

    Every connection, also after a redirect, goes to an address that was checked, so a name whose
    address changes after the check (DNS rebinding) leads nowhere else. Proxies of the environment
    are not used, and no cookies are kept.

    Args:
        most: bytes of an image.
        is_allowed: whether an IP address may be connected to.
    """

    def __init__(self, most: int, is_allowed: IsAllowed = is_global) -> None:
        self._most = most
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=_AT_ONCE,
            max_keepalive_connections=0,
            network_backend=_CheckedBackend(is_allowed),
        )

    async def fetch(self, url: str, memory: Reservation) -> bytes:
        """Returns the content of an image.

        Raises:
            FetchError: it cannot be fetched, or may not.
            Busy: there is no memory for it now.
        """
        try:
            async with asyncio.timeout(SECONDS):
                for _ in range(_REDIRECTS + 1):
                    found = await self._get(url, memory)
                    if isinstance(found, bytes):
                        return found
                    url = urljoin(url, found)
        except TimeoutError:
            raise FetchError(f"not fetched within {SECONDS:g} seconds") from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ):
            raise FetchError("its server does not answer as it should") from None
        raise FetchError(f"more than {_REDIRECTS} redirects")

    async def _get(self, url: str, memory: Reservation) -> bytes | str:
        """The content behind an address, or the address to which it redirects."""
        headers = [("Host", _host(url)), ("Accept", "image/*"), ("User-Agent", "agenet")]
        async with self._pool.stream("GET", url, headers=headers) as response:
            values = {name.lower(): value for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308):
                return values.get(b"location", b"").decode("ascii", "replace")
            if response.status != 200:
                raise FetchError(f"its server answers with status {response.status}")
            kind = values.get(b"content-type", b"").decode("ascii", "replace").strip().lower()
            if not kind.startswith(_TYPES):
                raise FetchError("its server does not send it as an image")
            content = bytearray()
            async for chunk in response.aiter_stream():
                if len(content) + len(chunk) > self._most:
                    raise FetchError(f"more than {self._most:,} bytes")
                memory.add(len(chunk))
                content += chunk
            return bytes(content)

    async def close(self) -> None:
        await self._pool.aclose()


def _host(url: str) -> str:
    """The value of the header Host for an address; raises `FetchError` if it has none."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or not url.isascii() or not url.isprintable() or "@" in parts.netloc:
        raise FetchError("not an address like https://example.org/photo.jpg")
    return parts.netloc


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that are allowed."""

    def __init__(self, is_allowed: IsAllowed) -> None:
        self._is_allowed, self._backend = is_allowed, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise FetchError("there is no such host") from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        # All of them: a name that also leads inside is nobody's who means well.
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise FetchError("its host is not on the internet")
        return await self._backend.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )
