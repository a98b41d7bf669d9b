"""The mark: a walk from the roots down to the chunks.

Owns the walk, and the judgement whether it was *complete*: only a mark that could follow every reference may condemn or drop
anything.  What lies below a layout that is missing or damaged is unknown, and what is unknown is kept.

Memory: :class:`~casstore.engine.gc.reached.Reached`, one root, the layouts of a batch of pages, and what the report shows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, ParamSpec, TypeVar

from casstore.engine.claims import Claim
from casstore.engine.gc.reached import Reached
from casstore.engine.gc.roots import STRICT, Reason, Root
from casstore.engine.packs import PackService, format_object
from casstore.engine.references import layout_references, tree_pages
from casstore.errors import CasstoreError, DamagedObject, MalformedDocument, NotFound, Overloaded, PackNotFound
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import decode_snapshot
from casstore.ids import PackId, SnapshotDigest, TreeDigest

_BATCH: Final = 16  # LIMIT: layouts that are read side by side
_MISSING_MAX: Final = 1000  # LIMIT: of one root; one that lacks more is not taken for collected
_SHOWN_MAX: Final = 20  # LIMIT: roots of each reason, and gaps, that a report shows
_RETRIES: Final = 30
_RETRY_S: Final = 1.0
_UNREADABLE: Final = (NotFound, DamagedObject, MalformedDocument)
P = ParamSpec("P")
T = TypeVar("T")


class Mark:
    """One walk.

    Args:
        packs: where objects are read.
        reached: takes what is met.
        swept: whether something was collected from this store before; then a root in a window may be gone already.
        pause: called between objects; raises when the run is to end.
    """

    def __init__(self, packs: PackService, reached: Reached, *, swept: bool, pause: Callable[[], None]) -> None:
        self._packs = packs
        self._reached = reached
        self._swept = swept
        self._pause = pause
        self._missing: list[tuple[ObjectKind, bytes]] = []
        self.roots: Counter[Reason] = Counter()
        self.kept: list[Root] = []
        """The first roots of each reason."""
        self.gaps: list[str] = []
        self.gap_count = 0
        self.gone = 0

    @property
    def complete(self) -> bool:
        """Whether every reference could be followed."""
        return not self.gap_count

    def take(self, roots: Iterable[Root]) -> None:
        """Walk from roots.

        Raises:
            CasstoreError: the index cannot be read, or the run is to end.
        """
        for root in roots:
            self.roots[root.reason] += 1
            if self.roots[root.reason] <= _SHOWN_MAX:
                self.kept.append(root)
            before = self.gap_count
            self._walk(Claim(root.kind, root.digest))
            gaps = self.gap_count - before
            if gaps and root.reason not in STRICT and self._is_gone(gaps):
                self.gone += 1
                self.gap_count = before
                del self.gaps[before:]
            self._missing.clear()

    def take_packs(self, packs: Iterable[PackId]) -> None:
        """Keep everything that lies in some packs: what pushes under way have brought, and nothing leads to yet."""
        for pack in packs:
            try:
                rows = self._packs.read_footer(pack).rows
            except (PackNotFound, DamagedObject):
                continue  # it is still coming in, or did not come
            self.roots["push"] += 1
            self._reached.add_chunks([row.id for row in rows if row.kind is ObjectKind.CHUNK])
            for row in rows:
                if row.kind is not ObjectKind.CHUNK:
                    self._reached.keep(row.kind, row.id)
            self._pause()

    def take_claim(self, claim: Claim) -> bool:
        """Walk from something that a writer of the ledger relies on; returns whether all of it could be followed."""
        before, shown = self.gap_count, len(self.gaps)
        self._walk(claim)
        whole = self.gap_count == before
        # What a claim lacks is for whoever made it to find out.
        self.gap_count = before
        del self.gaps[shown:]
        self._missing.clear()
        return whole

    def _is_gone(self, gaps: int) -> bool:
        """Whether all that is missing was collected: something was, and nothing of it is in quarantine."""
        return (
            self._swept
            and len(self._missing) == gaps
            and not any(self._packs.find_quarantined(*item) for item in self._missing)
        )

    def _gap(self, kind: ObjectKind, id: bytes, error: CasstoreError) -> None:
        self._reached.keep(kind, id)
        self.gap_count += 1
        if len(self.gaps) < _SHOWN_MAX:
            self.gaps.append(f"{format_object(kind, id)}: {error.detail}")
        if isinstance(error, NotFound) and len(self._missing) < _MISSING_MAX:
            self._missing.append((kind, bytes(id)))

    # --- the walk ------------------------------------------------------------------------------------------------------

    def _walk(self, claim: Claim) -> None:
        if claim.kind == "snapshot":
            self._snapshot(SnapshotDigest(claim.digest))
        elif claim.kind == "tree":
            self._tree(TreeDigest(claim.digest))
        else:
            self._layouts([claim.digest])

    def _snapshot(self, digest: SnapshotDigest) -> None:
        if self._reached.is_walked(ObjectKind.DOCUMENT, digest):
            return
        before = self.gap_count
        try:
            snapshot = decode_snapshot(self._retry(self._packs.read_object, ObjectKind.DOCUMENT, digest))
        except _UNREADABLE as error:
            self._gap(ObjectKind.DOCUMENT, digest, error)
            return
        for component in snapshot.components:
            if component.kind == "tree":
                self._tree(TreeDigest(component.digest))
            else:
                self._layouts([component.digest])
        self._met(ObjectKind.DOCUMENT, [digest], before)

    def _tree(self, digest: TreeDigest) -> None:
        if self._reached.is_walked(ObjectKind.ROOT, digest):
            return
        before = self.gap_count
        try:
            pages = self._retry(tree_pages, self._packs, digest)
        except _UNREADABLE as error:
            self._gap(ObjectKind.ROOT, digest, error)
            return
        for start in range(0, len(pages), _BATCH):
            batch = pages[start : start + _BATCH]
            self._layouts(batch)
            for page in batch:
                self._reached.walk(ObjectKind.PAGE, page)
        self._met(ObjectKind.ROOT, [digest], before)

    def _layouts(self, digests: Sequence[bytes]) -> None:
        """The layouts of pages or blobs, and their chunks."""
        new = [digest for digest in digests if not self._reached.is_walked(ObjectKind.LAYOUT, digest)]
        if not new:
            return
        before = self.gap_count
        try:
            self._retry(self._chunks_of, new)
        except _UNREADABLE as error:
            if len(new) == 1:
                self._gap(ObjectKind.LAYOUT, new[0], error)
                return
            for digest in new:
                self._layouts([digest])
        self._met(ObjectKind.LAYOUT, new, before)
        self._pause()

    def _chunks_of(self, digests: Sequence[bytes]) -> None:
        for kind, ids in layout_references(self._packs, digests):
            if kind is ObjectKind.CHUNK:
                self._reached.add_chunks(ids)

    def _met(self, kind: ObjectKind, ids: Sequence[bytes], gaps_before: int) -> None:
        # ORDER: behind what it leads to; what could not be followed to its end is walked again when it is met again.
        note = self._reached.walk if self.gap_count == gaps_before else self._reached.keep
        for id in ids:
            note(kind, id)

    def _retry(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call, and wait where others take large layouts apart: collection is in no hurry."""
        for _ in range(_RETRIES):
            try:
                return call(*args, **kwargs)
            except Overloaded:
                self._pause()
                time.sleep(_RETRY_S)
        return call(*args, **kwargs)
