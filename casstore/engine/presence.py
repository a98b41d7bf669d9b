"""What is there: pages, blobs and chunks, asked by the thousand.

Owns the rule *a page is present only if the page, a proven layout of it, and every chunk of that layout are present*,
which is what a push is told and what a snapshot is held against.  Only proven layouts are in the index
(:mod:`casstore.engine.pushes` sees to it), so presence is a matter of look-ups; nothing is hashed here.

Two questions are told apart.  A *push* asks what is live: what is condemned is missing for it, so that what is about to be deleted
is never promised to anyone.  The *ledger's side* asks what is available, condemned or not: a rollback at 2 AM does not fail because
the content was condemned the moment before; what it relies on is claimed (:mod:`casstore.engine.claims`), and so stays.

A page found complete stays so until something is condemned or deleted, so answers of *present* are remembered; whatever
takes something away calls :meth:`Presence.forget` before and after, whatever condemns :meth:`Presence.forget_live`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from casstore.engine.claims import Claims
from casstore.engine.packs import PackService
from casstore.errors import SnapshotIncomplete
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest

# LIMIT: how many missing ids an error names; the count says how many there are.
MISSING_NAMED_MAX: Final = 20
# LIMIT: beyond this many distinct missing ids the count may count an id twice.
_DISTINCT_MAX: Final = 131_072
# LIMIT: 33 bytes and a dictionary slot each, of what is live and of what is available: some 20 MB.
_REMEMBERED_MAX: Final = 65_536
# LIMIT: layouts that are looked up side by side.
_BATCH: Final = 32


class Gaps:
    """What is missing: the first few ids, and how many there are."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.count = 0
        self._seen: set[bytes] = set()

    def add(self, id: bytes) -> None:
        """Note that the object ``id`` is missing; noting it twice counts once."""
        if id in self._seen:
            return
        if len(self._seen) < _DISTINCT_MAX:
            self._seen.add(bytes(id))
        self.count += 1
        if len(self.named) < MISSING_NAMED_MAX:
            self.named.append(str(BlobDigest(id)))

    def error(self, what: str) -> SnapshotIncomplete:
        """The error that says so; ``what`` begins its sentence."""
        listed = ", ".join(self.named[:3]) + (", …" if self.count > 3 else "")
        return SnapshotIncomplete(
            f"{what} needs {self.count} objects that are not in the store: {listed}",
            hint="push it again: the push asks what is missing and sends it",
            missing=list(self.named),
            missing_count=self.count,
        )


class Presence:
    """Look-ups of pages and blobs with all that they need.

    Args:
        packs: where objects are read.
    """

    def __init__(self, packs: PackService) -> None:
        self._packs = packs
        self._lock = threading.Lock()
        self._complete: OrderedDict[bytes, None] = OrderedDict()
        self._epoch = 0
        self._live: OrderedDict[bytes, None] = OrderedDict()
        self._live_epoch = 0
        self.claims = Claims()
        """What the ledger's side relies on."""

    def chunks(self, ids: Sequence[bytes]) -> list[bool]:
        """For each chunk id whether it is live."""
        return self._packs.index.has(ObjectKind.CHUNK, ids)

    def pages(self, digests: Sequence[bytes], gaps: Gaps | None = None, *, live: bool = True) -> list[bool]:
        """For each page digest whether the page, its layout and all chunks are present; what is not goes to ``gaps``.

        Args:
            live: condemned objects count as missing.

        Raises:
            DamagedObject: a layout that the index knows cannot be read.
            Overloaded: other large layouts are being taken apart.
        """
        return self._look(digests, gaps, paged=True, live=live)

    def blobs(self, digests: Sequence[bytes], gaps: Gaps | None = None, *, live: bool = True) -> list[bool]:
        """For each blob digest whether its layout and all chunks are present; what is not goes to ``gaps``.

        Args:
            live: condemned objects count as missing.

        Raises:
            DamagedObject: a layout that the index knows cannot be read.
            Overloaded: other large layouts are being taken apart.
        """
        return self._look(digests, gaps, paged=False, live=live)

    @property
    def epoch(self) -> int:
        """Changes whenever something may have been deleted: what was found available before must be looked up again."""
        return self._epoch

    def forget(self) -> None:
        """Remember nothing.  ORDER: called before anything is deleted, or taken out of use, and once more after.

        What began to look things up before the second call is not remembered behind it.
        """
        self._packs.forget_all()
        with self._lock:
            self._epoch += 1
            self._live_epoch += 1
            self._complete.clear()
            self._live.clear()

    def forget_live(self) -> None:
        """Remember nothing of what is live.  ORDER: called before anything is condemned, and once more after.

        What is condemned is available all the same: so a collection that condemns by the thousand does not have each flip
        look up all that its snapshot needs, with every other flip waiting behind it.
        """
        with self._lock:
            self._live_epoch += 1
            self._live.clear()

    def _look(self, digests: Sequence[bytes], gaps: Gaps | None, *, paged: bool, live: bool) -> list[bool]:
        # A page's digest and a blob's both name a layout: what is remembered of the one says nothing of the other.
        mark = b"p" if paged else b"b"
        memory = self._live if live else self._complete
        with self._lock:
            epoch = self._live_epoch if live else self._epoch
            known = [mark + digest in memory for digest in digests]
        asked = [digest for digest, complete in zip(digests, known, strict=True) if not complete]
        answers = self._batches(asked, gaps, paged=paged, live=live)
        result = [complete or next(answers) for complete in known]
        with self._lock:
            # A page looked up before a deletion must not be remembered after it.
            if epoch == (self._live_epoch if live else self._epoch):
                for digest, complete in zip(digests, result, strict=True):
                    if complete:
                        memory[mark + digest] = None
                        memory.move_to_end(mark + digest)
                while len(memory) > _REMEMBERED_MAX:
                    memory.popitem(last=False)
        return result

    def _has(self, kind: ObjectKind, ids: Sequence[bytes], live: bool) -> list[bool]:
        return self._packs.index.has(kind, ids) if live else self._packs.available(kind, ids)

    def _batches(self, digests: Sequence[bytes], gaps: Gaps | None, *, paged: bool, live: bool) -> Iterator[bool]:
        laid_out = self._has(ObjectKind.LAYOUT, digests, live)
        # The page object beside a layout tells which it is.
        is_page = self._has(ObjectKind.PAGE, digests, live)
        there = [layout and page == paged for layout, page in zip(laid_out, is_page, strict=True)]
        for start in range(0, len(digests), _BATCH):
            batch = digests[start : start + _BATCH]
            flags = there[start : start + _BATCH]
            layouts = self._packs.read_each(ObjectKind.LAYOUT, [d for d, f in zip(batch, flags, strict=True) if f])
            for digest, flag in zip(batch, flags, strict=True):
                if not flag:
                    if gaps is not None:
                        gaps.add(digest)
                    yield False
                    continue
                yield self._is_complete(next(layouts), gaps, live)

    def _is_complete(self, layout: bytes, gaps: Gaps | None, live: bool) -> bool:
        with self._packs.rooms.hold(ObjectKind.LAYOUT, len(layout)):
            ids = [id for id, _ in decode_layout(layout).chunks]
            found = self._has(ObjectKind.CHUNK, ids, live)
            if gaps is not None and not all(found):
                for id, present in zip(ids, found, strict=True):
                    if not present:
                        gaps.add(id)
            return all(found)
