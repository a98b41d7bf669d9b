"""Snapshot documents, and whether everything that a snapshot names is there.

Owns the documents (they lie in packs like all content) and the question *complete?*, which is asked before a snapshot
is published, before a pointer flips to it, and for every candidate of a rollback.  That a snapshot was published,
when and by whom, is the log's business.

    ORDER: the chunks before tree and layout, those before the snapshot entry.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from casstore.engine.blobs import BlobService
from casstore.engine.claims import Claim
from casstore.engine.packs import PackService, SealedPack
from casstore.engine.presence import Gaps, Presence
from casstore.engine.proving import tree_proof_key
from casstore.engine.trees import TreeService, resolve_prefix
from casstore.errors import SnapshotIncomplete
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Snapshot, decode_snapshot, snapshot_digest
from casstore.ids import BlobDigest, SnapshotDigest, TreeDigest

# LIMIT: snapshots remembered as complete: the ones that pointers move between.
_REMEMBERED_MAX: Final = 1024


class Completeness(NamedTuple):
    """What a snapshot lacks, if anything."""

    missing: list[str]
    """Up to 20 digests of objects that are missing."""
    missing_count: int
    size_bytes: int
    """Content bytes of the components that are there."""

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return self.missing_count == 0


class SnapshotService:
    """Snapshot documents by digest.

    Args:
        packs: where documents lie.
        presence: what is there.
        trees: the trees that snapshots name.
        blobs: the blobs that snapshots name.
    """

    def __init__(self, packs: PackService, presence: Presence, trees: TreeService, blobs: BlobService) -> None:
        self._packs = packs
        self._presence = presence
        self._trees = trees
        self._blobs = blobs
        self._lock = threading.Lock()
        self._epoch = presence.epoch
        self._complete: OrderedDict[SnapshotDigest, Completeness] = OrderedDict()

    # --- documents ---------------------------------------------------------------------------------------------------

    def document(self, digest: SnapshotDigest) -> bytes:
        """The document's canonical bytes.

        Raises:
            SnapshotNotFound: the store has no such document.
            DamagedObject: it cannot be read.
        """
        return self._packs.read_object(ObjectKind.DOCUMENT, digest)

    def get(self, digest: SnapshotDigest) -> Snapshot:
        """The snapshot, parsed.

        Raises:
            SnapshotNotFound, DamagedObject: as :meth:`document`.
        """
        return decode_snapshot(self.document(digest))

    def has(self, digest: SnapshotDigest) -> bool:
        """Whether the store has the document."""
        return self._packs.available(ObjectKind.DOCUMENT, [digest])[0]

    def resolve(self, prefix: str, *, limit: int = 20) -> list[SnapshotDigest]:
        """Documents whose digest begins with ``prefix`` (hex digits, with or without ``blake3:``), at most ``limit``.

        Raises:
            InvalidInput: not hex digits.
        """
        return [SnapshotDigest(id) for id in resolve_prefix(self._packs, ObjectKind.DOCUMENT, prefix, limit=limit)]

    def seal(self, documents: Sequence[bytes]) -> SealedPack | None:
        """Write documents, those that are new, as one durable pack.  Callers gather concurrent publications.

        Args:
            documents: canonical snapshot documents.

        Returns:
            What :meth:`record` takes, or None if the store has all of them.

        Durability: the pack is durable; the documents cannot be found until :meth:`record`.

        Raises:
            MalformedDocument, TooLarge: one is not a snapshot document; nothing was written.
            StoreFull, OutcomeUnknown: as the pack store says.
        """
        objects: dict[bytes, tuple[ObjectKind, bytes, bytes]] = {}
        for document in documents:
            decode_snapshot(document)
            digest = snapshot_digest(document)
            objects[digest] = (ObjectKind.DOCUMENT, digest, document)
        # One that is condemned is written again: what is about to be relied upon is live before it is.
        known = self._packs.index.has(ObjectKind.DOCUMENT, list(objects))
        new = [item for item, there in zip(objects.values(), known, strict=True) if not there]
        return self._packs.seal_objects(new) if new else None

    def record(self, sealed: SealedPack | None) -> None:
        """Make sealed documents findable.

        Durability: durable when this returns.
        Threads: index writer.

        Raises:
            StoreFull, OutcomeUnknown: as the index says.
        """
        if sealed is not None:
            self._packs.record_objects(sealed)

    def put(self, documents: Sequence[bytes]) -> list[SnapshotDigest]:
        """:meth:`seal` and :meth:`record` in one thread.

        Threads: index writer.

        Raises:
            CasstoreError: as those two.
        """
        self.record(self.seal(documents))
        return [snapshot_digest(document) for document in documents]

    # --- completeness ------------------------------------------------------------------------------------------------

    def is_known_complete(self, digest: SnapshotDigest) -> bool:
        """Whether :meth:`completeness` would answer from memory; nothing is read."""
        with self._lock:
            return self._epoch == self._presence.epoch and digest in self._complete

    def completeness(self, digest: SnapshotDigest) -> Completeness:
        """What a stored snapshot lacks; what is condemned is there.  An answer of *nothing* is remembered until something is
        deleted or taken out of use.  Inside a write of the ledger the snapshot is claimed, so that what the answer says stays true.

        Raises:
            SnapshotNotFound: the store has no such document.
            HostileTree, MalformedDocument: a component is a tree that was never proven and breaks a rule.
            DamagedObject: an object cannot be read.
        """
        # ORDER: the claim before the first look, into memory too (casstore.engine.claims says why).
        self._presence.claims.claim(Claim("snapshot", digest))
        with self._lock:
            epoch = self._presence.epoch
            if epoch != self._epoch:
                self._complete.clear()
                self._epoch = epoch
            known = self._complete.get(digest)
        if known is not None:
            return known
        found = self.completeness_of(self.get(digest))
        if found.complete:
            with self._lock:
                # What was looked up before a deletion is not remembered after it.
                if epoch == self._presence.epoch:
                    self._complete[digest] = found
                    while len(self._complete) > _REMEMBERED_MAX:
                        self._complete.popitem(last=False)
        return found

    def completeness_of(self, snapshot: Snapshot) -> Completeness:
        """What a snapshot lacks that need not be stored yet.

        Raises:
            HostileTree, MalformedDocument, DamagedObject: as :meth:`completeness`.
        """
        gaps = Gaps()
        size = 0
        for component in snapshot.components:
            before = gaps.count
            if component.kind == "tree":
                tree = TreeDigest(component.digest)
                self._trees.gaps(tree, gaps)
                if gaps.count == before:
                    # TRUST: pages that are proven one by one may still not be a tree together.
                    if not self._packs.index.memo_has([tree_proof_key(tree)])[0]:
                        self._trees.verify(tree)
                    size += self._trees.size(tree)
            else:
                blob = BlobDigest(component.digest)
                if self._presence.blobs([blob], gaps, live=False)[0]:
                    size += self._blobs.size(blob)
        return Completeness(gaps.named, gaps.count, size)

    def require_complete(self, digest: SnapshotDigest) -> None:
        """Refuse a snapshot that lacks something.

        Raises:
            SnapshotIncomplete: it does; up to 20 objects are named.
            SnapshotNotFound, HostileTree, MalformedDocument, DamagedObject: as :meth:`completeness`.
        """
        found = self.completeness(digest)
        if not found.complete:
            raise SnapshotIncomplete(
                f"snapshot {digest} needs {found.missing_count} objects that are not in the store",
                hint="push its components first",
                missing=found.missing,
                missing_count=found.missing_count,
            )
