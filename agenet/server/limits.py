"""Bounds on what clients may use, and the memory that the bodies of requests take together."""

from dataclasses import dataclass

MEGABYTE = 1_000_000


class Refused(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that is refused, with the status and the one line of the answer."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Busy(Refused):
    """The server has no place for a request now."""

    def __init__(self, what: str) -> None:
        super().__init__(429, f"{what}: try again later", retry_after="1")


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        body: bytes in the body of a request.
        images: in a request.
        pixels: of an image.
        faces: that are predicted in an image.
        queue: images that wait or are processed, of all requests.
        seconds: from the last byte of a request to its answer.
        body_seconds: in which the body of a request must arrive.
        head_seconds: in which the head of a request must arrive, on a new or a used connection.
        decode_seconds: that decoding an image may take.
        connections: that are open at a time.
        batch_seconds: that a face waits for others, to be predicted with them.
        cameras: that send frames at a time.
        frame: bytes in a frame of one.
    """

    body: int = 32 * MEGABYTE
    images: int = 16
    pixels: int = 50 * MEGABYTE
    faces: int = 100
    queue: int = 64
    seconds: float = 30.0
    body_seconds: float = 30.0
    head_seconds: float = 10.0
    decode_seconds: float = 10.0
    connections: int = 500
    batch_seconds: float = 0.002
    cameras: int = 8
    frame: int = 4 * MEGABYTE

    @property
    def bodies(self) -> int:
        """Bytes that the bodies of all requests may take."""
        return 8 * self.body


class BodyMemory:
    """The memory that bodies may take together."""

    def __init__(self, total: int) -> None:
        self.free = total

    def reserve(self) -> "Reservation":
        return Reservation(self)


class Reservation:
    """The part of one request, which grows with what it sends; given back at the block's end."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory, self._bytes = memory, 0

    def add(self, count: int) -> None:
        """Takes so many bytes more.

        Raises:
            Busy: there are not so many left.
        """
        if count > self._memory.free:
            raise Busy("other requests take all memory")
        self._memory.free -= count
        self._bytes += count

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.free += self._bytes
        self._bytes = 0
