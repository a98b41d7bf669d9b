"""Rows of the local index, as bytes, and how one transaction reads them.

On disk (all numbers big-endian)::

    chunk, page, root, layout, document    32-byte id → place
    condemned                              u8 kind ‖ 32-byte id → place ‖ u64 ms ‖ u32 mark
    quarantine                             u8 kind ‖ 32-byte id → place ‖ u64 ms ‖ reason, UTF-8
    packs                                  16-byte pack id → u32 pack number ‖ u64 size ‖ u32 frames
    retired                                16-byte pack id → the row of packs ‖ u64 ms
    pack-numbers                           u32 pack number → 16-byte pack id
    memo                                   32-byte key → nothing
    file-memo                              first 16 bytes of a chunk's id ‖ 32-byte key → nothing
    notes                                  name → bytes

    place = u32 pack number ‖ u32 offset ‖ u32 stored ‖ u32 plain

Rows of ``condemned``, ``quarantine``, ``retired`` and ``notes`` end with a checksum (:mod:`casstore.storage.local.row_checks`): a
time with a flipped bit would let what is condemned go too early, and nothing else says when that was.

A pack's number stands for its id in every row: 4 bytes for 16 in a table of millions of rows.  No number is reused
while a row may hold it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from casstore.errors import DamagedObject
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.lmdb_env import REBUILD, Database, Transaction
from casstore.storage.local.row_checks import open_row
from casstore.storage.roles import CondemnedRow, FileProof, Location, PackRecord, QuarantinedRow

PLACE: Final = struct.Struct(">IIII")
CONDEMNED: Final = struct.Struct(">IIIIQI")
QUARANTINED: Final = struct.Struct(">IIIIQ")
PACK: Final = struct.Struct(">IQI")
RETIRED: Final = struct.Struct(">IQIQ")
NUMBER: Final = struct.Struct(">I")
_ID_BYTES: Final = 32
FILE_PREFIX_BYTES: Final = 16
REASON_MAX_BYTES: Final = 400  # LIMIT: a sentence
NOTE_MAX_BYTES: Final = 64 * 1024

KINDS: Final = {kind: kind.name.lower().encode("ascii") for kind in ObjectKind}
PACKS: Final = b"packs"
NUMBERS: Final = b"pack-numbers"
MEMO: Final = b"memo"
FILE_MEMO: Final = b"file-memo"
CONDEMNED_TABLE: Final = b"condemned"
QUARANTINE_TABLE: Final = b"quarantine"
RETIRED_TABLE: Final = b"retired"
NOTES: Final = b"notes"
TABLES: Final = [
    *KINDS.values(),
    PACKS,
    NUMBERS,
    MEMO,
    FILE_MEMO,
    CONDEMNED_TABLE,
    QUARANTINE_TABLE,
    RETIRED_TABLE,
    NOTES,
]

CHECKED_TABLES: Final = [CONDEMNED_TABLE, QUARANTINE_TABLE, RETIRED_TABLE, NOTES]


def check_id(key: bytes) -> None:
    """Refuse an id of another length: it would match nothing, silently.

    Raises:
        ValueError: not 32 bytes.
    """
    if len(key) != _ID_BYTES:
        raise ValueError(f"an object id has {_ID_BYTES} bytes, this has {len(key)}")


def sorted_ids(ids: Sequence[bytes]) -> list[bytes]:
    """The distinct ids in the order of the tree's pages, each checked."""
    wanted = sorted(set(ids))
    for key in wanted:
        check_id(key)
    return wanted


def kind_key(kind: ObjectKind, id: bytes) -> bytes:
    """The key of an object in a table of all kinds."""
    check_id(id)
    return bytes((kind,)) + id


def file_key(proof: FileProof) -> bytes:
    """The key of a proof of files."""
    check_id(proof.chunk)
    check_id(proof.key)
    return proof.chunk[:FILE_PREFIX_BYTES] + proof.key


