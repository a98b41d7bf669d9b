"""The judge of packs and index: is every pack what it says, and does every row of the index point at what it names?

Both directions are walked: from the packs (every frame that a footer lists is known) and from the index (at every
location there is the frame that the row names).  With ``full``, every byte of every pack is covered by a hash:
header, frames, footer.

Memory: one footer (at most ``PACK_FRAMES_MAX`` rows), one run of frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from casstore.engine.findings import Findings
from casstore.engine.gc.state import read_state
from casstore.engine.packs import READ_RUN_BYTES, PackService, format_object, format_where, open_at
from casstore.engine.quarantine import quarantined_rows
from casstore.errors import DamagedObject, MalformedDocument, PackNotFound
from casstore.formats.frame import read_frame_head
from casstore.formats.pack import FRAME_HEADER_BYTES, PACK_HEADER_BYTES, ObjectKind, PackEncoder, PackRow
from casstore.ids import PackId
from casstore.storage.roles import Location, PackRecord
from casstore.wire import format_time

# LIMIT: names, or rows of the index, that are held at a time.
_BATCH: Final = 1000


def check_packs(packs: PackService, findings: Findings, *, full: bool) -> None:
    """Hold every pack against its name, its footer and the index.

    Args:
        packs: the store.
        findings: takes what is found.
        full: read and hash every frame.
    """
    # Once something was dropped, frames that the index does not know are what is left of it.
    swept = read_state(packs.index).swept
    for pack, stored, record in _walk(packs):
        # A server may be at work: what is seen on one side only is asked for once more on the other.
        if record is None:
            record = packs.index.pack(pack)
        if record is None and (packs.index.is_retired(pack) or not _is_stored(packs, pack)):
            continue  # it waits for its deletion, or was deleted since
        if record is None:
            findings.notice(
                "orphan-pack",
                f"pack {pack}",
                where=f"pack {pack}",
                expected="a pack that the index knows",
                found="a pack that the index does not know",
                hint="a push that was cut short left it; it is in nobody's way",
            )
            continue
        if not stored and not _is_stored(packs, pack):
            if packs.index.pack(pack) is None:
                continue  # it was retired and deleted since
            findings.error(
                "missing-pack",
                f"pack {pack}",
                where=f"pack {pack}",
                expected=f"{record.size_bytes} bytes with {record.frames} frames",
                found="no such pack",
                hint="restore it from a replica or a backup",
            )
            continue
        findings.count("packs")
        try:
            _check_pack(packs, record, findings, full=full, swept=swept)
        except PackNotFound:
            if packs.index.pack(pack) is not None:
                raise


def check_locations(packs: PackService, findings: Findings) -> None:
    """Look at every place that the index names: the frame there must be the object."""
    missing: set[PackId] = set()
    for kind in ObjectKind:
        after = b""
        while rows := packs.index.objects(kind, after=after, limit=_BATCH):
            after = rows[-1][0]
            findings.count("objects", len(rows))
            for id, location in rows:
                if location.pack not in missing and not _check_head(packs, kind, id, location, findings):
                    missing.add(location.pack)
    behind: tuple[ObjectKind, bytes] | None = None
    while condemned := packs.index.condemned(after=behind, limit=_BATCH):
        behind = condemned[-1].kind, condemned[-1].id
        findings.count("condemned objects", len(condemned))
        for row in condemned:
            at = row.location
            if at.pack not in missing and not _check_head(packs, row.kind, row.id, at, findings):
                missing.add(at.pack)


def _check_head(packs: PackService, kind: ObjectKind, id: bytes, location: Location, findings: Findings) -> bool:
    """Returns False if the whole pack is missing, which is reported once for the pack."""
    try:
        head = read_frame_head(packs.store.read(location.pack, location.offset, FRAME_HEADER_BYTES), 0)
        whole = FRAME_HEADER_BYTES + head.stored_length
        if (head.kind, head.id, whole, head.plain_length) == (kind, id, location.stored_length, location.plain_length):
            return True
        found = f"the header of {format_object(head.kind, head.id)}"
    except PackNotFound:
        # It may have been moved, or dropped, since its row was read.
        return packs.index.locate(kind, [id]) != [location]
    except (DamagedObject, MalformedDocument) as error:
        found = error.detail
    findings.error(
        DamagedObject.code,
        format_object(kind, id),
        where=format_where(location),
        expected=f"the frame of {format_object(kind, id)}",
        found=found,
        hint="restore the pack from a replica or a backup",
    )
    return True


def _walk(packs: PackService) -> Iterator[tuple[PackId, bool, PackRecord | None]]:
    """All packs that the store or the index names, in order: (name, whether the store has it, its row)."""
    stored, known = _stored(packs), _known(packs)
    name, record = next(stored, None), next(known, None)
    while name is not None or record is not None:
        if record is None or (name is not None and name < record.pack):
            assert name is not None, "one of the two is there"
            yield name, True, None
            name = next(stored, None)
        elif name is None or record.pack < name:
            yield record.pack, False, record
            record = next(known, None)
        else:
            yield name, True, record
            name, record = next(stored, None), next(known, None)


def _stored(packs: PackService) -> Iterator[PackId]:
    after: PackId | None = None
    while names := packs.store.list(after=after, limit=_BATCH):
        yield from names
        after = names[-1]


def _known(packs: PackService) -> Iterator[PackRecord]:
    after: PackId | None = None
    while records := packs.index.packs(after=after, limit=_BATCH):
        yield from records
        after = records[-1].pack


def _is_stored(packs: PackService, pack: PackId) -> bool:
    try:
        packs.store.size(pack)
    except PackNotFound:
        return False
    return True


def _check_pack(packs: PackService, record: PackRecord, findings: Findings, *, full: bool, swept: bool) -> None:
    pack = record.pack
    name = f"pack {pack}"
    size = packs.store.size(pack)
    if size != record.size_bytes:
        findings.error("pack-size", name, where=name, expected=f"{record.size_bytes} bytes", found=f"{size} bytes")
    try:
        if packs.store.read(pack, 0, PACK_HEADER_BYTES) != PackEncoder(pack).header():
            findings.error(
                DamagedObject.code,
                name,
                where=f"{name} offset 0",
                expected="the header of this pack",
                found="other bytes",
            )
        rows = packs.read_footer(pack).rows
    except DamagedObject as error:
        findings.damage(error, object=name, where=name)
        if full:
            _hash_unlisted(packs, pack, size, findings)
        return
    if len(rows) != record.frames:
        findings.error("pack-frames", name, where=name, expected=f"{record.frames} frames", found=f"{len(rows)} frames")
    _check_rows(packs, pack, rows, findings, swept=swept)
    if full:
        _hash_frames(packs, pack, rows, findings)


def _check_rows(packs: PackService, pack: PackId, rows: Sequence[PackRow], findings: Findings, *, swept: bool) -> None:
    """Every frame of a footer is in the index: here, or in another pack.  Layouts only once they are proven; where something was
    collected, others need not be."""
    places: dict[tuple[ObjectKind, bytes], set[Location]] = {}
    for row in rows:
        place = Location(pack, row.offset, row.stored_length, row.plain_length)
        places.setdefault((row.kind, row.id), set()).add(place)
    for kind in ObjectKind:
        ids = [id for of, id in places if of is kind]
        for id, location in zip(ids, packs.index.locate(kind, ids), strict=True):
            here = places[kind, id]
            if location is None:
                if kind is not ObjectKind.LAYOUT and not swept and packs.find_quarantined(kind, id) is None:
                    _report_row(kind, id, here, "not in the index", findings)
            elif location.pack == pack and location not in here:
                _report_row(kind, id, here, f"in the index at offset {location.offset}", findings)


def _report_row(kind: ObjectKind, id: bytes, here: set[Location], found: str, findings: Findings) -> None:
    findings.error(
        "index-row",
        format_object(kind, id),
        where=format_where(min(here)),
        expected="a row of the index that names this place",
        found=found,
        hint="push what needs it again; if it stays, `casstore fsck --rebuild-index` on the stopped store",
    )


def _hash_frames(packs: PackService, pack: PackId, rows: Sequence[PackRow], findings: Findings) -> None:
    """Read and hash every frame that the footer lists; the footer itself was hashed, and lists them without gaps."""
    start = 0
    while start < len(rows):
        stop, span = start, 0
        while stop < len(rows) and (stop == start or span + rows[stop].stored_length <= READ_RUN_BYTES):
            span += rows[stop].stored_length
            stop += 1
        try:
            data = memoryview(packs.store.read(pack, rows[start].offset, span))
        except DamagedObject as error:
            first = rows[start]
            where = f"pack {pack} offset {first.offset}"
            findings.damage(error, object=format_object(first.kind, first.id), where=where)
            return
        for row in rows[start:stop]:
            at = row.offset - rows[start].offset
            place = Location(pack, row.offset, row.stored_length, row.plain_length)
            _hash_frame(packs, (row.kind, row.id), place, data[at : at + row.stored_length], findings)
        start = stop


def _hash_unlisted(packs: PackService, pack: PackId, size: int, findings: Findings) -> None:
    """Read and hash frame by frame without the footer, as far as frames follow each other."""
    offset = PACK_HEADER_BYTES
    while offset + FRAME_HEADER_BYTES <= size:
        try:
            head = read_frame_head(packs.store.read(pack, offset, FRAME_HEADER_BYTES), 0)
            place = Location(pack, offset, FRAME_HEADER_BYTES + head.stored_length, head.plain_length)
            data = packs.store.read(pack, offset, place.stored_length)
        except (MalformedDocument, DamagedObject):
            # Here the footer begins, or a header is damaged: what the index knows behind it, check_locations looks at.
            return
        _hash_frame(packs, (head.kind, head.id), place, data, findings)
        offset += place.stored_length


def _hash_frame(
    packs: PackService,
    named: tuple[ObjectKind, bytes],
    place: Location,
    data: bytes | memoryview,
    findings: Findings,
) -> None:
    kind, id = named
    try:
        findings.count("bytes", len(open_at(kind, id, place, data)))
    except DamagedObject as error:
        if packs.index.locate(kind, [id])[0] == place:
            findings.damage(error, object=format_object(kind, id), where=format_where(place))
            packs.on_damage(kind, id)
            return
        row = packs.find_quarantined(kind, id)
        if row is None or row.location != place:
            findings.notice(
                "dead-frame",
                format_object(kind, id),
                where=format_where(place),
                expected="nothing: the index does not name this place",
                found=error.found or error.detail,
                hint="nobody reads it; it goes with its pack",
            )


def check_quarantine(packs: PackService, findings: Findings) -> None:
    """Report what was taken out of use: it is missing until it is stored again."""
    for row in quarantined_rows(packs):
        findings.error(
            "quarantined",
            format_object(row.kind, row.id),
            where=format_where(row.location),
            expected=f"blake3:{row.id.hex()}",
            found=f"{row.reason} (found at {format_time(row.at_ms)})",
            hint="push what needs it again, or `casstore repair --from` a copy; `casstore affected` says what needs it",
        )
