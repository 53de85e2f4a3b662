"""The ASGI application: routes, and what is counted and logged of each request."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agenet import __version__
from agenet.server.access import CAMERA, Access, Guard
from agenet.server.answers import json_response, refuse
from agenet.server.bodies import read_uploads
from agenet.server.camera import Cameras
from agenet.server.limits import BodyMemory, Refused
from agenet.server.metrics import Metrics
from agenet.server.page import page_routes
from agenet.server.schema import Options, describe, parse
from agenet.server.service import Service

log = logging.getLogger(__name__)

T = TypeVar("T")

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_GONE = 499  # The client closed the connection; a status of nginx.


def create_app(service: Service, access: Access) -> Starlette:
    """Creates the application.

    Args:
        service: predicts; runs as long as the application.
        access: who may use it.
    """
    memory = BodyMemory(service.limits.bodies)
    description = describe()

    async def predict(request: Request) -> Response:
        options: Options = parse(Options, dict(request.query_params))
        wanted = service.wanted(options)
        service.check_room()  # Before the body is read.
        with memory.reserve() as reserved:
            uploads = await read_uploads(request, service.limits, reserved)
            try:
                async with asyncio.timeout(service.limits.seconds):
                    work = service.predict(uploads, wanted, reserved)
                    results = await _while_connected(request, work)
            except TimeoutError:
                raise Refused(
                    503, f"no answer within {service.limits.seconds:g} seconds", retry_after="1"
                ) from None
        faces = sum(len(result.faces) for result in results)
        request.state.logged = {"model": wanted.model, "images": len(results), "faces": faces}
        images = [
            result.asdict(distribution=options.distribution) | {"file": upload.name}
            for upload, result in zip(uploads, results, strict=True)
        ]
        is_read = any(result.size is not None for result in results)
        return json_response({"model": wanted.model, "images": images}, 200 if is_read else 422)

    async def models(request: Request) -> Response:
        return json_response(
            {"agenet": __version__, "models": list(service.engines), "default": service.default}
        )

    async def openapi(request: Request) -> Response:
        return json_response(description)

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        is_ready = service.is_running
        return PlainTextResponse("ready\n" if is_ready else "stopping\n", 200 if is_ready else 503)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(
            service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    cameras = Cameras(service, access, memory)
    routes: list[Route | WebSocketRoute] = [
        *page_routes(),
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/models", models),
        WebSocketRoute(CAMERA, cameras.connect),
        Route("/openapi.json", openapi),
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/metrics", metrics),
    ]
    middleware = [Middleware(Observer, service.metrics, {route.path for route in routes})]
    if access.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(access.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        )
    return Starlette(
        routes=routes,
        middleware=[*middleware, Middleware(Guard, access)],
        exception_handlers={
            Refused: _refused,
            ClientDisconnect: _disconnected,
            HTTPException: _http_error,
            Exception: _failed,
        },
        lifespan=lifespan,
    )


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client closes the connection.

    Raises:
        ClientDisconnect: it did.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    except BaseExceptionGroup as group:  # Of the images, the first that failed.
        raise group.exceptions[0] from None
    finally:
        task.cancel()
        gone.cancel()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refuse(error)


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=_GONE)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response(
        {"error": error.detail.lower()}, error.status_code, dict(error.headers or {})
    )


async def _failed(request: Request, error: Exception) -> Response:
    return json_response({"error": "an error in the server, which is in its log"}, 500)


class Observer:
    """ASGI middleware that counts and logs each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - start
            # What strangers choose must not become names of metrics, or be in the log.
            path = scope["path"] if scope["path"] in self._paths else "other"
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(path, method, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            fields = {"method": method, "path": path, "status": status}
            fields |= {"ms": round(1000 * seconds, 1)} | scope.get("state", {}).get("logged", {})
            log.info("request", extra={"fields": fields})
