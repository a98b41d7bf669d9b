"""What Prometheus sees, on a listener of its own.

Owns the names of the metrics; they are an interface, listed in docs/operations/metrics.md.  Each server has its own registry,
so that two of them in one process do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from casstore_server.disk import Disk
from casstore_server.gate import Gate, watching

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class LogGauge(NamedTuple):
    """The published head of the log at this moment."""

    size: int
    checkpoint_age_s: float


class _Live(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(
        self,
        depths: Callable[[], Mapping[str, int]],
        log: Callable[[], LogGauge],
        gate: Gate,
        disk: Callable[[], Disk],
        refused: Callable[[], Mapping[str, int]],
    ) -> None:
        self._depths = depths
        self._log = log
        self._gate = gate
        self._disk = disk
        self._refused = refused

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("casstore_queue_depth", "Jobs that wait or run, by lane.", labels=["lane"])
        for lane, jobs in self._depths().items():
            depth.add_metric([lane.replace(" ", "_")], jobs)
        yield depth
        yield from self._clients()
        yield from self._space()
        log = self._log()
        yield GaugeMetricFamily("casstore_log_size", "Entries in the published log.", value=log.size)
        yield GaugeMetricFamily(
            "casstore_checkpoint_age_seconds",
            "Seconds since the published checkpoint was signed.",
            value=log.checkpoint_age_s,
        )

    def _clients(self) -> Iterable[Metric]:
        connections = GaugeMetricFamily("casstore_connections", "Open connections, by what they do.", labels=["state"])
        for state, count in self._gate.states.items():
            connections.add_metric([state], count)
        yield connections
        refused = CounterMetricFamily(
            "casstore_refused", "Connections and requests that were refused or closed, by reason.", labels=["reason"]
        )
        for reason, count in self._refused().items():
            refused.add_metric([reason], count)
        yield refused

    def _space(self) -> Iterable[Metric]:
        free, files, reserve = self._disk().gauges
        yield GaugeMetricFamily("casstore_disk_free_bytes", "Free space on the store's file system.", value=free)
        yield GaugeMetricFamily("casstore_disk_free_files", "How many more files it takes.", value=files)
        yield GaugeMetricFamily("casstore_disk_reserve_bytes", "Free space that pushes leave alone.", value=reserve)


class Metrics:
    """The counters of one server.

    Args:
        depths: queue depths by lane.
        log: the head of the log.
        gate: who is connected.
        disk: how full the disk is.
        refused: how many connections and requests were refused, by reason.
    """

    def __init__(
        self,
        *,
        depths: Callable[[], Mapping[str, int]],
        log: Callable[[], LogGauge],
        gate: Gate,
        disk: Callable[[], Disk],
        refused: Callable[[], Mapping[str, int]],
    ) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "casstore_http_requests",
            "Requests answered, by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "casstore_http_request_seconds",
            "Time from the request's head to the end of the answer.",
            ["method", "route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.received = Counter("casstore_http_received_bytes", "Bytes of request bodies.", registry=self.registry)
        self.sent = Counter("casstore_http_sent_bytes", "Bytes of answer bodies.", registry=self.registry)
        self.pushes = Counter("casstore_pushes", "Pushes committed.", registry=self.registry)
        self.proof_read = Counter(
            "casstore_proof_read_bytes", "Plain bytes that commits had to read.", registry=self.registry
        )
        self.packs = Counter("casstore_packs_stored", "Packs taken in.", registry=self.registry)
        self.entries = Counter("casstore_entries", "Entries committed, by type.", ["type"], registry=self.registry)
        self.registry.register(_Live(depths, log, gate, disk, refused))

    def build_app(self, gate: Gate) -> web.Application:
        """The application of the metrics listener: ``/metrics`` and nothing else.

        Args:
            gate: of that listener.
        """
        app = web.Application(middlewares=[watching(gate)])
        app.router.add_get("/metrics", make_aiohttp_handler(self.registry))
        return app
