"""A new index from the packs alone: what each pack holds, what of it is right, and which layouts are proven.

Owns the way from packs to an index.  The old index is not looked at, so it may be lost, damaged, or lie.

Three rounds:

1. Every frame of every pack is hashed; those that are right are recorded, all but layouts.  A pack whose footer is damaged is read
   frame by frame; a frame that is damaged is not recorded, so another copy of the object, if there is one, is the one that counts.
2. Every layout is a candidate only: a push may have brought it that was never committed.  It is proven as at a commit: each file is
   put together from its chunks and hashed.  The first that holds is recorded.
3. Every root whose pages all have a proven layout, and which is a tree, is remembered as one.

What lies in no pack is lost: what was condemned and since when, what was in quarantine, how far scrub and collection came.
Collection begins anew, with a whole grace; what had been damaged is not recorded, and so is missing.

    ORDER: the memo before the layouts, the layouts before the trees.

Memory: a pack for each thread; one layout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from casstore.engine.findings import FINDINGS_MAX, Findings
from casstore.engine.layouts import prove_layout
from casstore.engine.packs import READ_RUN_BYTES, PackService, format_object, format_where, open_at
from casstore.engine.proving import run_units, tree_proof_key
from casstore.engine.room import ROOM_PATIENCE_S
from casstore.engine.salvage import read_unlisted
from casstore.errors import CasstoreError, DamagedObject, PackNotFound, SnapshotIncomplete
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import TreeVerifier
from casstore.ids import PackId, TreeDigest
from casstore.storage.roles import ChunkIndex, FrameRow, Location, PackRecord, PackStore
from casstore.wire import RebuildReport

# LIMIT: names, or rows, that are held at a time.
_BATCH: Final = 1000


class RebuildProgress(NamedTuple):
    """How far a rebuild came."""

    round: str
    """``packs``, ``layouts`` or ``trees``."""
    done: int
    """Packs, or roots, of this round."""
    size_bytes: int
    """Stored bytes that were read in the first round."""


class _Wrong(NamedTuple):
    kind: ObjectKind
    id: bytes
    place: Location
    found: str


class IndexRebuild:
    """Fills an empty index from packs.

    Args:
        store: the packs.
        index: an empty index, of which nobody else knows.
        progress: told now and then; from any thread.
        pool: threads that help.
        width: how many threads work at most.
    """

    def __init__(
        self,
        store: PackStore,
        index: ChunkIndex,
        *,
        progress: Callable[[RebuildProgress], None] = lambda progress: None,
        pool: Executor | None = None,
        width: int = 1,
    ) -> None:
        self._packs = PackService(store, index)
        self._store = store
        self._index = index
        self._progress = progress
        self._pool = pool
        self._width = width
        self._lock = threading.Lock()
        self._findings = Findings()
        self._wrong: list[_Wrong] = []
        self._done = 0
        self._bytes = 0
        self._pages = 0
        self._blobs = 0
        self._trees = 0

    def run(self) -> RebuildReport:
        """All three rounds.

        Durability: everything is in the index, durable, when this returns.
        Threads: the index is written from the calling thread and those of the pool, one at a time.

        Raises:
            Unavailable: a pack cannot be read now.
            StoreFull, OutcomeUnknown: as the index says.
        """
        run_units(self._names(), self._record_pack, pool=self._pool, width=self._width)
        self._done = 0
        for pack in self._names():
            self._prove_layouts(pack)
            self._tell("layouts")
        self._done = 0
        self._prove_trees()
        self._report_wrong()
        report = self._findings.report()
        return RebuildReport(
            packs=report.checked.get("packs", 0),
            objects=sum(self._index.count(kind) for kind in ObjectKind),
            stored_bytes=self._bytes,
            pages=self._pages,
            blobs=self._blobs,
            trees=self._trees,
            findings=report.findings,
            truncated=report.truncated,
        )

    def _names(self) -> Iterator[PackId]:
        after: PackId | None = None
        while names := self._store.list(after=after, limit=_BATCH):
            yield from names
            after = names[-1]

    def _tell(self, round: str) -> None:
        self._done += 1
        self._progress(RebuildProgress(round, self._done, self._bytes))

    # --- what packs hold -------------------------------------------------------------------------------------------------

    def _record_pack(self, pack: PackId) -> None:
        """Hash a pack's frames and record those that are right."""
        try:
            size = self._store.size(pack)
        except PackNotFound:
            return
        frames = self._frames_of(pack, size)
        sound = [row for row in self._sound(pack, frames) if row.kind is not ObjectKind.LAYOUT]
        with self._lock:
            self._index.add_pack(PackRecord(pack, size, len(frames)), sound)
            self._findings.count("packs")
            self._bytes += size
            self._tell("packs")

    def _frames_of(self, pack: PackId, size: int) -> list[FrameRow]:
        """What a pack lists, or, where its footer is damaged, the frames that are found in it."""
        try:
            rows = self._packs.read_footer(pack).rows
            return [FrameRow(row.kind, row.id, row.offset, row.stored_length, row.plain_length) for row in rows]
        except DamagedObject as error:
            self._findings.damage(error, object=f"pack {pack}", where=f"pack {pack}")
            return list(read_unlisted(self._store, pack, size))

    def _sound(self, pack: PackId, frames: Sequence[FrameRow]) -> Iterator[FrameRow]:
        start = 0
        while start < len(frames):
            stop = start + 1
            first = frames[start].offset
            while stop < len(frames) and frames[stop].offset + frames[stop].stored_length - first <= READ_RUN_BYTES:
                stop += 1
            run = frames[start:stop]
            start = stop
            try:
                span = run[-1].offset + run[-1].stored_length - first
                whole: memoryview | None = memoryview(self._store.read(pack, first, span))
            except DamagedObject:
                whole = None
            for row in run:
                place = Location(pack, row.offset, row.stored_length, row.plain_length)
                try:
                    if whole is None:
                        data = memoryview(self._store.read(pack, row.offset, row.stored_length))
                    else:
                        data = whole[row.offset - first : row.offset - first + row.stored_length]
                    with self._packs.rooms.hold(row.kind, row.plain_length, wait_s=ROOM_PATIENCE_S):
                        open_at(row.kind, row.id, place, data)
                    yield row
                except DamagedObject as error:
                    with self._lock:
                        if len(self._wrong) <= FINDINGS_MAX:
                            self._wrong.append(_Wrong(row.kind, row.id, place, error.found or error.detail))

    def _report_wrong(self) -> None:
        """Say of what was left out whether it is gone, or whether another pack has it."""
        for kind, id, place, found in self._wrong:
            there = self._index.has(kind, [id])[0]
            (self._findings.notice if there else self._findings.error)(
                "dead-frame" if there else DamagedObject.code,
                format_object(kind, id),
                where=format_where(place),
                expected=f"blake3:{id.hex()}",
                found=found,
                hint="another pack has it"
                if there
                else "it is missing now: push what needs it again, or `casstore repair --from` a copy",
            )

    # --- layouts -----------------------------------------------------------------------------------------------------

    def _prove_layouts(self, pack: PackId) -> None:
        try:
            frames = self._frames_of(pack, self._store.size(pack))
        except PackNotFound:
            return
        candidates = {row.id: row for row in frames if row.kind is ObjectKind.LAYOUT}
        known = self._index.has(ObjectKind.LAYOUT, list(candidates))
        proven: list[FrameRow] = []
        keys: list[bytes] = []
        for row, there in zip(candidates.values(), known, strict=True):
            if there:
                continue
            try:
                keys.append(self._prove(row, Location(pack, row.offset, row.stored_length, row.plain_length)))
                proven.append(row)
            except CasstoreError as error:
                if error.retryable:
                    raise
                # Most likely a push brought it that never committed, or another copy of it was the one that held.
                self._findings.count("layouts left out")
        if proven:
            # ORDER: the memo first: a layout that the index knows is a proven one.
            self._index.memo_add(keys)
            self._index.add_frames(pack, proven)

    def _prove(self, row: FrameRow, place: Location) -> bytes:
        """Prove the files of a page, or a blob, by one layout; returns its memo key.

        Raises:
            CasstoreError: they do not hold.
        """
        with self._packs.rooms.hold(ObjectKind.LAYOUT, row.plain_length):
            data = self._store.read(place.pack, place.offset, place.stored_length)
            plain = open_at(ObjectKind.LAYOUT, row.id, place, data)
        is_page = self._index.has(ObjectKind.PAGE, [row.id])[0]
        key = prove_layout(self._packs, row.id, plain, is_page=is_page, pool=self._pool, width=self._width)
        self._pages += is_page
        self._blobs += not is_page
        return key

    # --- trees -------------------------------------------------------------------------------------------------------

    def _prove_trees(self) -> None:
        after = b""
        while rows := self._index.objects(ObjectKind.ROOT, after=after, limit=_BATCH):
            after = rows[-1][0]
            keys: list[bytes] = []
            for id, _ in rows:
                try:
                    self._verify_tree(TreeDigest(id))
                    keys.append(tree_proof_key(TreeDigest(id)))
                except CasstoreError as error:
                    if error.retryable:
                        raise
                    self._findings.notice(
                        "incomplete-tree",
                        format_object(ObjectKind.ROOT, id),
                        where="packs",
                        expected="pages whose files could be put together",
                        found=error.detail,
                        hint="a push that was never committed, or damage: casstore fsck says whether an artifact needs it",
                    )
                self._tell("trees")
            self._index.memo_add(keys)
            self._trees += len(keys)

    def _verify_tree(self, tree: TreeDigest) -> None:
        root = self._packs.read_object(ObjectKind.ROOT, tree)
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            verifier = TreeVerifier(root, tree)
            for ref in verifier.pages:
                if not self._index.has(ObjectKind.LAYOUT, [ref.digest])[0]:
                    raise SnapshotIncomplete(f"no layout of page {ref.digest} holds")
                verifier.add_page(self._packs.read_object(ObjectKind.PAGE, ref.digest))
            verifier.finish()
