"""Push sessions: what a push was told and has brought, for as long as its lease runs.

Owns the lease.  Sessions live in memory only: after a restart, or when the lease has run out, a push begins anew, and
what it had stored already is found present.  So a session may be lost at any time without harm; it must only never be
*believed* after it was lost, which is why a commit without one is ``lease-lost``.

What a session holds is small: the packs that it brings and brought, which collection spares, and where their layouts lie.  A layout is
believed by
others once it is proven and not before, so until the commit only its own push sees it: a push cannot make a page
that someone else will rely on point at the wrong bytes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from casstore.clock import Clock
from casstore.engine.file_runs import PushRuns, RunsRoom
from casstore.errors import LeaseLost, Overloaded, RequestInProgress
from casstore.ids import PackId, PushId
from casstore.limits import PACKS_PER_PUSH_IN_FLIGHT, PUSH_LEASE_MS, PUSH_SESSIONS_EACH_MAX, PUSH_SESSIONS_MAX
from casstore.storage.roles import Location

# LIMIT: layouts that wait for their commit, all pushes together: about 300 bytes each, the pages of 67 million files.
PENDING_LAYOUTS_MAX: Final = 131_072
# LIMIT: of one principal, so that no one keeps all others out.
PENDING_LAYOUTS_EACH_MAX: Final = PENDING_LAYOUTS_MAX // 2
# LIMIT: names of packs that pushes brought, all together: a terabyte, at about 100 bytes a pack.
BROUGHT_PACKS_MAX: Final = 65_536
_RETRY_AFTER_S: Final = 5


class _Session:
    """One push.  Guarded by the lock of :class:`PushSessions`."""

    __slots__ = ("asked", "brought", "by", "expires_ms", "fresh", "in_flight", "layouts", "runs", "untold")

    def __init__(self, by: str) -> None:
        self.by = by
        self.expires_ms = 0
        self.asked = False
        self.in_flight: set[PackId] = set()
        self.layouts: dict[bytes, Location] = {}
        self.runs: PushRuns | None = None
        self.brought: set[PackId] = set()
        self.untold = False
        """Whether it brought more than could be remembered."""
        self.fresh: set[PackId] = set()
        """Of the packs in flight, those that were not brought before."""


class PushSessions:
    """All pushes that hold a lease.

    Args:
        clock: leases run on its boot time, which no one can set.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[PushId, _Session] = {}
        self._layouts: Counter[str] = Counter()
        """How many layouts wait, by principal."""
        self._pushes: Counter[str] = Counter()
        """How many pushes hold a lease, by principal."""
        self._runs = RunsRoom()
        self._brought = 0
        """How many packs are remembered, all pushes together."""

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, push: PushId, *, asked: bool, by: str = "") -> None:
        """Renew the lease of a push, or begin one.

        Args:
            push: which push.
            asked: it is asking what is missing, so from here on it knows what the store has.
            by: the principal who pushes.

        Raises:
            Overloaded: ``PUSH_SESSIONS_MAX`` pushes hold a lease, or ``PUSH_SESSIONS_EACH_MAX`` of this principal.
        """
        with self._lock:
            session = self._live(push)
            if session is None:
                self._demand_room(by)
                session = self._sessions[push] = _Session(by)
                self._pushes[by] += 1
            session.asked = session.asked or asked
            self._renew(session)

    def begin_pack(self, push: PushId, pack: PackId, *, by: str = "") -> None:
        """Note that a pack of the push is coming in; :meth:`end_pack` ends it.  A push does not expire meanwhile.

        Raises:
            RequestInProgress: the same pack is coming in already.
            Overloaded: too many packs of this push, or too many pushes.
        """
        self.begin(push, asked=False, by=by)
        with self._lock:
            session = self._sessions[push]
            if pack in session.in_flight:
                raise RequestInProgress(f"pack {pack} is being received on another connection", hint="wait for it")
            if len(session.in_flight) >= PACKS_PER_PUSH_IN_FLIGHT:
                raise Overloaded(
                    f"a push sends at most {PACKS_PER_PUSH_IN_FLIGHT} packs at a time", retry_after_s=_RETRY_AFTER_S
                )
            session.in_flight.add(pack)
            # ORDER: before the index can know the pack, so that no collection sees it without its push.
            if self._brought < BROUGHT_PACKS_MAX:
                if pack not in session.brought:
                    self._brought += 1
                    session.brought.add(pack)
                    session.fresh.add(pack)
            else:
                session.untold = True

    def end_pack(self, push: PushId, pack: PackId, *, recorded: bool = True) -> None:
        """Note that a pack is no longer coming in.

        Args:
            push: which push.
            pack: which pack.
            recorded: whether the index knows it now.
        """
        with self._lock:
            session = self._sessions.get(push)
            if session is not None:
                session.in_flight.discard(pack)
                # LIMIT: packs that fail are forgotten, or whoever sends many keeps collections from removing anything.
                if pack in session.fresh and not recorded:
                    session.brought.discard(pack)
                    self._brought -= 1
                session.fresh.discard(pack)
                self._renew(session)

    def learn_layouts(self, push: PushId, layouts: Sequence[tuple[bytes, Location]]) -> None:
        """Note where layouts lie that the push has brought; a later one for the same page replaces an earlier one.

        Raises:
            LeaseLost: the push is not known any more.
            Overloaded: too many layouts wait for their commits; none of these was noted.
        """
        with self._lock:
            session = self._require(push)
            new = len({digest for digest, _ in layouts} - session.layouts.keys())
            # LIMIT: before they are taken in, or a refused push would fill the memory all the same.
            if (
                self._layouts.total() + new > PENDING_LAYOUTS_MAX
                or self._layouts[session.by] + new > PENDING_LAYOUTS_EACH_MAX
            ):
                raise Overloaded("too many pages wait for their push to commit", retry_after_s=_RETRY_AFTER_S)
            session.layouts.update(layouts)
            self._layouts[session.by] += new

    def layouts(self, push: PushId) -> Mapping[bytes, Location]:
        """The layouts that the push has brought, as a copy; renews its lease.

        Raises:
            LeaseLost: the push is not known, or its lease has run out.
        """
        with self._lock:
            session = self._require(push)
            self._renew(session)
            return dict(session.layouts)

    def forget_layouts(self, push: PushId, digests: Sequence[bytes]) -> None:
        """Drop layouts that have been proven: the index knows them now."""
        with self._lock:
            session = self._sessions.get(push)
            if session is not None:
                before = len(session.layouts)
                for digest in digests:
                    session.layouts.pop(digest, None)
                self._count(self._layouts, session.by, len(session.layouts) - before)

    def begin_runs(self, push: PushId) -> PushRuns | None:
        """Where files are hashed that a pack of this push completes; None if the push is not known."""
        with self._lock:
            session = self._live(push)
            if session is None:
                return None
            if session.runs is None:
                session.runs = PushRuns(self._runs)
            return session.runs

    def runs(self, push: PushId) -> PushRuns | None:
        """What was hashed on the way in, if anything was."""
        with self._lock:
            session = self._live(push)
            return None if session is None else session.runs

    def forget_runs(self, push: PushId) -> None:
        """Drop what was hashed on the way in: the memo knows it now."""
        with self._lock:
            session = self._sessions.get(push)
            runs = None if session is None else session.runs
            if session is not None:
                session.runs = None
        if runs is not None:
            runs.close()

    def end(self, push: PushId) -> None:
        """The push has committed: it needs its lease no more.  One that still sends packs keeps it."""
        with self._lock:
            session = self._sessions.get(push)
            if session is not None and not session.in_flight:
                self._drop(push)

    def brought(self) -> frozenset[PackId] | None:
        """The packs that pushes which hold a lease bring and brought; None if they are too many to remember."""
        with self._lock:
            found: set[PackId] = set()
            for push in list(self._sessions):
                session = self._live(push)
                if session is not None:
                    if session.untold:
                        return None
                    found |= session.brought
            return frozenset(found)

    def brings(self, pack: PackId) -> bool:
        """Whether a push that holds a lease brings or brought a pack, or brought more than could be remembered."""
        with self._lock:
            live = [session for push in list(self._sessions) if (session := self._live(push)) is not None]
            return any(session.untold or pack in session.brought for session in live)

    def asked(self, push: PushId) -> bool:
        """Whether this push asked what is missing, in the lease that it holds now."""
        with self._lock:
            session = self._live(push)
            return session is not None and session.asked

    def _live(self, push: PushId) -> _Session | None:
        session = self._sessions.get(push)
        if session is None or session.in_flight or session.expires_ms > self._clock.boottime_ms():
            return session
        self._drop(push)
        return None

    def _require(self, push: PushId) -> _Session:
        session = self._live(push)
        if session is None:
            raise LeaseLost(
                f"push {push} is not known: its lease has run out, or the server was restarted",
                hint="begin again; what was stored is still there and is not sent twice",
            )
        return session

    def _renew(self, session: _Session) -> None:
        session.expires_ms = self._clock.boottime_ms() + PUSH_LEASE_MS

    def _demand_room(self, by: str) -> None:
        if self._is_full(by):
            for push in list(self._sessions):
                self._live(push)  # drops those whose lease has run out
        if self._is_full(by):
            raise Overloaded(
                f"{len(self._sessions)} pushes are under way, {self._pushes[by]} of them of this principal",
                retry_after_s=_RETRY_AFTER_S,
            )

    def _is_full(self, by: str) -> bool:
        return len(self._sessions) >= PUSH_SESSIONS_MAX or self._pushes[by] >= PUSH_SESSIONS_EACH_MAX

    def _drop(self, push: PushId) -> None:
        session = self._sessions.pop(push)
        if session.runs is not None:
            session.runs.close()
        self._brought -= len(session.brought)
        self._count(self._pushes, session.by, -1)
        self._count(self._layouts, session.by, -len(session.layouts))

    @staticmethod
    def _count(counter: Counter[str], by: str, change: int) -> None:
        counter[by] += change
        if not counter[by]:
            del counter[by]
