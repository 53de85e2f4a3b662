"""Reads the images of a request into memory, within bounds; nothing is written to disk."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import Request

from agenet.server.limits import Limits, Refused, Reservation
from agenet.server.schema import JsonImages, parse

_LONGEST_NAME = 255  # characters
_LONGEST_TYPE = 300  # characters of the header Content-Type
_HEADER_BYTES, _HEADERS = 1000, 8  # of a part
# Braces, brackets, commas and quotation marks in JSON: base64 has none, and values that are parsed
# take far more memory than their text.
_MARKS, _MARKS_BESIDE = b'{[,"', 1000
_TYPES = "multipart/form-data, image/jpeg or another image type, or application/json"


@dataclass(frozen=True)
class Upload:
    """An image of a request: its content, or the address of it; and its name."""

    name: str | None = None
    content: bytes = b""
    url: str | None = None


async def read_uploads(request: Request, limits: Limits, memory: Reservation) -> list[Upload]:
    """Reads all images of a request.

    Raises:
        Refused: the body is of another type, malformed, too large or too slow.
        Busy: there is no memory for it now.
        ClientDisconnect: the client is gone.
    """
    header = request.headers.get("content-type", "")
    if len(header) > _LONGEST_TYPE:
        raise Refused(415, f"Content-Type: use {_TYPES}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "Content-Encoding: send the body without one")
    kind, parameters = parse_options_header(header)
    body = _chunks(request, limits, memory)
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == "multipart/form-data":
                uploads = await _read_parts(body, parameters.get("boundary", ""), limits)
            elif kind == "application/json":
                uploads = _parse_json(await _join(body), limits)
            elif kind.startswith("image/") or kind == "application/octet-stream":
                uploads = [Upload(None, await _join(body))]
            else:
                raise Refused(415, f"Content-Type: use {_TYPES}")
    except TimeoutError:
        raise Refused(
            408, f"the body did not arrive within {limits.body_seconds:g} seconds"
        ) from None
    if not uploads:
        raise Refused(422, "the request has no image")
    if len(uploads) > limits.images:
        raise _too_many(limits)
    return uploads


def _too_many(limits: Limits) -> Refused:
    return Refused(413, f"more than {limits.images} images in a request")


async def _chunks(request: Request, limits: Limits, memory: Reservation) -> AsyncIterator[bytes]:
    too_large = Refused(413, f"a body of more than {limits.body:,} bytes")
    if int(request.headers.get("content-length", "0")) > limits.body:
        raise too_large
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.body:
            raise too_large
        memory.add(len(chunk))
        yield chunk


async def _join(body: AsyncIterator[bytes]) -> bytes:
    content = bytearray()
    async for chunk in body:
        content += chunk
    return bytes(content)


async def _read_parts(body: AsyncIterator[bytes], boundary: str, limits: Limits) -> list[Upload]:
    uploads: list[Upload] = []
    name: str | None = None
    content = bytearray()
    try:
        with PushMultipartParser(
            boundary,
            max_header_size=_HEADER_BYTES,
            max_header_count=_HEADERS,
            # One more, to say it in the words of the other types.
            max_segment_count=limits.images + 1,
        ) as parser:
            async for chunk in body:
                for event in parser.parse(chunk) if chunk else ():
                    if isinstance(event, MultipartSegment):
                        if len(uploads) == limits.images:
                            raise _too_many(limits)
                        name, content = event.filename, bytearray()
                    elif event:
                        content += event
                    else:
                        uploads.append(Upload(name and name[:_LONGEST_NAME], bytes(content)))
    except MultipartError as error:
        status = error.http_status if error.http_status == 413 else 422
        raise Refused(status, f"multipart/form-data: {str(error)[:200]}") from None
    return uploads


def _parse_json(body: bytes, limits: Limits) -> list[Upload]:
    marks = sum(body.count(mark) for mark in _MARKS)
    if marks > _MARKS_BESIDE + 20 * limits.images:
        raise Refused(422, "more values than images can have")
    return [
        Upload(image.name, image.data or b"", image.url) for image in parse(JsonImages, body).images
    ]
