"""Repair: what the store needs and cannot read comes back from whoever has it.

Owns what is wanted (what is in quarantine, and what something refers to and the index does not know), and the way of a stranger's
objects into the store.  Where they come from is not its business: they arrive in a pack, and are believed for their hashes alone;
a layout, which has none, is proven as at a commit.

    ORDER: frames before the pack's name, the pack before the index; the memo before a layout.
    CRASH: between two steps what was healed stays healed, and a pack that the index does not know is in nobody's way.

Memory: one pack of at most ``REPAIR_PACK_MAX_BYTES`` and its plain bytes, one layout, and ``WANTED_MAX`` wanted objects.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, NamedTuple

from casstore.engine.artifacts import ArtifactService, decode_row
from casstore.engine.layouts import prove_layout
from casstore.engine.needed import NeededSnapshots
from casstore.engine.packs import PackService, SealedPack, format_object
from casstore.engine.proving import page_proof_key, tree_proof_key
from casstore.engine.quarantine import Damage, QuarantineService, quarantined_rows
from casstore.engine.references import layout_references
from casstore.errors import CasstoreError, DamagedObject, MalformedDocument, NotFound, SnapshotIncomplete, TooLarge
from casstore.formats.layout import Layout, decode_layout
from casstore.formats.pack import ObjectKind, PackDecoder, PackEncoder, decode_frame, open_frame
from casstore.formats.snapshot import decode_snapshot
from casstore.formats.tree import EntryType, TreeEntry, decode_page, decode_root
from casstore.ids import BlobDigest, PackId, TreeDigest
from casstore.limits import MIB, REPAIR_PLAIN_MAX_BYTES
from casstore.storage.roles import Ledger, Table
from casstore.wire import FilePiece, ObjectName, RepairAnswer, RepairPlan, WantedObject

# LIMIT: of one plan; when those are healed the next plan has the rest.
WANTED_MAX: Final = 4096
# LIMIT: files that are named for one place in a chunk: the same content may lie at several paths.
_WAYS_MAX: Final = 4
_PIECES_MAX: Final = 65_536
_BATCH: Final = 256
_OBJECTS_TARGET_BYTES: Final = 8 * MIB

Object = tuple[ObjectKind, bytes, bytes]
_Key = tuple[ObjectKind, bytes]


class Intake(NamedTuple):
    """A stranger's objects on their way in.  Made by :meth:`RepairService.take`."""

    sealed: SealedPack | None
    """What can be believed for its hash, durable and not yet known to anyone."""
    layouts: list[tuple[bytes, bytes]]
    """What is to be proven: id and plain bytes."""
    refused: list[_Key]
    """What nobody needs."""


class Proven(NamedTuple):
    """Layouts that hold.  Made by :meth:`RepairService.prove`."""

    keys: list[bytes]
    sealed: SealedPack | None
    refused: list[_Key]


