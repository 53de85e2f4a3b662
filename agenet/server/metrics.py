"""Counts what a server does, in Prometheus' format; names of images and clients are not in it."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from agenet.inference.engines import MAX_BATCH

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "agenet_requests", "Requests", ["path", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "agenet_request_seconds",
            "Seconds from a request's head to the end of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "agenet_images", "Images by outcome", ["model", "outcome"], registry=registry
        )
        self.faces = Counter("agenet_faces", "Faces predicted", ["model"], registry=registry)
        self.queue = Gauge(
            "agenet_queue_images", "Images that wait or are processed", registry=registry
        )
        self.batch = Histogram(
            "agenet_batch_faces",
            "Faces that a network predicted at once",
            buckets=(1, 2, 4, 8, 16, MAX_BATCH),
            registry=registry,
        )
        self.restarts = Counter(
            "agenet_decoder_restarts", "Decoding processes replaced", registry=registry
        )

    def render(self) -> bytes:
        """All of them, as text."""
        return generate_latest(self._registry)
