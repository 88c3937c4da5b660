"""What a server counts, for Prometheus (`GET /metrics`)."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one server; `queue` and `sessions` are asked when they are read."""

    def __init__(self, queue: Callable[[], int], sessions: Callable[[], int]):
        self.registry = CollectorRegistry()
        here: Any = {"registry": self.registry}
        self.latency = Histogram(
            "gen_vla_request_seconds", "From a request to its answer", ["kind"], buckets=SECONDS, **here
        )
        self.rows = Histogram("gen_vla_batch_rows", "Requests in the batch of an answer", buckets=ROWS, **here)
        self.passes = Counter("gen_vla_forward_passes", "Of the language model, by answer", **here)
        self.refused = Counter("gen_vla_refused", "Requests without an answer", ["status"], **here)
        Gauge("gen_vla_queue", "Requests that wait", **here).set_function(queue)
        Gauge("gen_vla_sessions", "Open websockets", **here).set_function(sessions)

    def text(self) -> bytes:
        return generate_latest(self.registry)
