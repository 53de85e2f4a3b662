"""The page at `/`: files of this package, which load nothing from elsewhere."""

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
}
# The page runs its own script only and talks to this server only; no other page may frame it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; media-src blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """The routes of the page and its files."""
    folder = resources.files("agenet.server") / "page"
    return [
        _route("/" if name == "index.html" else f"/{name}", (folder / name).read_bytes(), kind)
        for name, kind in _TYPES.items()
    ]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def file(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return Route(path, file)
