"""What the local index keeps for collection and healing: condemned and quarantined objects, retired packs, notes.

A condemned or quarantined object's row is moved out of the table of its kind: so the look-ups of a push, which ask that table
alone, cost what they always did, and what is about to be deleted cannot be reported as present by oversight.

Invariant: an object has a row in the table of its kind, or in ``condemned``, or neither; beside a live row it has none in
``quarantine``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.index_rows import (
    CHECKED_TABLES,
    CONDEMNED,
    CONDEMNED_TABLE,
    FILE_MEMO,
    FILE_PREFIX_BYTES,
    KINDS,
    NOTE_MAX_BYTES,
    NOTES,
    NUMBER,
    NUMBERS,
    PACK,
    PACKS,
    PLACE,
    QUARANTINE_TABLE,
    QUARANTINED,
    REASON_MAX_BYTES,
    RETIRED,
    RETIRED_TABLE,
    TABLES,
    RowReader,
    kind_key,
    rows_behind,
    sorted_ids,
)
from casstore.storage.local.lmdb_env import Database, LmdbEnvironment, Transaction
from casstore.storage.local.row_checks import open_row, seal_row
from casstore.storage.roles import CondemnedRow, Location, Move, PackRecord, PackUsage, QuarantinedRow

# LIMIT: rows that one read transaction goes through: a few milliseconds, so that LMDB can reuse pages behind it.
_SCAN_ROWS: Final = 10_000


class CollectionTables:
    """The half of :class:`casstore.storage.local.index.LocalChunkIndex` that takes things out of use.

    Args:
        path: the environment's directory.
        files: how commits reach the disk.

    Raises:
        As opening an environment does.
    """

    def __init__(self, path: str, files: Files) -> None:
        self._environment = LmdbEnvironment(path, files, TABLES, "index")
        tables = self._environment.tables
        self._kinds: dict[ObjectKind, Database] = {kind: tables[name] for kind, name in KINDS.items()}
        self._packs = tables[PACKS]
        self._numbers = tables[NUMBERS]
        self._condemned = tables[CONDEMNED_TABLE]
        self._quarantine = tables[QUARANTINE_TABLE]
        self._retired = tables[RETIRED_TABLE]
        self._notes = tables[NOTES]
        self._file_memo = tables[FILE_MEMO]
        self._rows = RowReader(path, self._numbers)
        self._losses = 0

    @property
    def losses(self) -> int:
        """See the role.

        # ORDER: it counts before the commit and once more behind it.  Who reads it in between may still see what is going, and
        # finds another number later, however the two fell; who reads it before or behind sees what is true.
        """
        return self._losses

    def _put_checked(self, transaction: Transaction, table: bytes, key: bytes, value: bytes) -> None:
        transaction.put(key, seal_row(table, key, value), db=self._environment.tables[table])

    def verify_storage(self) -> None:
        """See the role."""
        self._environment.verify()
        for table in CHECKED_TABLES:
            after = b""
            while rows := self._scan(self._environment.tables[table], after):
                after = rows[-1][0]
                for key, value in rows:
                    open_row(table, key, value, "index", sealed_only=True)
        self._verify_numbers()

    def _verify_numbers(self) -> None:
        """A pack whose row has another pack's number would look unused, and be deleted."""
        for table in (self._packs, self._retired):
            after = b""
            while rows := self._scan(table, after):
                after = rows[-1][0]
                with self._environment.read() as transaction:
                    for name, value in rows:
                        number = self._rows.number(value)
                        found = transaction.get(NUMBER.pack(number), None, self._numbers)
                        # A server at work may have forgotten the pack in between.
                        if found != name and transaction.get(name, None, table) == value:
                            raise self._rows.damaged(f"pack {name.hex()} has the number {number}, which is another's")

    # --- condemned ---------------------------------------------------------------------------------------------------

    def condemn(self, kind: ObjectKind, ids: Sequence[bytes], *, at_ms: int, mark: int) -> int:
        """See the role."""
        live, count = self._kinds[kind], 0
        wanted = sorted_ids(ids)
        with self._environment.write() as transaction:
            for key in wanted:
                value = transaction.pop(key, live)
                if value is not None:
                    row = value + CONDEMNED.pack(0, 0, 0, 0, at_ms, mark)[PLACE.size :]
                    self._put_checked(transaction, CONDEMNED_TABLE, kind_key(kind, key), row)
                    count += 1
            self._losses += bool(count)
        self._losses += bool(count)
        return count

    def revive(self, wanted: Iterable[tuple[ObjectKind, Sequence[bytes]]]) -> list[tuple[ObjectKind, bytes]]:
        """See the role."""
        absent: list[tuple[ObjectKind, bytes]] = []
        with self._environment.write() as transaction:
            found: list[tuple[ObjectKind, bytes]] = []
            for kind, ids in wanted:
                live = self._kinds[kind]
                for key in sorted_ids(ids):
                    if transaction.get(key, None, live) is not None:
                        continue
                    known = transaction.get(kind_key(kind, key), None, self._condemned) is not None
                    (found if known else absent).append((kind, key))
            if not absent:
                for kind, key in found:
                    # An id that was named twice is revived once.
                    value = transaction.pop(kind_key(kind, key), self._condemned)
                    if value is not None:
                        transaction.put(key, value[: PLACE.size], db=self._kinds[kind])
        return absent

    def condemned(self, *, after: tuple[ObjectKind, bytes] | None = None, limit: int) -> list[CondemnedRow]:
        """See the role."""
        packs: dict[int, PackId] = {}
        with self._environment.read() as transaction:
            rows = rows_behind(transaction, self._condemned, kind_key(*after) if after else b"", limit)
            return [self._rows.condemned(transaction, key, value, packs) for key, value in rows]

    def drop(self, rows: Sequence[CondemnedRow]) -> int:
        """See the role."""
        count = 0
        packs: dict[int, PackId] = {}
        with self._environment.write() as transaction:
            for row in rows:
                key = kind_key(row.kind, row.id)
                value = transaction.get(key, None, self._condemned)
                if value is not None and self._rows.condemned(transaction, key, value, packs) == row:
                    transaction.delete(key, db=self._condemned)
                    if row.kind is ObjectKind.CHUNK:
                        self._forget_files(transaction, row.id)
                    count += 1
            self._losses += bool(count)
        self._losses += bool(count)
        return count

    def _forget_files(self, transaction: Transaction, chunk: bytes) -> None:
        prefix = chunk[:FILE_PREFIX_BYTES]
        with transaction.cursor(self._file_memo) as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                found = cursor.delete()

    def restart_grace(self, at_ms: int) -> None:
        """See the role."""
        with self._environment.write() as transaction, transaction.cursor(self._condemned) as cursor:
            for key, stored in cursor:
                value = open_row(CONDEMNED_TABLE, key, stored, "index", sealed_only=True)
                *place, _, mark = CONDEMNED.unpack(value)
                cursor.put(key, seal_row(CONDEMNED_TABLE, key, CONDEMNED.pack(*place, at_ms, mark)))

    # --- quarantine --------------------------------------------------------------------------------------------------

    def quarantine(self, kind: ObjectKind, id: bytes, location: Location, *, at_ms: int, reason: str) -> bool:
        """See the role."""
        key = kind_key(kind, id)
        with self._environment.write() as transaction:
            for database, at in ((self._kinds[kind], id), (self._condemned, key)):
                value = transaction.get(at, None, database)
                if value is None or self._rows.location(transaction, value[: PLACE.size], {}) != location:
                    continue
                transaction.delete(at, db=database)
                cut = reason.encode("utf-8", "replace")[:REASON_MAX_BYTES]
                tail = QUARANTINED.pack(0, 0, 0, 0, at_ms)[PLACE.size :] + cut
                self._put_checked(transaction, QUARANTINE_TABLE, key, value[: PLACE.size] + tail)
                self._losses += 1
                break
            else:
                return False
        self._losses += 1
        return True

    def release(self, kind: ObjectKind, id: bytes) -> bool:
        """See the role."""
        with self._environment.write() as transaction:
            value = transaction.pop(kind_key(kind, id), self._quarantine)
            if value is not None:
                transaction.put(id, value[: PLACE.size], db=self._kinds[kind])
            return value is not None

    def quarantined(self, *, after: tuple[ObjectKind, bytes] | None = None, limit: int) -> list[QuarantinedRow]:
        """See the role."""
        packs: dict[int, PackId] = {}
        with self._environment.read() as transaction:
            rows = rows_behind(transaction, self._quarantine, kind_key(*after) if after else b"", limit)
            return [self._rows.quarantined(transaction, key, value, packs) for key, value in rows]

    def find_quarantined(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[QuarantinedRow | None]:
        """See the role."""
        packs: dict[int, PackId] = {}
        found: list[QuarantinedRow | None] = []
        with self._environment.read() as transaction:
            for id in ids:
                key = kind_key(kind, id)
                value = transaction.get(key, None, self._quarantine)
                found.append(None if value is None else self._rows.quarantined(transaction, key, value, packs))
        return found

    def forget_quarantined(self, rows: Sequence[QuarantinedRow]) -> int:
        """See the role."""
        count = 0
        with self._environment.write() as transaction:
            for row in rows:
                key = kind_key(row.kind, row.id)
                value = transaction.get(key, None, self._quarantine)
                if value is not None and self._rows.quarantined(transaction, key, value, {}) == row:
                    transaction.delete(key, db=self._quarantine)
                    count += 1
        return count

    # --- packs -------------------------------------------------------------------------------------------------------

    def move(self, pack: PackRecord, moves: Sequence[Move]) -> int:
        """See the role."""
        count = 0
        packs: dict[int, PackId] = {}
        with self._environment.write() as transaction:
            number = self.add_record(transaction, pack)
            for move in moves:
                key = kind_key(move.kind, move.id)
                for database, at in ((self._kinds[move.kind], move.id), (self._condemned, key)):
                    value = transaction.get(at, None, database)
                    if value is None or self._rows.location(transaction, value[: PLACE.size], packs) != move.old:
                        continue
                    place = PLACE.pack(number, move.new.offset, move.new.stored_length, move.new.plain_length)
                    if database is self._condemned:
                        when = open_row(CONDEMNED_TABLE, at, value, "index", sealed_only=True)[PLACE.size :]
                        self._put_checked(transaction, CONDEMNED_TABLE, at, place + when)
                    else:
                        transaction.put(at, place, db=database)
                    count += 1
        return count

    def add_record(self, transaction: Transaction, pack: PackRecord) -> int:
        """Write the rows of a pack that has none yet, in a transaction of the caller's; returns its number."""
        with transaction.cursor(self._numbers) as cursor:
            number = NUMBER.unpack(cursor.key())[0] + 1 if cursor.last() else 1
        transaction.put(NUMBER.pack(number), pack.pack, db=self._numbers, append=True)
        transaction.put(pack.pack, PACK.pack(number, pack.size_bytes, pack.frames), db=self._packs)
        return int(number)

    def usage(self) -> Mapping[PackId, PackUsage]:
        """See the role."""
        found: dict[int, list[int]] = {}
        databases = [(database, 0) for database in self._kinds.values()]
        for database, column in [*databases, (self._condemned, 1), (self._quarantine, 2)]:
            after = b""
            while rows := self._scan(database, after):
                after = rows[-1][0]
                for _, value in rows:
                    if len(value) < PLACE.size:
                        raise self._rows.damaged(f"a row of {len(value)} bytes where {PLACE.size} or more belong")
                    number, _, stored, _ = PLACE.unpack_from(value)
                    row = found.setdefault(number, [0, 0, 0, 0])
                    row[column] += stored
                    row[3] += 1
        usage: dict[PackId, PackUsage] = {}
        after = b""
        while rows := self._scan(self._packs, after):
            after = rows[-1][0]
            for name, value in rows:
                usage[PackId(name)] = PackUsage(*found.get(self._rows.number(value), (0, 0, 0, 0)))
        return usage

    def _scan(self, database: Database, after: bytes) -> list[tuple[bytes, bytes]]:
        with self._environment.read() as transaction:
            return rows_behind(transaction, database, after, _SCAN_ROWS)

    def retire_pack(self, pack: PackId, *, at_ms: int) -> None:
        """See the role."""
        with self._environment.write() as transaction:
            value = transaction.pop(pack, self._packs)
            if value is not None:
                self._put_checked(transaction, RETIRED_TABLE, pack, RETIRED.pack(*PACK.unpack(value), at_ms))

    def retired(self, *, after: PackId | None = None, limit: int) -> list[tuple[PackRecord, int]]:
        """See the role."""
        with self._environment.read() as transaction:
            rows = rows_behind(transaction, self._retired, after or b"", limit)
            return [self._rows.retired(PackId(name), value) for name, value in rows]

    def is_retired(self, pack: PackId) -> bool:
        """See the role."""
        with self._environment.read() as transaction:
            return transaction.get(pack, None, self._retired) is not None

    def forget_pack(self, pack: PackId) -> None:
        """See the role."""
        with self._environment.write() as transaction:
            value = transaction.pop(pack, self._retired)
            if value is not None:
                transaction.delete(NUMBER.pack(self._rows.number(value)), db=self._numbers)

    # --- notes -------------------------------------------------------------------------------------------------------

    def read_note(self, name: str) -> bytes | None:
        """See the role."""
        with self._environment.read() as transaction:
            stored = transaction.get(name.encode(), None, self._notes)
        return None if stored is None else open_row(NOTES, name.encode(), stored, "index", sealed_only=True)

    def write_note(self, name: str, value: bytes | None) -> None:
        """See the role.

        Raises:
            ValueError: larger than 64 KiB.
        """
        if value is not None and len(value) > NOTE_MAX_BYTES:
            raise ValueError(f"a note has at most {NOTE_MAX_BYTES} bytes, this has {len(value)}")
        with self._environment.write() as transaction:
            if value is None:
                transaction.delete(name.encode(), db=self._notes)
            else:
                self._put_checked(transaction, NOTES, name.encode(), value)
