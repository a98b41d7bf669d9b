"""The index on one machine: one LMDB environment below ``index/``, a table for each kind of object.

Owns: where each object lies, which packs are known, and the memo of what was proven.  Trusts nothing and need not be
trusted: what it points at is re-hashed, and all of it can be rebuilt from the packs.

On disk (all numbers big-endian)::

    chunk, page, root, layout, document    32-byte id → u32 pack number ‖ u32 offset ‖ u32 stored ‖ u32 plain
    packs                                  16-byte pack id → u32 pack number ‖ u64 size ‖ u32 frames
    pack-numbers                           u32 pack number → 16-byte pack id
    memo                                   32-byte key → nothing

A pack's number stands for its id in every row: 4 bytes for 16 in a table of millions of rows.  No number is reused
while a row may hold it.

Invariant: the rows of a pack and the pack's own rows are written in one transaction, so a known pack is known whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final

from casstore.errors import DamagedObject
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.lmdb_env import Database, LmdbEnvironment, Transaction, create_environment
from casstore.storage.roles import FrameRow, Location, PackRecord

_DIRECTORY: Final = "index"
_LOCATION: Final = struct.Struct(">IIII")
_PACK: Final = struct.Struct(">IQI")
_NUMBER: Final = struct.Struct(">I")
_ID_BYTES: Final = 32

_KINDS: Final = {kind: kind.name.lower().encode("ascii") for kind in ObjectKind}
_PACKS: Final = b"packs"
_NUMBERS: Final = b"pack-numbers"
_MEMO: Final = b"memo"
_TABLES: Final = [*_KINDS.values(), _PACKS, _NUMBERS, _MEMO]


class LocalChunkIndex:
    """Implements :class:`~casstore.storage.roles.ChunkIndex`.

    Args:
        directory: the store directory; the index lies below it, in ``index/``.
        files: how commits reach the disk.

    Raises:
        NotInitialised: there is no index.
        DamagedObject: what is there is not one.
        StoreBusy: this process has it open already.
    """

    def __init__(self, directory: str, files: Files) -> None:
        self._path = os.path.join(directory, _DIRECTORY)
        self._environment = LmdbEnvironment(self._path, files, _TABLES, "index")
        tables = self._environment.tables
        self._kinds: dict[ObjectKind, Database] = {kind: tables[name] for kind, name in _KINDS.items()}
        self._packs = tables[_PACKS]
        self._numbers = tables[_NUMBERS]
        self._memo = tables[_MEMO]

    @classmethod
    def lay_out(cls, directory: str, files: Files) -> None:
        """Make an empty index in a store directory.

        Raises:
            DestinationExists: there is one.
            StoreFull, Unavailable: it cannot be made.

        Durability: all but the name ``index`` itself, which the caller makes durable with the directory.
        """
        create_environment(os.path.join(directory, _DIRECTORY), files, _TABLES, "index")

    def has(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        """See the role."""
        return self._present(self._kinds[kind], ids)

    def locate(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[Location | None]:
        """See the role."""
        rows: dict[bytes, Location | None] = {}
        packs: dict[int, PackId] = {}
        database = self._kinds[kind]
        with self._environment.read() as transaction:
            get = transaction.get
            for key in _sorted(ids):
                value = get(key, None, database)
                rows[key] = None if value is None else self._location(transaction, value, packs)
        return [rows[key] for key in ids]

    def add_pack(self, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        """See the role."""
        # Sorted, so that one pass over the tree touches each of its pages once.
        for frame in frames:
            _check_id(frame.id)
        with self._environment.write() as transaction:
            if transaction.get(pack.pack, None, self._packs) is not None:
                return
            with transaction.cursor(self._numbers) as cursor:
                number = _NUMBER.unpack(cursor.key())[0] + 1 if cursor.last() else 1
            transaction.put(_NUMBER.pack(number), pack.pack, db=self._numbers, append=True)
            transaction.put(pack.pack, _PACK.pack(number, pack.size_bytes, pack.frames), db=self._packs)
            for kind, database in self._kinds.items():
                rows = sorted(
                    (row.id, _LOCATION.pack(number, row.offset, row.stored_length, row.plain_length))
                    for row in frames
                    if row.kind == kind
                )
                if rows:
                    with transaction.cursor(database) as cursor:
                        cursor.putmulti(rows, overwrite=False)

    def pack(self, pack: PackId) -> PackRecord | None:
        """See the role."""
        with self._environment.read() as transaction:
            value = transaction.get(pack, None, self._packs)
        return None if value is None else self._record(pack, value)

    def packs(self, *, after: PackId | None = None, limit: int) -> list[PackRecord]:
        """See the role."""
        with self._environment.read() as transaction:
            rows = _rows_behind(transaction, self._packs, after or b"", limit)
        return [self._record(PackId(key), value) for key, value in rows]

    def objects(self, kind: ObjectKind, *, after: bytes = b"", limit: int) -> list[tuple[bytes, Location]]:
        """See the role."""
        packs: dict[int, PackId] = {}
        with self._environment.read() as transaction:
            rows = _rows_behind(transaction, self._kinds[kind], after, limit)
            return [(key, self._location(transaction, value, packs)) for key, value in rows]

    def count(self, kind: ObjectKind) -> int:
        """See the role."""
        with self._environment.read() as transaction:
            return transaction.stat(self._kinds[kind])["entries"]

    def memo_has(self, keys: Sequence[bytes]) -> list[bool]:
        """See the role."""
        return self._present(self._memo, keys)

    def memo_add(self, keys: Sequence[bytes]) -> None:
        """See the role.

        Raises:
            OutcomeUnknown: the commit failed; the index is sealed.
            StoreFull: no space is left; nothing was recorded.
        """
        wanted = _sorted(keys)
        if wanted:
            with self._environment.write() as transaction, transaction.cursor(self._memo) as cursor:
                cursor.putmulti([(key, b"") for key in wanted], overwrite=False)

    def close(self) -> None:
        """See the role."""
        self._environment.close()

    def _present(self, database: Database, ids: Sequence[bytes]) -> list[bool]:
        wanted = _sorted(ids)
        with self._environment.read() as transaction:
            get = transaction.get
            found = {key for key in wanted if get(key, None, database) is not None}
        return [key in found for key in ids]

    def _location(self, transaction: Transaction, value: bytes, packs: dict[int, PackId]) -> Location:
        if len(value) != _LOCATION.size:
            raise self._damaged(f"a row of {len(value)} bytes where {_LOCATION.size} belong")
        number, offset, stored, plain = _LOCATION.unpack(value)
        pack = packs.get(number)
        if pack is None:
            name = transaction.get(_NUMBER.pack(number), None, self._numbers)
            if name is None or len(name) != PackId.SIZE:
                raise self._damaged(f"pack number {number} has no name")
            pack = packs[number] = PackId(name)
        return Location(pack, offset, stored, plain)

    def _record(self, pack: PackId, value: bytes) -> PackRecord:
        if len(value) != _PACK.size:
            raise self._damaged(f"pack {pack} has a row of {len(value)} bytes where {_PACK.size} belong")
        _, size, frames = _PACK.unpack(value)
        return PackRecord(pack, size, frames)

    def _damaged(self, found: str) -> DamagedObject:
        return DamagedObject(
            f"the index at {self._path} is damaged: {found}",
            hint="restore index/ from a backup; nothing in it is lost as long as the packs are there",
            object="index",
            where=self._path,
            found=found,
        )


def _check_id(key: bytes) -> None:
    if len(key) != _ID_BYTES:
        raise ValueError(f"an object id has {_ID_BYTES} bytes, this has {len(key)}")


def _sorted(ids: Sequence[bytes]) -> list[bytes]:
    """The distinct ids in the order of the tree's pages, each checked."""
    wanted = sorted(set(ids))
    for key in wanted:
        _check_id(key)
    return wanted


def _rows_behind(transaction: Transaction, database: Database, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
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
