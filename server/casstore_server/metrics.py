"""What Prometheus sees, on a listener of its own.

Owns the names of the metrics; they are an interface, listed in docs/operations/metrics.md.  Each server has its own registry,
so that two of them in one process do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from casstore.wire import GcReport
from casstore_server.disk import Disk
from casstore_server.gate import Gate, watching

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class LogGauge(NamedTuple):
    """The published head of the log at this moment."""

    size: int
    checkpoint_age_s: float


class HealthGauge(NamedTuple):
    """What is known of the store's health at this moment."""

    scrubbed_bytes: int
    last_full_pass_s: float
    quarantined: int
    damaged: int
    healed: int


class _Live(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(
        self,
        depths: Callable[[], Mapping[str, int]],
        log: Callable[[], LogGauge],
        gate: Gate,
        disk: Callable[[], Disk],
        *,
        refused: Callable[[], Mapping[str, int]],
        health: Callable[[], HealthGauge],
    ) -> None:
        self._depths = depths
        self._log = log
        self._gate = gate
        self._disk = disk
        self._refused = refused
        self._health = health

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
        yield from self._collect_health()

    def _collect_health(self) -> Iterable[Metric]:
        health = self._health()
        yield CounterMetricFamily(
            "casstore_scrub_bytes", "Stored bytes that scrubs have verified.", value=health.scrubbed_bytes
        )
        yield GaugeMetricFamily(
            "casstore_scrub_last_full_pass_timestamp_seconds",
            "When the last scrub of the whole store ended; 0 for never.",
            value=health.last_full_pass_s,
        )
        yield GaugeMetricFamily(
            "casstore_quarantined_objects", "Damaged objects that are out of use now.", value=health.quarantined
        )
        yield CounterMetricFamily(
            "casstore_damaged_objects", "Objects that were found damaged and taken out of use.", value=health.damaged
        )
        yield CounterMetricFamily(
            "casstore_healed_objects",
            "Objects that left quarantine: stored anew, found right again, or collected.",
            value=health.healed,
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
        health: what is known of the store's health.
    """

    def __init__(
        self,
        *,
        depths: Callable[[], Mapping[str, int]],
        log: Callable[[], LogGauge],
        gate: Gate,
        disk: Callable[[], Disk],
        refused: Callable[[], Mapping[str, int]],
        health: Callable[[], HealthGauge],
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
        self.gc_runs = Counter("casstore_gc_runs", "Collections that ended.", registry=self.registry)
        self.gc_failures = Counter("casstore_gc_failures", "Collections that failed.", registry=self.registry)
        self.gc_condemned = Counter("casstore_gc_condemned_objects", "Objects condemned.", registry=self.registry)
        self.gc_dropped = Counter("casstore_gc_dropped_objects", "Objects dropped.", registry=self.registry)
        self.gc_freed = Counter("casstore_gc_freed_bytes", "Bytes of packs deleted.", registry=self.registry)
        self.gc_waiting = Gauge("casstore_gc_waiting_objects", "Condemned objects in grace.", registry=self.registry)
        self.gc_seconds = Gauge(
            "casstore_gc_last_seconds", "How long the last collection took.", registry=self.registry
        )
        self.gc_blocked = Gauge(
            "casstore_gc_blocked", "Whether the last collection could not do all that was due.", registry=self.registry
        )
        self.registry.register(_Live(depths, log, gate, disk, refused=refused, health=health))

    def collected(self, report: GcReport) -> None:
        """A collection has ended."""
        self.gc_runs.inc()
        self.entries.labels("gc").inc(len(report.entries))
        self.gc_condemned.inc(sum(report.condemned.values()))
        self.gc_dropped.inc(sum(report.dropped.values()))
        self.gc_freed.inc(report.freed_bytes)
        self.gc_waiting.set(report.waiting)
        self.gc_seconds.set(report.seconds)
        self.gc_blocked.set(bool(report.blocked))

    def build_app(self, gate: Gate) -> web.Application:
        """The application of the metrics listener: ``/metrics`` and nothing else.

        Args:
            gate: of that listener.
        """
        app = web.Application(middlewares=[watching(gate)])
        app.router.add_get("/metrics", make_aiohttp_handler(self.registry))
        return app
