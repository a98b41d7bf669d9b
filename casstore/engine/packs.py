"""Objects in packs: read one, read many, write a few.

Owns the way from an object's id to its verified plain bytes, and back.  Nothing leaves here unverified: a frame's
checksum, its lengths, and the hash of the plain bytes under their kind are all checked before the bytes are returned
(a layout has no hash of its own: it must decode; who proves it is :mod:`casstore.engine.proving`).  Must not know
pushes, trees or HTTP.

Invariants:

* ORDER: frames before the pack's name, the pack before the index.  :meth:`PackService.record_objects` takes only a
  :class:`SealedPack`, and only a durable pack becomes one.
* TRUST: the index may hide an object or point anywhere; what lies there is believed for its hash alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from casstore.engine.object_cache import CACHE_BYTES, ObjectCache
from casstore.engine.room import Rooms
from casstore.errors import (
    BlobNotFound,
    DamagedObject,
    MalformedDocument,
    NotFound,
    PackNotFound,
    SnapshotNotFound,
    TreeNotFound,
)
from casstore.formats.pack import (
    FOOTER_OVERHEAD_BYTES,
    TRAILER_BYTES,
    Frame,
    ObjectKind,
    PackEncoder,
    PackSummary,
    decode_footer,
    decode_frame,
    decode_trailer,
    open_frame,
    seal_frame,
)
from casstore.ids import PackId
from casstore.limits import KIB, MIB
from casstore.storage.roles import ChunkIndex, FrameRow, Location, PackRecord, PackStore, QuarantinedRow

# LIMIT: frames this close are read with one system call; a gap this small costs less than another call.
READ_GAP_BYTES: Final = 64 * KIB
# LIMIT: one coalesced read; with a few readers at work this is what they hold.
READ_RUN_BYTES: Final = 4 * MIB

_NOT_FOUND: Final[dict[ObjectKind, type[NotFound]]] = {
    ObjectKind.CHUNK: NotFound,
    ObjectKind.PAGE: TreeNotFound,
    ObjectKind.ROOT: TreeNotFound,
    ObjectKind.LAYOUT: BlobNotFound,
    ObjectKind.DOCUMENT: SnapshotNotFound,
}


def random_pack_id() -> PackId:
    """128 random bits: "collected, then uploaded again" must not meet its own deletion."""
    return PackId(os.urandom(PackId.SIZE))


def format_object(kind: ObjectKind, id: bytes) -> str:
    """An object for a person: ``chunk blake3:<64 hex>``."""
    return f"{kind.name.lower()} blake3:{id.hex()}"


def format_where(location: Location) -> str:
    """A place for a person: ``pack <32 hex> offset <bytes>``."""
    return f"pack {location.pack} offset {location.offset}"


class SealedPack(NamedTuple):
    """A pack that is durable under its name, and what the index should learn of it."""

    record: PackRecord
    frames: list[FrameRow]


class PackService:
    """Verified objects by kind and id.

    Args:
        store: where packs lie.
        index: where objects lie in packs.
        new_pack_id: draws the name of a pack that this service writes.
    """

    def __init__(
        self, store: PackStore, index: ChunkIndex, *, new_pack_id: Callable[[], PackId] = random_pack_id
    ) -> None:
        self.store = store
        self.index = index
        self.rooms = Rooms()
        """Where large layouts and roots are taken apart."""
        self._new_pack_id = new_pack_id
        self._cache = ObjectCache(CACHE_BYTES)
        self.on_damage: Callable[[ObjectKind, bytes], None] = lambda kind, id: None
        """Told of each object that a read finds damaged, before the error is raised; from any thread."""

    # --- reading -----------------------------------------------------------------------------------------------------

    def available(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        """For each id whether the object can be read: live, or condemned."""
        return [location is not None for location in self.index.locate(kind, ids)]

    def forget_all(self) -> None:
        """Keep no object in memory: some may be removed.  See :meth:`casstore.engine.presence.Presence.forget`."""
        self._cache.clear()

    def read_object(self, kind: ObjectKind, id: bytes) -> bytes:
        """The verified plain bytes of one object.

        Raises:
            NotFound: the index does not know it (``TreeNotFound`` for pages and roots, ``BlobNotFound`` for layouts,
                ``SnapshotNotFound`` for documents).
            DamagedObject: what lies at its place is not it, or it is in quarantine; the error names pack and offset.
        """
        return self.read_objects(kind, (id,))[0]

    def read_objects(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bytes]:
        """The verified plain bytes of several objects, in the order asked; all of them are in memory at once.

        Raises:
            NotFound: as :meth:`read_object`.
            DamagedObject: as :meth:`read_object`.
        """
        epoch = self._cache.epoch
        found = [self._cache.get(kind, id) for id in ids]
        absent = [id for id, plain in zip(ids, found, strict=True) if plain is None]
        if not absent:
            return [plain for plain in found if plain is not None]
        wanted: list[tuple[bytes, Location]] = []
        for id, location in zip(absent, self.index.locate(kind, absent), strict=True):
            if location is None:
                self.refuse_quarantined(kind, [id])
                raise _NOT_FOUND[kind](f"the store has no {format_object(kind, id)}")
            wanted.append((id, location))
        loaded: dict[bytes, bytes] = {}
        for (id, _), plain in zip(wanted, self.read_located(kind, wanted), strict=True):
            self._cache.put(kind, id, plain, epoch)
            loaded[id] = plain
        return [loaded[id] if plain is None else plain for id, plain in zip(ids, found, strict=True)]

    def read_each(self, kind: ObjectKind, ids: Sequence[bytes], *, run_bytes: int = READ_RUN_BYTES) -> Iterator[bytes]:
        """What :meth:`read_objects` returns, one by one.

        Memory: ``run_bytes`` of plain bytes, or one object if that is larger.

        Raises:
            NotFound, DamagedObject: as :meth:`read_object`.
        """
        batch: list[bytes] = []
        size = 0
        for id, location in zip(ids, self.index.locate(kind, ids), strict=True):
            length = 0 if location is None else location.plain_length
            if batch and size + length > run_bytes:
                yield from self.read_objects(kind, batch)
                batch, size = [], 0
            batch.append(id)
            size += length
        yield from self.read_objects(kind, batch)

    def read_located(self, kind: ObjectKind, wanted: Iterable[tuple[bytes, Location]]) -> Iterator[bytes]:
        """Read and verify objects whose places are known, in the order given; neighbours are read together.

        Memory: one run of at most ``READ_RUN_BYTES`` (or one frame) and one object's plain bytes.

        Raises:
            DamagedObject: what lies at a place is not the object; the error names pack and offset.
            Overloaded: it is a large layout, and others are being taken apart.
        """
        for run in _runs(wanted):
            try:
                for id, location, frame in self._frames(kind, run):
                    yield self._open(kind, id, location, frame)
            except _UnreadableRun as error:
                for id, _ in run:  # the disk does not say which of them it cannot read
                    self.on_damage(kind, id)
                raise error.damage from error.damage.__cause__

    def _open(self, kind: ObjectKind, id: bytes, location: Location, frame: memoryview) -> bytes:
        try:
            if kind is not ObjectKind.LAYOUT:
                return open_at(kind, id, location, frame)
            # Verifying a layout is taking it apart.
            with self.rooms.hold(kind, location.plain_length):
                return open_at(kind, id, location, frame)
        except DamagedObject:
            self.on_damage(kind, id)
            raise

    def _frames(
        self, kind: ObjectKind, run: list[tuple[bytes, Location]]
    ) -> Iterator[tuple[bytes, Location, memoryview]]:
        """The frames of neighbours, with the places where they were found."""
        first, last = run[0][1], run[-1][1]
        try:
            data = memoryview(self._read(kind, run[0][0], first, last.offset + last.stored_length - first.offset))
        except DamagedObject as error:
            places = self.index.locate(kind, [id for id, _ in run])
            moved = [new for (_, old), new in zip(run, places, strict=True) if new is not None and new.pack != old.pack]
            if not isinstance(error.__cause__, PackNotFound) or len(moved) != len(run):
                raise _UnreadableRun(error) from error
            # The pack was rewritten, and deleted, since the places were looked up: they lie elsewhere now.
            for (id, _), new in zip(run, moved, strict=True):
                yield id, new, memoryview(self._read(kind, id, new, new.stored_length))
            return
        for id, location in run:
            at = location.offset - first.offset
            yield id, location, data[at : at + location.stored_length]

    def _read(self, kind: ObjectKind, id: bytes, location: Location, length: int) -> bytes:
        try:
            return self.store.read(location.pack, location.offset, length)
        except PackNotFound as error:
            raise _damaged(kind, id, location, found="no such pack") from error
        except DamagedObject as error:
            raise _damaged(kind, id, location, found=error.detail) from error

    def read_footer(self, pack: PackId) -> PackSummary:
        """What a stored pack's footer says; the frames themselves are not read.

        Raises:
            PackNotFound: no such pack.
            DamagedObject: it does not end as a pack of its name and size ends.
        """
        size = self.store.size(pack)
        try:
            if size < FOOTER_OVERHEAD_BYTES:
                raise MalformedDocument(f"a pack of {size} bytes has no footer")
            footer = decode_trailer(self.store.read(pack, size - TRAILER_BYTES, TRAILER_BYTES), size)
            summary = decode_footer(self.store.read(pack, footer, size - footer), size)
            if summary.pack != pack:
                raise MalformedDocument(f"the footer calls the pack {summary.pack}")
        except MalformedDocument as error:
            where = f"pack {pack} offset {max(0, size - TRAILER_BYTES)}"
            raise DamagedObject(
                f"the footer of pack {pack} is damaged: {error.detail}",
                object=f"pack {pack}",
                where=where,
                expected="a footer that matches its checksum",
                found=error.detail,
            ) from error
        return summary

    # --- what is out of use ------------------------------------------------------------------------------------------

    def find_quarantined(self, kind: ObjectKind, id: bytes) -> QuarantinedRow | None:
        """The quarantine of one object, or None."""
        return self.index.find_quarantined(kind, [id])[0]

    def refuse_quarantined(self, kind: ObjectKind, ids: Iterable[bytes]) -> None:
        """Say of absent objects that they are in quarantine, where one is: that is another matter than not being there.

        Raises:
            DamagedObject: one of them is; the error names it, its place and what was wrong.
        """
        wanted = list(ids)
        for id, row in zip(wanted, self.index.find_quarantined(kind, wanted), strict=True):
            if row is not None:
                name = format_object(kind, id)
                raise DamagedObject(
                    f"{name} was found damaged and is in quarantine: {row.reason}",
                    hint="push what needs it again, or `casstore repair --from` a copy: either heals it",
                    object=name,
                    where=format_where(row.location),
                    expected=f"blake3:{id.hex()}",
                    found=row.reason,
                )

    def forget(self, kind: ObjectKind, id: bytes) -> None:
        """Do not answer from memory for an object that is taken out of use."""
        self._cache.drop(kind, id)

    # --- writing -----------------------------------------------------------------------------------------------------

    def seal_objects(self, objects: Sequence[tuple[ObjectKind, bytes, bytes]]) -> SealedPack:
        """Write ``(kind, id, plain)`` objects as one durable pack.

        Callers gather: small objects must not become a pack each.  The bytes are trusted to hash to their ids: these
        are objects that the engine made itself.

        Durability: the pack is durable under its name; the index does not know it yet (a crash here leaves a pack that
        nobody refers to).

        Raises:
            StoreFull: no space is left; nothing stays behind.
            OutcomeUnknown: fsync failed.
        """
        pack = self._new_pack_id()
        encoder = PackEncoder(pack)
        writer = self.store.create(pack)
        rows: list[FrameRow] = []
        try:
            writer.write(encoder.header())
            for kind, id, plain in objects:
                codec, stored = seal_frame(kind, id, plain)
                at = encoder.size
                frame = encoder.add(kind, id, codec, stored, len(plain))
                writer.write(frame)
                rows.append(FrameRow(kind, id, at, len(frame), len(plain)))
            writer.write(encoder.finish())
            writer.commit()
        finally:
            writer.abort()
        return SealedPack(PackRecord(pack, encoder.size, len(rows)), rows)

    def record_objects(self, sealed: SealedPack) -> None:
        """Make the objects of a sealed pack findable.

        Durability: durable when this returns.
        Threads: index writer.

        Raises:
            StoreFull: nothing was recorded.
            OutcomeUnknown: the commit failed.
        """
        self.index.add_pack(sealed.record, sealed.frames)

    def put_objects(self, objects: Sequence[tuple[ObjectKind, bytes, bytes]]) -> None:
        """Write those of ``objects`` that the store lacks, durable and findable when this returns.

        Threads: index writer.

        Raises:
            StoreFull: nothing was recorded.
            OutcomeUnknown: fsync or the commit failed.
        """
        absent = [item for item in objects if not self.index.has(item[0], [item[1]])[0]]
        if absent:
            self.record_objects(self.seal_objects(absent))


class _UnreadableRun(Exception):
    """Neighbours could not be read together."""

    def __init__(self, damage: DamagedObject) -> None:
        super().__init__(damage.detail)
        self.damage = damage


def open_at(kind: ObjectKind, id: bytes, location: Location, data: bytes | memoryview) -> bytes:
    """The plain bytes of the object that ``data``, the frame at ``location``, is supposed to hold.

    Raises:
        DamagedObject: it does not; the error names object, pack and offset.
    """
    try:
        frame: Frame = decode_frame(data, location.offset)
        if frame.kind != kind or frame.id != id or frame.plain_length != location.plain_length:
            raise _damaged(kind, id, location, found=format_object(frame.kind, frame.id))
        return open_frame(frame)
    except DamagedObject as error:
        if error.where == format_where(location):
            raise
        found = error.detail if error.found is None else f"blake3:{error.found}"
        raise _damaged(kind, id, location, found=found) from error


def _damaged(kind: ObjectKind, id: bytes, location: Location, *, found: str) -> DamagedObject:
    name, where = format_object(kind, id), format_where(location)
    return DamagedObject(
        f"{name} at {where} is damaged: {found}",
        hint="casstore fsck --full lists all damage",
        object=name,
        where=where,
        expected=f"blake3:{id.hex()}",
        found=found,
    )


def _runs(wanted: Iterable[tuple[bytes, Location]]) -> Iterator[list[tuple[bytes, Location]]]:
    """Group neighbours in one pack, in the order given, into runs worth one read."""
    run: list[tuple[bytes, Location]] = []
    for item in wanted:
        if run:
            start, last, here = run[0][1], run[-1][1], item[1]
            gap = here.offset - (last.offset + last.stored_length)
            span = here.offset + here.stored_length - start.offset
            if here.pack != last.pack or not 0 <= gap <= READ_GAP_BYTES or span > READ_RUN_BYTES:
                yield run
                run = []
        run.append(item)
    if run:
        yield run
