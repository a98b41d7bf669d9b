"""What a server does for its store's health by itself: scrubs in the background, and looks at what was reported damaged.

Owns when and how fast; what is verified, and what counts as damage, is :mod:`casstore.engine.scrub`'s and
:mod:`casstore.engine.quarantine`'s.  One scrub at a time; asked for another one, the one that runs changes its pace.

Threads: its methods belong to the event loop; the reading happens on a thread of its own, so that neither readers nor pushes wait
for it, and the writing in the index writer's lane.

CRASH: nothing here matters: a pass goes on where it was last written down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

import structlog

from casstore.config import ScrubSettings
from casstore.engine.packs import format_object, format_where
from casstore.engine.pointers import Submission
from casstore.engine.quarantine import Damage
from casstore.engine.scrub import STEP_BYTES
from casstore.errors import CasstoreError, OutcomeUnknown, Overloaded, RateLimited
from casstore.limits import DAMAGE_CHECKS_PER_MINUTE, MIB
from casstore.store import Store
from casstore.wire import DamageVerdict, ObjectName, ScrubStatus, Submitted
from casstore_server.bridge import Bridge
from casstore_server.lookup import parse_object_name
from casstore_server.metrics import HealthGauge

# A server that has just been started has better things to do.
FIRST_LOOK_S: Final = 60.0
LOOK_S: Final = 60.0
COUNT_S: Final = 5.0  # how old the number of quarantined objects in the metrics may be
_SUSPECTS_BATCH: Final = 64
_RETRY_S: Final = 5.0
# Above this pace one thread is not enough.
_ALONE_MAX_BYTES_S: Final = 256 * MIB


class Upkeep:
    """The caretaker of one running server.

    Args:
        store: whose content is kept whole.
        bridge: where the index is written.
        settings: when, and how fast.
        log: told of damage.
        pool: threads that help a fast scrub.
        width: how many threads work at most.
    """

    def __init__(
        self,
        store: Store,
        bridge: Bridge[Submission, Submitted],
        settings: ScrubSettings,
        log: structlog.typing.FilteringBoundLogger,
        *,
        pool: Executor,
        width: int,
    ) -> None:
        self._store = store
        self._bridge = bridge
        self._settings = settings
        self._log = log
        self._pool = pool
        self._width = width
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="casstore-scrub")
        self._loop = asyncio.get_running_loop()
        self._rate = settings.rate_bytes_s
        self._running = False
        self._wanted = asyncio.Event()
        self._fresh = False
        self._paced = asyncio.Event()
        self._noticed = asyncio.Event()
        self._checks_left = DAMAGE_CHECKS_PER_MINUTE
        self._checks_since = self._loop.time()
        self._quarantined = 0
        self.first_look_s = FIRST_LOOK_S
        store.quarantine.noticed = self._notice
        self._tasks = [asyncio.create_task(job) for job in self._jobs()]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _jobs(self) -> Sequence[Coroutine[object, object, None]]:
        return self._scrub_for_ever(), self._look_for_ever(), self._count_for_ever()

    def _notice(self) -> None:
        self._loop.call_soon_threadsafe(self._noticed.set)

    @property
    def health(self) -> HealthGauge:
        """What is known at this moment; the number of quarantined objects is some seconds old."""
        scrubber, quarantine = self._store.scrubber, self._store.quarantine
        return HealthGauge(
            scrubbed_bytes=scrubber.total_bytes,
            last_full_pass_s=scrubber.last_full_pass_ms / 1000,
            quarantined=self._quarantined,
            damaged=quarantine.found,
            healed=quarantine.left(self._quarantined),
        )

    async def _count_for_ever(self) -> None:
        while True:
            began = self._loop.time()
            with contextlib.suppress(Overloaded):
                self._quarantined = await self._bridge.read(self._store.quarantine.count)
            # LIMIT: a store that lost a disk has a long list: counting it takes a twentieth of a reader at most.
            await asyncio.sleep(max(COUNT_S, 20 * (self._loop.time() - began)))

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.error("the server does not look after its store any more: restart it", error=repr(error))

    async def close(self) -> None:
        """Stop, within the time that a few runs of reading take, and write down how far the scrub came."""
        self._store.quarantine.noticed = lambda: None
        self._store.scrubber.stop()
        for task in self._tasks:
            task.cancel()
        # One may have ended with what sealed the store: the bridge has seen it, and whoever runs the server stops it.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown, wait=True)
        if self._store.scrubber.active:
            with contextlib.suppress(CasstoreError):
                await self._bridge.write_index(self._store.scrubber.save)

    # --- scrub -------------------------------------------------------------------------------------------------------

    def start_scrub(self, rate_bytes_s: int | None, *, fresh: bool) -> None:
        """Have a scrub run, or the one that runs change its pace.

        Args:
            rate_bytes_s: bytes a second, 0 for as fast as it can; None for the setting.
            fresh: begin a new pass, even if one is unfinished.
        """
        self._rate = self._settings.rate_bytes_s if rate_bytes_s is None else rate_bytes_s
        self._fresh = self._fresh or fresh
        self._running = True
        self._wanted.set()
        self._paced.set()

    def scrub_status(self) -> Callable[[], ScrubStatus]:
        """What says how far it came; to be called where the store may be read."""
        running, rate = self._running, self._rate
        return lambda: self._store.scrubber.status(running=running, rate_bytes_s=rate)

    async def _scrub_for_ever(self) -> None:
        await self._wait(self._wanted, self.first_look_s)
        while True:
            interval_ms = self._settings.interval_s * 1000
            if self._wanted.is_set() or (interval_ms and self._store.scrubber.due(interval_ms)):
                self._running = True
                try:
                    await self._scrub()
                except OutcomeUnknown:
                    raise
                except CasstoreError as error:
                    self._log.error("the scrub had to pause", code=error.code, error=error.detail)
                    await asyncio.sleep(_RETRY_S)
                    continue
                if self._fresh:
                    continue  # another pass was asked for while the last step was written down
                self._running = False
                self._wanted.clear()
                self._rate = self._settings.rate_bytes_s
            await self._wait(self._wanted, LOOK_S)

    async def _scrub(self) -> None:
        scrubber = self._store.scrubber
        scrubber.begin(fresh=self._fresh)
        self._fresh = False
        while scrubber.active:
            if self._fresh:
                scrubber.begin(fresh=True)
                self._fresh = False
            began = self._loop.time()
            alone = 0 < self._rate < _ALONE_MAX_BYTES_S
            step = await self._loop.run_in_executor(
                self._thread,
                lambda alone=alone: scrubber.step(  # type: ignore[misc]
                    step_bytes=min(STEP_BYTES, self._rate or STEP_BYTES),
                    pool=None if alone else self._pool,
                    width=1 if alone else self._width,
                ),
            )
            self._tell(await self._bridge.write_index(scrubber.record, step), "scrub")
            # LIMIT: the pace is kept on average: a step is read at once, then nothing until its time is over.
            self._paced.clear()
            left = (step.size_bytes / self._rate if self._rate else 0.0) - (self._loop.time() - began)
            if left > 0:
                await self._wait(self._paced, left)
        self._log.info("scrubbed", number=scrubber.number)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    # --- what was reported -------------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            while suspects := self._store.quarantine.take_suspects(_SUSPECTS_BATCH):
                try:
                    damages = await self._loop.run_in_executor(self._thread, self._inspect, suspects)
                    if damages:
                        self._tell(await self._bridge.write_index(self._store.quarantine.take_out, damages), "read")
                except OutcomeUnknown:
                    raise
                except CasstoreError as error:
                    # Whoever reads it next reports it again.
                    self._log.error("damage was not looked into", code=error.code, error=error.detail)

    def _inspect(self, suspects: Sequence[tuple[int, bytes]]) -> list[Damage]:
        inspect = self._store.quarantine.inspect
        return [damage for kind, id in suspects if (damage := inspect(kind, id)) is not None]  # type: ignore[arg-type]

    async def judge(self, objects: Sequence[ObjectName]) -> list[DamageVerdict]:
        """Look at what a client reports, and take out of use what is damaged.

        Raises:
            RateLimited: clients have had much looked at already.
            InvalidInput, InvalidDigest: not objects.
        """
        named = [parse_object_name(name) for name in objects]
        self._pay(len(named))
        verdicts: list[DamageVerdict] = []
        for kind, id in named:
            damages, verdict = await self._loop.run_in_executor(self._thread, self._store.quarantine.judge, kind, id)
            if damages:
                self._tell(await self._bridge.write_index(self._store.quarantine.take_out, damages), "report")
            verdicts.append(DamageVerdict(id=f"blake3:{id.hex()}", verdict=verdict))
        return verdicts

    def _pay(self, checks: int) -> None:
        now = self._loop.time()
        if now - self._checks_since >= 60:
            self._checks_left, self._checks_since = DAMAGE_CHECKS_PER_MINUTE, now
        if checks > self._checks_left:
            raise RateLimited(
                "clients have had many objects looked at in this minute: nothing was done, try again",
                retry_after_s=max(1, int(60 - (now - self._checks_since))),
            )
        self._checks_left -= checks

    def _tell(self, damages: Sequence[Damage], by: str) -> None:
        for kind, id, location, reason in damages:
            self._log.error(
                "a damaged object was taken out of use",
                object=format_object(kind, id),
                where=format_where(location),
                found=reason,
                by=by,
            )
