"""Collection in a running server: who starts it, on which threads it works, and how it ends.

Owns the schedule and the one thread of a run.  The run reads there; whatever changes the index or the ledger it hands to their
writers, in pieces of a few milliseconds between which pushes and flips take their turn.

Invariants: one run at a time; a stop ends it at the next piece, and waits for that.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog

from casstore.config import ServerSettings
from casstore.engine.gc.work import Interrupted, Pace
from casstore.errors import CasstoreError, Overloaded, Unavailable
from casstore.ids import PackId
from casstore.store import Hands, Store
from casstore.wire import GcReport
from casstore_server.bridge import Bridge
from casstore_server.descriptors import Descriptors
from casstore_server.metrics import Metrics

T = TypeVar("T")
_RETRY_S: Final = 0.1


class Collector:
    """Runs collections.

    Args:
        store: of what.
        bridge: the writers.
        settings: how often, and what is kept.
        descriptors: packs that are open, to be closed when they are deleted.
        metrics: counts.
        log: told what each run did.

    Threads: event loop.
    """

    def __init__(
        self,
        store: Store,
        bridge: Bridge[Any, Any],
        settings: ServerSettings,
        *,
        descriptors: Descriptors,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._bridge = bridge
        self._settings = settings
        self._descriptors = descriptors
        self._metrics = metrics
        self._log = log
        self._stop = threading.Event()
        self._jobs: set[asyncio.Future[Any]] = set()
        self._schedule: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the schedule, where the settings have one."""
        if self._settings.gc.interval_s:
            self._schedule = asyncio.create_task(self._repeat(self._settings.gc.interval_s))
            self._schedule.add_done_callback(self._ended)

    def _ended(self, schedule: asyncio.Task[None]) -> None:
        error = None if schedule.cancelled() else schedule.exception()
        if error is not None:
            self._metrics.gc_failures.inc()
            self._log.error("the server does not collect by itself any more: restart it", error=repr(error))

    async def close(self) -> None:
        """End the schedule and, at its next piece, the run.  ORDER: before the bridge, whose writers the run waits for."""
        if self._schedule is not None:
            self._schedule.cancel()
            await asyncio.wait([self._schedule])
        self._stop.set()
        if self._jobs:
            await asyncio.wait(self._jobs)

    async def collect(self, *, dry_run: bool) -> GcReport:
        """Collect once, and say what was done.

        Raises:
            RequestInProgress: a run is under way.
            CasstoreError: storage failed; what was done stands.
        """
        settings = self._settings
        report = await self._run(
            lambda hands: self._store.collect(settings.retention.rules, settings.gc.times, dry_run=dry_run, hands=hands)
        )
        if not dry_run:
            self._metrics.collected(report)
            self._log.info(
                "collected",
                mark=report.mark,
                seconds=report.seconds,
                condemned=sum(report.condemned.values()),
                dropped=sum(report.dropped.values()),
                freed_bytes=report.freed_bytes,
                blocked=report.blocked,
            )
        return report

    async def undo(self) -> int:
        """Make live again all that is condemned.

        Raises:
            RequestInProgress: a run is under way.
        """
        return await self._run(lambda hands: self._store.undo_collect(hands=hands))

    async def _repeat(self, interval_s: int) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.collect(dry_run=False)
            except CasstoreError as error:
                self._metrics.gc_failures.inc()
                self._log.error("the collection failed", code=error.code, error=error.detail)

    async def _run(self, job: Callable[[Hands], T]) -> T:
        loop = asyncio.get_running_loop()
        hands = Hands(
            write_index=lambda call, *args, **kwargs: self._hand_over(
                loop, self._bridge.write_index, call, args, kwargs
            ),
            write_ledger=lambda call, *args, **kwargs: self._hand_over(
                loop, self._bridge.write_ledger, call, args, kwargs
            ),
            pause=Pace(self._stop),
            deleted=lambda pack: self._forget(loop, pack),
        )
        # A run takes as long as the store is large: never on the threads that answer requests.
        running = asyncio.ensure_future(asyncio.to_thread(job, hands))
        self._jobs.add(running)
        running.add_done_callback(self._jobs.discard)
        # Whoever asked may go away; the run goes on.
        try:
            return await asyncio.shield(running)
        except Interrupted as error:
            raise Unavailable("the server is stopping: what was collected so far stands") from error

    def _hand_over(
        self,
        loop: asyncio.AbstractEventLoop,
        lane: Callable[..., Awaitable[Any]],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Have a writer do something, and wait; where its queue is full, others go first."""

        async def run() -> Any:
            return await lane(call, *args, **kwargs)

        while True:
            try:
                return asyncio.run_coroutine_threadsafe(run(), loop).result()
            except Overloaded:
                if self._stop.is_set():
                    raise Interrupted from None
                time.sleep(_RETRY_S)

    def _forget(self, loop: asyncio.AbstractEventLoop, pack: PackId) -> None:
        """Close a deleted pack: as long as it is open, its space is not free."""
        loop.call_soon_threadsafe(self._descriptors.forget, pack)