def rows_behind(transaction: Transaction, database: Database, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """Rows in key order, at most ``limit``, beginning behind ``after`` (empty: at the first)."""
    rows: list[tuple[bytes, bytes]] = []
    if limit <= 0:
        return rows
    with transaction.cursor(database) as cursor:
        found = cursor.set_range(after) if after else cursor.first()
        if found and cursor.key() == after:
            found = cursor.next()
        if found:
            for row in cursor:
                rows.append(row)
                if len(rows) == limit:
                    break
    return rows


class RowReader:
    """Turns rows into what the role says, and says which index is damaged when one can not be.

    Args:
        path: of the index, for messages.
        numbers: the table ``pack-numbers``.
    """

    def __init__(self, path: str, numbers: Database) -> None:
        self._path = path
        self._numbers = numbers

    def location(self, transaction: Transaction, value: bytes, packs: dict[int, PackId]) -> Location:
        """A place; ``packs`` remembers the names of the packs that were met in this transaction."""
        if len(value) != PLACE.size:
            raise self.damaged(f"a row of {len(value)} bytes where {PLACE.size} belong")
        number, offset, stored, plain = PLACE.unpack(value)
        pack = packs.get(number)
        if pack is None:
            name = transaction.get(NUMBER.pack(number), None, self._numbers)
            if name is None or len(name) != PackId.SIZE:
                raise self.damaged(f"pack number {number} has no name")
            pack = packs[number] = PackId(name)
        return Location(pack, offset, stored, plain)

    def condemned(self, transaction: Transaction, key: bytes, value: bytes, packs: dict[int, PackId]) -> CondemnedRow:
        """A row of the table ``condemned``."""
        kind, id = self._split(key)
        value = open_row(CONDEMNED_TABLE, key, value, "index", sealed_only=True)
        if len(value) != CONDEMNED.size:
            raise self.damaged(f"a condemned row of {len(value)} bytes where {CONDEMNED.size} belong")
        *_, at_ms, mark = CONDEMNED.unpack(value)
        return CondemnedRow(kind, id, self.location(transaction, value[: PLACE.size], packs), at_ms, mark)

    def quarantined(
        self, transaction: Transaction, key: bytes, value: bytes, packs: dict[int, PackId]
    ) -> QuarantinedRow:
        """A row of the table ``quarantine``."""
        kind, id = self._split(key)
        value = open_row(QUARANTINE_TABLE, key, value, "index", sealed_only=True)
        if len(value) < QUARANTINED.size:
            raise self.damaged(f"a quarantined row of {len(value)} bytes where {QUARANTINED.size} or more belong")
        *_, at_ms = QUARANTINED.unpack_from(value)
        reason = value[QUARANTINED.size :].decode("utf-8", "replace")
        return QuarantinedRow(kind, id, self.location(transaction, value[: PLACE.size], packs), at_ms, reason)

    def record(self, pack: PackId, value: bytes) -> PackRecord:
        """A row of the table ``packs``."""
        if len(value) != PACK.size:
            raise self.damaged(f"pack {pack} has a row of {len(value)} bytes where {PACK.size} belong")
        _, size, frames = PACK.unpack(value)
        return PackRecord(pack, size, frames)

    def retired(self, pack: PackId, value: bytes) -> tuple[PackRecord, int]:
        """A row of the table ``retired``."""
        value = open_row(RETIRED_TABLE, pack, value, "index", sealed_only=True)
        if len(value) != RETIRED.size:
            raise self.damaged(f"the retired pack {pack} has a row of {len(value)} bytes where {RETIRED.size} belong")
        _, size, frames, at_ms = RETIRED.unpack(value)
        return PackRecord(pack, size, frames), at_ms

    def number(self, value: bytes) -> int:
        """The pack number that a row of ``packs`` or ``retired``, or a place, begins with."""
        if len(value) < NUMBER.size:
            raise self.damaged(f"a row of {len(value)} bytes")
        return int(NUMBER.unpack_from(value)[0])

    def _split(self, key: bytes) -> tuple[ObjectKind, bytes]:
        try:
            kind = ObjectKind(key[0])
        except (ValueError, IndexError) as error:
            raise self.damaged(f"a key of {len(key)} bytes that names no kind of object") from error
        if len(key) != 1 + _ID_BYTES:
            raise self.damaged(f"a key of {len(key)} bytes where {1 + _ID_BYTES} belong")
        return kind, key[1:]

    def damaged(self, found: str) -> DamagedObject:
        """The error that says that the index is damaged."""
        return DamagedObject(
            f"the index at {self._path} is damaged: {found}",
            hint=REBUILD,
            object="index",
            where=self._path,
            found=found,
        )