class RepairService:
    """Finds what is wanted, and takes it in.

    Args:
        packs: the store's objects.
        quarantine: takes out of use what is to be replaced.
        artifacts: what was pushed.
        ledger: what was published.
    """

    def __init__(
        self, packs: PackService, quarantine: QuarantineService, artifacts: ArtifactService, ledger: Ledger
    ) -> None:
        self._packs = packs
        self._quarantine = quarantine
        self._planned: frozenset[_Key] | None = None
        self._sought: dict[bytes, bytes] = {}
        """Chunks that a layout needs which came and could not be proven without them, and which layout that is."""
        self._artifacts = artifacts
        self._ledger = ledger

    # --- what is wanted --------------------------------------------------------------------------------------------------

    def plan(self) -> RepairPlan:
        """Go through the whole store for what it needs and does not have.  Changes nothing."""
        wanted = _Wanted(self._packs)
        for row in quarantined_rows(self._packs):
            wanted.add(row.kind, row.id, f"in quarantine: {row.reason}")
        self._want_chunks(wanted)
        self._want_pages(wanted)
        self._want_artifacts(wanted)
        self._want_documents(wanted)
        self._want_sought(wanted)
        self._planned = wanted.keys()
        return RepairPlan(wanted=wanted.listed(), truncated=wanted.cut)

    def _want_chunks(self, wanted: _Wanted) -> None:
        for id, data in self._read_all(ObjectKind.LAYOUT, wanted):
            with self._packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
                layout = decode_layout(data)
                ids = [chunk for chunk, _ in layout.chunks]
                missing: dict[int, bytes] = {}
                for number, place in enumerate(self._packs.index.locate(ObjectKind.CHUNK, ids)):
                    if place is None:
                        missing[number] = ids[number]
                        wanted.add(ObjectKind.CHUNK, ids[number], f"needed by {format_object(ObjectKind.LAYOUT, id)}")
                        wanted.lengths[ids[number]] = layout.chunks[number][1]
                if missing:
                    wanted.add_pieces(layout, missing, self._files_of(id))

    def _files_of(self, id: bytes) -> list[TreeEntry] | None:
        """The files with content of a page, in order; of a blob the one that it is; None if it cannot be read."""
        if self._packs.index.locate(ObjectKind.PAGE, [id])[0] is None:
            if self._packs.find_quarantined(ObjectKind.PAGE, id) is not None:
                return None
            return [TreeEntry(b"", EntryType.FILE, 0, 1, BlobDigest(id))]
        try:
            entries = decode_page(self._packs.read_object(ObjectKind.PAGE, id))
        except CasstoreError:
            return None
        return [entry for entry in entries if entry.type == EntryType.FILE and entry.size]

    def _want_pages(self, wanted: _Wanted) -> None:
        for id, data in self._read_all(ObjectKind.ROOT, wanted):
            # One that was never committed may lack anything: a push may be under way.
            if self._is_proven(id):
                self._want_pages_of(id, data, wanted)

    def _is_proven(self, tree: bytes) -> bool:
        return self._packs.index.memo_has([tree_proof_key(TreeDigest(tree))])[0]

    def _want_pages_of(self, tree: bytes, root: bytes, wanted: _Wanted) -> None:
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            pages = [ref.digest for ref in decode_root(root)]
        for kind in (ObjectKind.PAGE, ObjectKind.LAYOUT):
            for page, place in zip(pages, self._packs.index.locate(kind, pages), strict=True):
                if place is None:
                    wanted.add(kind, page, f"needed by {format_object(ObjectKind.ROOT, tree)}")

    def _want(self, kind: str, digest: bytes, why: str, wanted: _Wanted) -> None:
        """What an artifact or a component of a snapshot lacks: itself, and of a tree the pages and layouts."""
        if wanted.add_absent(kind, digest, why) or kind != "tree" or self._is_proven(digest):
            return
        # A rebuilt index remembers no tree that lacked something, and somebody was promised this one.
        with suppress(NotFound, DamagedObject):
            self._want_pages_of(digest, self._packs.read_object(ObjectKind.ROOT, digest), wanted)

    def _want_sought(self, wanted: _Wanted) -> None:
        chunks = list(self._sought)
        for chunk, place in zip(chunks, self._packs.index.locate(ObjectKind.CHUNK, chunks), strict=True):
            if place is None:
                wanted.add(
                    ObjectKind.CHUNK, chunk, f"needed by {format_object(ObjectKind.LAYOUT, self._sought[chunk])}"
                )
            else:
                self._sought.pop(chunk, None)

    def _seek(self, layout: bytes, data: bytes) -> None:
        """Remember which chunks a layout lacks that cannot be proven without them: nothing else names them."""
        with self._packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
            ids = [bytes(id) for id, _ in decode_layout(data).chunks]
        for id, place in zip(ids, self._packs.index.locate(ObjectKind.CHUNK, ids), strict=True):
            # LIMIT: of one plan; the next layout that comes names the rest.
            if place is None and len(self._sought) < WANTED_MAX:
                self._sought[id] = layout

    def _want_artifacts(self, wanted: _Wanted) -> None:
        number = 0
        while rows := self._artifacts.rows(after=number, limit=_BATCH):
            number = rows[-1][0]
            for at, value in rows:
                row = decode_row(value)
                self._want(row.kind, bytes(BlobDigest.parse(row.digest)), f"needed by artifact {at}", wanted)

    def _want_documents(self, wanted: _Wanted) -> None:
        needed = NeededSnapshots()
        after: bytes | None = None
        while True:
            with self._ledger.read() as view:
                rows = view.scan(Table.SNAPSHOTS, after=after, limit=_BATCH)
                must = [needed.has(view, key) for key, _ in rows]
            if not rows:
                return
            after = rows[-1][0]
            live = self._packs.index.has(ObjectKind.DOCUMENT, [key for key, _ in rows])
            for (digest, _), is_needed, is_live in zip(rows, must, live, strict=True):
                # What was collected, or is about to be, is not lost.
                if is_needed or is_live:
                    self._want_snapshot(digest, wanted)

    def _want_snapshot(self, digest: bytes, wanted: _Wanted) -> None:
        if self._packs.index.locate(ObjectKind.DOCUMENT, [digest])[0] is None:
            wanted.add(ObjectKind.DOCUMENT, digest, "a published snapshot")
            return
        try:
            snapshot = decode_snapshot(self._packs.read_object(ObjectKind.DOCUMENT, digest))
        except (NotFound, DamagedObject):
            wanted.add(ObjectKind.DOCUMENT, digest, "a published snapshot, damaged")
            return
        for component in snapshot.components:
            self._want(component.kind, bytes(component.digest), f"needed by snapshot blake3:{digest.hex()}", wanted)

    def _read_all(self, kind: ObjectKind, wanted: _Wanted) -> Iterator[tuple[bytes, bytes]]:
        """Every object of a kind that can be read; one that cannot is wanted."""
        after = b""
        while rows := self._packs.index.objects(kind, after=after, limit=_BATCH):
            after = rows[-1][0]
            for id, location in sorted(rows, key=lambda row: row[1][:2]):
                try:
                    data = next(self._packs.read_located(kind, [(id, location)]))
                except DamagedObject as error:
                    wanted.add(kind, id, f"damaged: {error.found or error.detail}")
                    continue
                yield id, data

    # --- the way in ------------------------------------------------------------------------------------------------------

    def take(self, pack: PackId, data: bytes) -> Intake:
        """Verify a stranger's pack, and write what is wanted of it into a pack of the store's own.

        Args:
            pack: the name that it carries.
            data: its bytes.

        Durability: what is in :attr:`Intake.sealed` is durable; nobody can find it until :meth:`record`.

        Raises:
            MalformedDocument, TooLarge: not a pack, or not this one.
            DigestMismatch: a frame is not the object that it names.
            StoreFull, OutcomeUnknown: as the pack store says.
        """
        decoder = PackDecoder(pack)
        believed: list[Object] = []
        layouts: list[tuple[bytes, bytes]] = []
        refused: list[_Key] = []
        frames = decoder.feed(data)
        decoder.finish()
        if sum(frame.plain_length for frame in frames) > REPAIR_PLAIN_MAX_BYTES:
            raise TooLarge(
                f"the objects of a repair's pack have at most {REPAIR_PLAIN_MAX_BYTES} plain bytes",
                limit=REPAIR_PLAIN_MAX_BYTES,
            )
        for frame in frames:
            # TRUST: whoever may repair may still be wrong, or hold a holder that lies: the hash alone is believed.
            try:
                plain = open_frame(frame)
            except DamagedObject as error:
                raise MalformedDocument(f"pack {pack}: {error.detail}") from error
            if not self._is_wanted(frame.kind, frame.id):
                refused.append((frame.kind, frame.id))
            elif frame.kind is ObjectKind.LAYOUT:
                layouts.append((frame.id, plain))
            else:
                believed.append((frame.kind, frame.id, plain))
        return Intake(self._packs.seal_objects(believed) if believed else None, layouts, refused)

    def _is_wanted(self, kind: ObjectKind, id: bytes) -> bool:
        """Whether something needs an object that is not there, or is there and damaged."""
        if self._planned is None:
            self.plan()
        # LIMIT: of the last plan, or in quarantine: a repair must not fill a store with what nobody needs.
        planned = self._planned is not None and (kind, bytes(id)) in self._planned
        if not planned and self._packs.find_quarantined(kind, id) is None:
            return False
        place = self._packs.index.locate(kind, [id])[0]
        if place is None:
            return True
        try:
            next(self._packs.read_located(kind, [(id, place)]))
        except DamagedObject:
            return True
        return False

    def record(self, intake: Intake) -> list[_Key]:
        """Make what was taken findable; returns what was healed.

        Durability: durable when this returns.
        Threads: index writer.

        Raises:
            StoreFull, OutcomeUnknown: as the index says.
        """
        if intake.sealed is None:
            return []
        return self._record(intake.sealed)

    def _record(self, sealed: SealedPack) -> list[_Key]:
        # ORDER: what is damaged and still in use is taken out first: a live object keeps its first place.
        index = self._packs.index
        placed = [(row, index.locate(row.kind, [row.id])[0]) for row in sealed.frames]
        self._quarantine.take_out(
            [Damage(row.kind, row.id, place, "damaged") for row, place in placed if place is not None]
        )
        self._packs.record_objects(sealed)
        return [(row.kind, row.id) for row in sealed.frames]

    def prove(self, intake: Intake, *, pool: Executor | None = None, width: int = 1) -> Proven:
        """Prove the layouts of an intake whose other objects are recorded; nothing is recorded.

        Durability: those that hold are durable, and nobody can find them until :meth:`remember`.

        Raises:
            Overloaded: other large layouts are being taken apart; nothing was done.
            StoreFull, OutcomeUnknown: as the pack store says.
        """
        keys: list[bytes] = []
        held: list[Object] = []
        refused: list[_Key] = []
        for id, data in intake.layouts:
            key = page_proof_key(id, data)
            try:
                if not self._packs.index.memo_has([key])[0]:
                    # Which of the two it is: a page's layout comes back before or after its page.
                    is_page = self._packs.index.locate(ObjectKind.PAGE, [id])[0] is not None
                    prove_layout(self._packs, id, data, is_page=is_page, pool=pool, width=width)
                keys.append(key)
                held.append((ObjectKind.LAYOUT, id, data))
            except CasstoreError as error:
                if error.retryable:
                    raise
                if isinstance(error, SnapshotIncomplete):
                    self._seek(id, data)
                refused.append((ObjectKind.LAYOUT, id))
        return Proven(keys, self._packs.seal_objects(held) if held else None, refused)

    def remember(self, proven: Proven) -> list[_Key]:
        """Make proven layouts findable; returns them.

        Durability: durable when this returns.
        Threads: index writer.

        Raises:
            StoreFull, OutcomeUnknown: as the index says.
        """
        if proven.sealed is None:
            return []
        self._packs.index.memo_add(proven.keys)
        healed = self._record(proven.sealed)
        # ORDER: a layout leads to its chunks as long as it is there: those that are condemned are live before collection has its
        # next turn, for its mark may have walked the layout that was there before.
        for kind, ids in layout_references(self._packs, [row.id for row in proven.sealed.frames]):
            places = self._packs.index.locate(kind, ids)
            self._packs.index.revive([(kind, [id for id, place in zip(ids, places, strict=True) if place is not None])])
        return healed

    def heal(self, pack: PackId, data: bytes, *, pool: Executor | None = None, width: int = 1) -> RepairAnswer:
        """All steps in one thread.

        Threads: index writer.

        Raises:
            CasstoreError: as :meth:`take`, :meth:`record`, :meth:`prove` and :meth:`remember`.
        """
        intake = self.take(pack, data)
        healed = self.record(intake)
        proven = self.prove(intake, pool=pool, width=width)
        healed += self.remember(proven)
        return RepairAnswer(healed=name_all(healed), refused=name_all([*intake.refused, *proven.refused]))


