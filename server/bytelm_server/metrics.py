"""What the server did and how it stands, for Prometheus.

Counting costs a few additions for each request; what the engine did is read where it is known
already, when somebody asks. Must not know how calls are answered.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from bytelm_server.backend import STATUSES, Backend

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_COUNTS = {
    "evaluations": "Next-token distributions that were computed.",
    "evaluations_shared": "Evaluations that an equal one in flight answered.",
    "tokens_computed": "Tokens that went through the model.",
    "tokens_cached": "Tokens that a cache supplied instead.",
    "tail_hits": "Evaluations that began with a tail: a partly filled block.",
    "tail_misses": "Evaluations that found no tail.",
    "tail_tokens": "Tokens that tails alone supplied.",
    "tail_evictions": "Tails that were lost because their block was needed.",
}
_STANDS = {
    "evaluations_in_flight": "Evaluations that have not ended.",
    "slots": "Rows that can be on their way from the engine at a time.",
    "slots_free": "Rows of these that are not on their way.",
}


class Metrics:
    """Counters of requests, beside what the backend, the process and vLLM tell.

    Args:
        backend: tells how the model stands.
    """

    def __init__(self, backend: Backend) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bytelm_requests", "Requests answered.", ["call", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "bytelm_request_seconds",
            "From a request's first line to the last byte of its answer.",
            ["call"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "bytelm_requests_in_progress", "Requests being answered.", registry=self.registry
        )
        self.bytes_in = Counter(
            "bytelm_bytes_in", "Bytes of contexts and continuations.", registry=self.registry
        )
        self.bytes_out = Counter(
            "bytelm_bytes_out", "Bytes that were generated.", registry=self.registry
        )
        self.connections = Gauge("bytelm_connections", "Open connections.", registry=self.registry)
        self.connections_ended = Counter(
            "bytelm_connections_ended",
            "Connections that were ended, because of their headers, their body, an answer that "
            "was not read, or for want of room.",
            ["why"],
            registry=self.registry,
        )
        self.sessions = Gauge("bytelm_sessions", "Sessions that are kept.", registry=self.registry)
        self.sessions_in_memory = Gauge(
            "bytelm_sessions_in_memory",
            "Sessions whose state is at hand; the others are rebuilt when they are called.",
            registry=self.registry,
        )
        self.registry.register(_OfBackend(backend))

    def text(self) -> bytes:
        """Everything in Prometheus's text format, the process's and vLLM's own metrics included."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class _OfBackend(Collector):
    """How the backend and its engine stand at this moment."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        """One family after another; the engine's are left out while there is none."""
        backend = self._backend
        status = GaugeMetricFamily("bytelm_status", "1 for the server's status.", labels=["status"])
        for possible in STATUSES:
            status.add_metric([possible], float(backend.status == possible))
        yield status
        admission = backend.admission
        yield GaugeMetricFamily(
            "bytelm_tasks", "Tasks of the event loop.", value=len(asyncio.all_tasks())
        )
        yield GaugeMetricFamily(
            "bytelm_calls_running", "Calls that have their turn.", value=admission.running.total()
        )
        yield GaugeMetricFamily(
            "bytelm_calls_waiting", "Calls that wait for their turn.", value=admission.waiting
        )
        yield GaugeMetricFamily(
            "bytelm_callers",
            "Keys (or, without keys, addresses) whose calls run or wait.",
            value=admission.callers,
        )
        yield GaugeMetricFamily(
            "bytelm_streams_unread",
            "Streams that have lent their turn, because their readers do not read.",
            value=admission.lent,
        )
        yield CounterMetricFamily(
            "bytelm_engine_restarts", "How often the model was started again.", backend.restarts
        )
        stats = backend.engine_stats
        if stats is None:
            return
        values = _flat(stats)
        for name, about in _COUNTS.items():
            yield CounterMetricFamily(f"bytelm_{name}", about, value=values[name])
        for name, about in _STANDS.items():
            yield GaugeMetricFamily(f"bytelm_{name}", about, value=values[name])


def _flat(stats: Any) -> dict[str, float]:
    return {
        "evaluations": stats.evaluations,
        "evaluations_shared": stats.shared,
        "tokens_computed": stats.tokens_computed,
        "tokens_cached": stats.tokens_cached,
        "tail_hits": stats.tails.hits,
        "tail_misses": stats.tails.misses,
        "tail_tokens": stats.tails.tokens,
        "tail_evictions": stats.tails.evictions,
        "evaluations_in_flight": stats.in_flight,
        "slots": stats.slots,
        "slots_free": stats.slots_free,
    }
