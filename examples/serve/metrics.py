"""The Prometheus metrics of the service."""

from __future__ import annotations

from collections.abc import Iterator

from model import NONE, Plans
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from worker import Worker

CONTENT_TYPE = CONTENT_TYPE_LATEST
OUTCOMES = ("ok", "invalid", "full", "closing", "cancelled", "timeout", "error")
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


class Metrics:
    """Requests by outcome, latency by plan, and the statistics of the plans' sessions, read at every scrape."""

    def __init__(self, plans: Plans, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "forecache_requests", "Requests for an image, by outcome.", ["outcome"], registry=self._registry
        )
        self.latency = Histogram(
            "forecache_latency_seconds",
            "Seconds from a request to its image, waiting included.",
            ["plan"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        for name in plans.names:
            self.latency.labels(name)
        self._registry.register(SessionCollector(plans, worker))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Every metric in Prometheus' text format."""
        return generate_latest(self._registry)


class SessionCollector(Collector):
    """The length of the queue, and the statistics of the plans' sessions."""

    def __init__(self, plans: Plans, worker: Worker) -> None:
        self._plans, self._worker = plans, worker

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("forecache_queue_depth", "Waiting requests.", value=self._worker.waiting)
        cells = CounterMetricFamily(
            "forecache_features", "Features, by what was done instead of all of them.", labels=["plan", "kind"]
        )
        share = GaugeMetricFamily("forecache_computed_share", "Of the features, since the start.", labels=["plan"])
        peak = GaugeMetricFamily("forecache_cache_peak_bytes", "Kept by one generation at most.", labels=["plan"])
        drifted = CounterMetricFamily(
            "forecache_drifted", "Generations that left what was calibrated and were computed.", labels=["plan"]
        )
        for name in self._plans.names:
            if name == NONE:
                share.add_metric([name], 1.0)
                peak.add_metric([name], 0)
                continue
            stats = self._plans.sessions[name].stats
            every = stats.computed + stats.skipped + stats.partial
            for kind, count in (("computed", stats.computed), ("skipped", stats.skipped), ("partial", stats.partial)):
                cells.add_metric([name, kind], count)
            share.add_metric([name], stats.computed / every if every else 1.0)
            peak.add_metric([name], stats.peak_cache_bytes)
            drifted.add_metric([name], stats.drifted)
        yield cells
        yield share
        yield peak
        yield drifted