class _Wanted:
    """What is wanted, each once, and for chunks the files that have their bytes."""

    def __init__(self, packs: PackService) -> None:
        self._packs = packs
        self._why: dict[_Key, str] = {}
        self._pieces: dict[bytes, dict[tuple[bytes, int, int], FilePiece]] = {}
        self._ways: dict[tuple[bytes, int], int] = {}
        self._count = 0
        self.lengths: dict[bytes, int] = {}
        self.cut = False

    def add(self, kind: ObjectKind, id: bytes, why: str) -> None:
        key = kind, bytes(id)
        if key in self._why:
            return
        if len(self._why) >= WANTED_MAX:
            self.cut = True
            return
        self._why[key] = why

    def keys(self) -> frozenset[_Key]:
        return frozenset(self._why)

    def add_absent(self, kind: str, digest: bytes, why: str) -> bool:
        """Add a tree's root, or a blob's layout, unless it is there; returns whether it is not."""
        object_kind = ObjectKind.ROOT if kind == "tree" else ObjectKind.LAYOUT
        absent = self._packs.index.locate(object_kind, [digest])[0] is None
        if absent:
            self.add(object_kind, digest, why)
        return absent

    def add_pieces(self, layout: Layout, missing: dict[int, bytes], files: list[TreeEntry] | None) -> None:
        """Note where the bytes of missing chunks lie in the files of a page or blob."""
        if files is None or len(files) != len(layout.files):
            return
        for entry, extents in zip(files, layout.files, strict=True):
            offset = 0
            for chunk, at, length in extents:
                id = missing.get(chunk)
                if id is not None and (ObjectKind.CHUNK, id) in self._why:
                    self._add_piece(id, FilePiece(path_b64=_b64(entry.path), offset=offset, at=at, length=length))
                offset += length

    def _add_piece(self, id: bytes, piece: FilePiece) -> None:
        way = id, piece.at
        # LIMIT: beyond this the chunk is still wanted, and comes from packs or servers only.
        if self._ways.get(way, 0) >= _WAYS_MAX or self._count >= _PIECES_MAX:
            return
        self._ways[way] = self._ways.get(way, 0) + 1
        self._count += 1
        known = self._pieces.setdefault(id, {})
        known[piece.path_b64.encode(), piece.offset, piece.at] = piece

    def listed(self) -> list[WantedObject]:
        return [
            WantedObject(
                kind=kind.name.lower(),  # type: ignore[arg-type]
                id=f"blake3:{id.hex()}",
                why=why,
                plain_bytes=self.lengths.get(id) if kind is ObjectKind.CHUNK else None,
                pieces=list(self._pieces.get(id, {}).values()) if kind is ObjectKind.CHUNK else [],
            )
            for (kind, id), why in sorted(self._why.items())
        ]


