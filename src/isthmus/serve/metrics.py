"""``Metrics``: what Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one service.

    Attributes:
        basis: answers by domain and what they rest on.
        batch: questions answered together.
        events: live events accepted.
        reloads: bundles read again, ``served`` or ``refused``.
    """

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._requests = Counter("isthmus_requests_total", "Requests answered.", ["method", "route", "status"], registry=own)
        self._seconds = Histogram("isthmus_request_seconds", "Seconds to answer.", ["route"], buckets=SECONDS, registry=own)
        self.basis = Counter("isthmus_answers_total", "Answers by what they rest on.", ["domain", "basis"], registry=own)
        self.batch = Histogram("isthmus_batch_size", "Questions answered together.", buckets=SIZES, registry=own)
        self.events = Counter("isthmus_events_total", "Live events accepted.", registry=own)
        self.reloads = Counter("isthmus_reloads_total", "Bundles read again.", ["outcome"], registry=own)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request; routes are templates, so that there are few of them."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
