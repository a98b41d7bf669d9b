"""Claims: what the ledger is about to rely on, told to whoever is about to delete.

Owns the one border between two writers that otherwise know nothing of each other.  The ledger's side asks *is everything of this
snapshot there?* and commits an entry because it was told yes; collection drops what its mark did not reach, and its mark has read
the roots some time ago.  In between lies a race: a rollback at 2 AM to a snapshot that no mark knows of.

The argument, in full.  Every write of the ledger is a *scope* (:meth:`Claims.scope`), from before its transaction begins until
after it is committed.  Whatever the ledger's side asks for inside is *claimed* before it is looked up.  Collection calls
:meth:`watch` before its mark reads the first root, and drops inside :meth:`frozen`, when no claim can be made.  Take a claim:

* it was given back before ``watch``: its transaction was committed (or failed) before the mark read a root, so the mark saw it;
* it was made before ``frozen`` and not given back before ``watch``: it is among those that ``frozen`` shows, and what it reaches is
  not dropped;
* it was made after ``frozen`` ended: the look-up comes after the claim, so it sees what was dropped, and the answer is *no*.
  For that nothing may be answered from memory that was true before: :meth:`casstore.engine.presence.Presence.forget` is called
  inside ``frozen``, before the drop and after it.

There is no fourth.  No time is compared anywhere, so neither a slow disk nor a machine that was suspended makes one.

LIMIT: ``CLAIMS_MAX`` distinct claims during one run; beyond that the run drops nothing.

Threads: any; a scope belongs to the thread that opened it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

# LIMIT: about 200 bytes each.
CLAIMS_MAX: Final = 65_536


class Claim(NamedTuple):
    """Something that must be there with all that it needs."""

    kind: Literal["snapshot", "tree", "blob"]
    digest: bytes


class Claims:
    """What writers of the ledger rely on at this moment, and since a mark began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._made = 0
        self._held: dict[Claim, list[int]] = {}
        """Claim → how many open scopes hold it, and the number of the newest of them."""
        self._ended: dict[Claim, int] = {}
        """Claims given back since :meth:`watch`, with the number of the newest."""
        self._watched = False
        self._overflowed = False

    # --- the ledger's side -------------------------------------------------------------------------------------------

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A write of the ledger: what is claimed inside stays claimed until the block has ended, committed or not."""
        if getattr(self._local, "claimed", None) is not None:
            yield  # part of the write around it
            return
        claimed: set[Claim] = set()
        self._local.claimed = claimed
        try:
            yield
        finally:
            self._local.claimed = None
            self._give_back(claimed)

    def claim(self, claim: Claim) -> None:
        """Rely on something, from before it is looked up; outside a scope nobody relies on the answer, and nothing is noted."""
        claimed: set[Claim] | None = getattr(self._local, "claimed", None)
        if claimed is None:
            return
        with self._lock:
            self._made += 1
            if claim in claimed:
                # Looked up again, perhaps with another answer.
                self._held[claim][1] = self._made
                return
            claimed.add(claim)
            held = self._held.setdefault(claim, [0, 0])
            held[0] += 1
            held[1] = self._made

    def _give_back(self, claimed: set[Claim]) -> None:
        with self._lock:
            for claim in claimed:
                held = self._held[claim]
                held[0] -= 1
                if not held[0]:
                    del self._held[claim]
                if self._watched:
                    self._ended[claim] = held[1]
            if len(self._ended) > CLAIMS_MAX:
                self._overflowed = True
                self._ended.clear()

    # --- collection's side -------------------------------------------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[None]:
        """A run of collection: claims that end meanwhile are remembered.  ORDER: before the mark reads its first root."""
        with self._lock:
            self._watched, self._overflowed = True, False
            self._ended.clear()
        try:
            yield
        finally:
            with self._lock:
                self._watched = False
                self._ended.clear()

    @contextmanager
    def frozen(self) -> Iterator[Mapping[Claim, int] | None]:
        """No claim is made while the block lasts; it must be short.

        Yields:
            the claims that count, each with a number that grows when it is made again; None where there were too many to
            remember, and nothing may be dropped.
        """
        with self._lock:
            if self._overflowed:
                yield None
                return
            yield {**self._ended, **{claim: number for claim, (_, number) in self._held.items()}}