def _b64(path: bytes) -> str:
    return base64.b64encode(path).decode("ascii")


def name_all(keys: Sequence[_Key]) -> list[ObjectName]:
    """Objects as they travel."""
    return [ObjectName(kind=kind.name.lower(), id=f"blake3:{id.hex()}") for kind, id in keys]  # type: ignore[arg-type]


def gather_objects(packs: PackService, wanted: Sequence[_Key], pack: PackId) -> bytes:
    """Those of ``wanted`` that can be read, as the bytes of one pack: as many as fit in some MiB, at least one.

    Raises:
        NotFound: none of them is there.
    """
    encoder = PackEncoder(pack)
    parts = [encoder.header()]
    plain_bytes = 0
    for kind, id in wanted:
        location = packs.index.locate(kind, [id])[0]
        if location is None:
            continue
        plain_bytes += location.plain_length
        whole = encoder.size + location.stored_length
        if encoder.frames and (whole > _OBJECTS_TARGET_BYTES or plain_bytes > REPAIR_PLAIN_MAX_BYTES):
            break
        try:
            frame = decode_frame(
                packs.store.read(location.pack, location.offset, location.stored_length), location.offset
            )
            with packs.rooms.hold(kind, location.plain_length):
                plain = open_frame(frame)
        except (DamagedObject, NotFound):
            packs.on_damage(kind, id)
            continue
        parts.append(encoder.add(kind, id, frame.codec, frame.stored, len(plain)))
    if not encoder.frames:
        raise NotFound("the store has none of these objects, or cannot read them")
    parts.append(encoder.finish())
    return b"".join(parts)
