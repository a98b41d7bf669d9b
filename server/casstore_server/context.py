"""What every route can reach: the store, the bridge, the settings, the metrics; and what is known about one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp import web

from casstore.config import ServerSettings
from casstore.engine.pointers import Submission
from casstore.store import Store
from casstore.wire import Submitted
from casstore_server.answers import Answers
from casstore_server.bridge import Bridge
from casstore_server.collecting import Collector
from casstore_server.descriptors import Descriptors
from casstore_server.disk import Disk
from casstore_server.gate import Gate
from casstore_server.holding import Bodies
from casstore_server.metrics import Metrics
from casstore_server.settings import Bounds
from casstore_server.shares import Shares
from casstore_server.turnstile import Turnstile
from casstore_server.upkeep import Upkeep


@dataclass(slots=True, kw_only=True)
class Context:
    """The parts of one running server."""

    store: Store
    bridge: Bridge[Submission, Submitted]
    settings: ServerSettings
    bounds: Bounds
    metrics: Metrics
    descriptors: Descriptors
    gate: Gate
    disk: Disk
    upkeep: Upkeep
    log: structlog.typing.FilteringBoundLogger
    collector: Collector
    genesis_sha256: str
    """Of entry 0, in hex: what clients pin."""
    answers: Answers = field(default_factory=Answers)
    """Bytes that wait for slow readers."""
    bodies: Bodies = field(default_factory=Bodies)
    """Bytes of requests that are being worked on."""
    turnstile: Turnstile
    """In front of every request."""
    upload_shares: Shares
    """Packs that are being taken in, by principal."""
    uploads: int = 0
    """Packs that are being taken in at this moment."""
    lingering: int = 0
    """Refused senders who are given a moment to read why."""
    checking: bool = False
    """Whether an fsck runs."""
    backing_up: bool = False
    """Whether a backup is being made."""
    repairing: bool = False
    """Whether a repair's pack is being taken in."""
    walking: bool = False
    """Whether someone goes through the whole store for what needs an object, or for what is missing."""
    ready: bool = True
    """False while the server drains."""


CONTEXT: Final = web.AppKey("casstore.context", Context)
REQUEST_ID: Final = web.RequestKey("casstore.request_id", str)
PRINCIPAL: Final = web.RequestKey("casstore.principal", str)


def context_of(request: web.Request) -> Context:
    """The server that the request has reached."""
    return request.app[CONTEXT]
