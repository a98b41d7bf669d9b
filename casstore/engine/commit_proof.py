"""The proof behind a commit: a tree or blob is whole, well-formed, and every file of it reassembles to its digest.

Owns what is looked at and in which order, and which files are left to be hashed; how files are hashed is
:mod:`casstore.engine.proving`'s business, what becomes durable when it is done :mod:`casstore.engine.pushes`'.

Memory: a batch of pages, and layouts of ``_LAYOUTS_BYTES`` or one large one.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Final

from casstore.engine.file_runs import PushRuns
from casstore.engine.packs import PackService
from casstore.engine.presence import Gaps
from casstore.engine.proving import (
    Unit,
    check_chunk_lengths,
    file_proof,
    hashed_bytes,
    join_parts,
    page_proof_key,
    plan_units,
    prove_unit,
    split_unit,
    tree_proof_key,
)
from casstore.engine.room import is_counted
from casstore.errors import InvalidInput, TooLarge
from casstore.formats.layout import Layout, decode_layout, verify_layout_fits
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import EntryType, TreeEntry, TreeVerifier
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.limits import MIB, PROOF_REPEATED_MAX_BYTES
from casstore.storage.roles import FileProof, Location

# LIMIT: pages whose bytes, entries and layouts are looked up side by side.
_BATCH: Final = 16
# LIMIT: of those, layouts that are in memory side by side.
_LAYOUTS_BYTES: Final = 2 * MIB


class CommitProof:
    """The proof of one tree or blob: draws units of work, and gathers what they come to.

    Threads: units are drawn by one thread at a time (:func:`run_units`), :meth:`prove` runs on several.
    """

    def __init__(self, packs: PackService, brought: Mapping[bytes, Location], runs: PushRuns | None = None) -> None:
        self._packs = packs
        # ORDER: the count before the first look: what is condemned in between shows in one of the two.
        self.losses = packs.index.losses
        self._wary = bool(packs.index.condemned(limit=1))
        self.asleep = False
        """Whether something was found that is condemned: there, and to be revived."""
        self._brought = brought
        self._runs = runs
        self._gaps = Gaps()
        self.size_bytes = 0
        self.files = 0
        self.keys: list[bytes] = []
        self.tree_keys: list[bytes] = []
        self.files_proven: list[FileProof] = []
        self.proven: list[tuple[bytes, Location]] = []
        self.read: list[int] = []
        self._allowed_bytes = PROOF_REPEATED_MAX_BYTES
        self._running = 0  # units that were handed out and are not done
        self._changed = threading.Condition()

    def prove(self, unit: Unit) -> None:
        """Do one unit of work."""
        try:
            self.read.append(prove_unit(self._packs, unit))
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _find(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[Location | None]:
        """Where objects lie, the condemned ones too."""
        index = self._packs.index
        places = index.locate(kind, ids)
        if self._wary and not self.asleep:
            live = index.has(kind, ids)
            self.asleep = any(place and not alive for place, alive in zip(places, live, strict=True))
        return places

    def _has(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        return [place is not None for place in self._find(kind, ids)]

    def tree_units(self, digest: TreeDigest) -> Generator[Unit]:
        """Check a tree's structure and what is present; hand out the files that are still to be proven."""
        if not self._has(ObjectKind.ROOT, [digest])[0]:
            self._gaps.add(digest)
            raise self._gaps.error(f"tree {digest}")
        root = self._packs.read_object(ObjectKind.ROOT, digest)
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            yield from self._page_units(digest, TreeVerifier(root, digest))

    def _page_units(self, digest: TreeDigest, verifier: TreeVerifier) -> Iterator[Unit]:
        whole = True
        for start in range(0, len(verifier.pages), _BATCH):
            batch = [ref.digest for ref in verifier.pages[start : start + _BATCH]]
            there = self._has(ObjectKind.PAGE, batch)
            for page, present in zip(batch, there, strict=True):
                if not present:
                    self._gaps.add(page)
            # Behind a missing page the tree cannot be verified; what else is missing can still be said.
            whole = whole and all(there)
            for pages in self._cut([page for page, present in zip(batch, there, strict=True) if present]):
                yield from self._batch_units(verifier if whole else None, pages)
        if self._gaps.count:
            raise self._gaps.error(f"tree {digest}")
        verifier.finish()
        self.tree_keys.append(tree_proof_key(digest))

    def _cut(self, pages: Sequence[PageDigest]) -> Iterator[list[PageDigest]]:
        """Pages, in their order, as many at a time as have layouts of ``_LAYOUTS_BYTES``."""
        part: list[PageDigest] = []
        size = 0
        for page, known in zip(pages, self._find(ObjectKind.LAYOUT, pages), strict=True):
            location = known or self._brought.get(page)
            length = 0 if location is None else location.plain_length
            if part and size + length > _LAYOUTS_BYTES:
                yield part
                part, size = [], 0
            part.append(page)
            size += length
        if part:
            yield part

    def _batch_units(self, verifier: TreeVerifier | None, pages: Sequence[PageDigest]) -> Iterator[Unit]:
        layouts = self._layouts(pages)
        if verifier is None:
            for page in pages:
                self._look(page, layouts[page])
            return
        for page, data in zip(pages, self._packs.read_objects(ObjectKind.PAGE, pages), strict=True):
            entries = verifier.add_page(data)
            self.size_bytes += sum(entry.size for entry in entries)
            self.files += sum(entry.type == EntryType.FILE for entry in entries)
            yield from self._object_units(page, entries, layouts[page])

    def blob_units(self, digest: BlobDigest) -> Generator[Unit]:
        """Check a blob's layout and chunks; hand out the blob if it is still to be proven."""
        # TRUST: a page's digest names a proven layout too; it must not pass for a blob.
        if self._has(ObjectKind.PAGE, [digest])[0]:
            raise InvalidInput(f"{digest} names a page of a tree, not a blob")
        layout = self._layouts([digest])[digest]
        if layout is not None:
            with self._packs.rooms.hold(ObjectKind.LAYOUT, len(layout)):
                rows = decode_layout(layout).files
                self.size_bytes = sum(extent.length for extent in rows[0]) if rows else 0
                del rows
        self.files = 1
        entry = TreeEntry(b"", EntryType.FILE, 0, self.size_bytes, digest)
        yield from self._object_units(digest, [entry], layout)
        if self._gaps.count:
            raise self._gaps.error(f"blob {digest}")

    def _object_units(self, digest: bytes, entries: Sequence[TreeEntry], data: bytes | None) -> Iterator[Unit]:
        if data is None:
            self._gaps.add(digest)
            return
        with self._packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
            for unit in self._layout_units(digest, entries, data):
                with self._changed:
                    self._running += 1
                yield unit
            if is_counted(ObjectKind.LAYOUT, len(data)):
                # Other threads are still at units that hold the layout; they finish without drawing another.
                with self._changed:
                    self._changed.wait_for(lambda: not self._running)

    def _layout_units(self, digest: bytes, entries: Sequence[TreeEntry], data: bytes) -> Iterator[Unit]:
        found = self._locate(data)
        if found is None:
            return
        layout, locations = found
        key = page_proof_key(digest, data)
        if self._packs.index.memo_has([key])[0]:
            if digest in self._brought and not self._has(ObjectKind.LAYOUT, [digest])[0]:
                # Noted again, for a collection may be about to forget it together with an earlier layout.
                self.keys.append(key)
                self.proven.append((digest, self._brought[digest]))
            return
        # Once something is missing, hashing the rest is wasted; what else is missing is still gathered.
        if self._gaps.count:
            return
        check_chunk_lengths(layout, locations)
        verify_layout_fits(layout, entries)
        self.keys.append(key)
        if digest in self._brought:
            self.proven.append((digest, self._brought[digest]))
        self._allowed_bytes += sum(length for _, length in layout.chunks)
        for unit in join_parts(self._unproven(plan_units(entries, layout, locations))):
            # LIMIT: processor time; the layout of a few kilobytes can repeat a chunk for terabytes.
            self._allowed_bytes -= hashed_bytes(unit)
            if self._allowed_bytes < 0:
                raise TooLarge(
                    f"the files repeat their chunks for more than {PROOF_REPEATED_MAX_BYTES} bytes",
                    limit=PROOF_REPEATED_MAX_BYTES,
                )
            yield unit

    def _unproven(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The parts of units that were proven neither on the way in nor by an earlier commit."""
        for unit in units:
            parts = split_unit(unit)
            proofs = [file_proof(part) for part in parts]
            known = self._packs.index.files_have(proofs)
            for part, proof, proven in zip(parts, proofs, known, strict=True):
                if proven:
                    continue
                self.files_proven.append(proof)
                if self._runs is None or not self._runs.has(part):
                    yield part

    def _layouts(self, digests: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """For each page or blob its layout: the proven one, else the one that this push brought."""
        packs = self._packs
        known = self._has(ObjectKind.LAYOUT, digests)
        proven = [digest for digest, has in zip(digests, known, strict=True) if has]
        found: dict[bytes, bytes | None] = dict.fromkeys(digests)
        found.update(zip(proven, packs.read_objects(ObjectKind.LAYOUT, proven), strict=True))
        waiting = sorted(
            (
                (digest, self._brought[digest])
                for digest in digests
                if found[digest] is None and digest in self._brought
            ),
            key=lambda item: item[1][:2],
        )
        for (digest, _), data in zip(waiting, packs.read_located(ObjectKind.LAYOUT, waiting), strict=True):
            found[digest] = data
        return found

    def _look(self, digest: bytes, data: bytes | None) -> None:
        """Note what a page lacks that is not going to be proven."""
        if data is None:
            self._gaps.add(digest)
            return
        with self._packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
            self._locate(data)

    def _locate(self, data: bytes) -> tuple[Layout, list[Location]] | None:
        layout = decode_layout(data)
        ids = [id for id, _ in layout.chunks]
        locations = self._find(ObjectKind.CHUNK, ids)
        for id, location in zip(ids, locations, strict=True):
            if location is None:
                self._gaps.add(id)
        there = [location for location in locations if location is not None]
        return (layout, there) if len(there) == len(ids) else None
