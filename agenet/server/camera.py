"""A camera in a browser: frames come over a WebSocket, tracked faces go back."""

import asyncio
import json
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from agenet.faces.tracking import Tracker
from agenet.server.access import Access
from agenet.server.bodies import Upload
from agenet.server.limits import BodyMemory, Busy, Refused, Reservation
from agenet.server.schema import Options, parse
from agenet.server.service import Service, Wanted

# Codes with which a WebSocket is closed (RFC 6455, and the registry of IANA for 1013).
_WENT_AWAY, _POLICY, _TRY_LATER = 1001, 1008, 1013


class Cameras:
    """Predicts the frames of a number of cameras at a time.

    A client connects, with the options of `POST /v1/predict` as the query, and sends the token as a
    first message, which is JSON: `{"token": "..."}`, or `{}`. Then it sends one image file after
    the other, as binary messages, and receives for each one a message in JSON: `width`, `height`
    and `faces`, each with the `track` that it belongs to and the mean of that track's predictions;
    or an `error`. A client waits for the answer before it sends the next frame.

    Args:
        service: predicts.
        access: who may connect.
        memory: of what clients send.
    """

    def __init__(self, service: Service, access: Access, memory: BodyMemory) -> None:
        self._service, self._access, self._memory = service, access, memory
        self._open = 0

    async def connect(self, socket: WebSocket) -> None:
        """Serves one client until it is gone."""
        if self._open >= self._service.limits.cameras:
            await socket.accept()
            await socket.close(_TRY_LATER, "too many cameras: try again later")
            return
        self._open += 1
        try:
            await socket.accept()
            await self._serve(socket)
        except WebSocketDisconnect:
            pass
        except TimeoutError:
            await socket.close(_WENT_AWAY, "no frame arrived for too long")
        except Refused as refused:
            await socket.close(_POLICY, refused.message[:120])
        finally:
            self._open -= 1

    async def _serve(self, socket: WebSocket) -> None:
        await self._check_token(await self._receive(socket, "text"))
        options: Options = parse(Options, dict(socket.query_params))
        wanted = self._service.wanted(options)
        tracker = Tracker(self._service.limits.faces)
        while True:
            frame = await self._receive(socket, "bytes")
            with self._memory.reserve() as memory:
                answer = await self._answer(frame, wanted, tracker, memory)
            await socket.send_text(json.dumps(answer))

    async def _receive(self, socket: WebSocket, kind: str) -> Any:
        async with asyncio.timeout(self._service.limits.body_seconds):
            message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", _WENT_AWAY))
        if message.get(kind) is None:
            raise Refused(422, "send the token as text first, then frames as binary messages")
        return message[kind]

    async def _check_token(self, text: str) -> None:
        try:
            token = json.loads(text[:2000]).get("token", "")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not self._access.allows(token):
            raise Refused(401, "the token is missing or wrong")

    async def _answer(
        self, frame: bytes, wanted: Wanted, tracker: Tracker, memory: Reservation
    ) -> dict[str, Any]:
        try:
            memory.add(len(frame))
            async with asyncio.timeout(self._service.limits.seconds):
                (result,) = await self._service.predict([Upload(None, frame)], wanted, memory)
        except Busy as busy:
            return {"error": busy.message}
        except TimeoutError:
            return {"error": "no answer in time"}
        if result.size is None:
            return {"error": result.error}
        seconds = time.monotonic()
        tracker.update(None, seconds, [face.detection for face in result.faces])
        of = {id(face.detection): face for face in result.faces}
        due = tracker.due_tracks()
        tracker.add_predictions(due, [of[id(track.detection)] for track in due], seconds)
        faces = [
            {"track": tracked.number, **tracked.face.asdict()} for tracked in tracker.scene().faces
        ]
        return {"width": result.size[0], "height": result.size[1], "faces": faces}
