"""The index on one machine: one LMDB environment below ``index/``, a table for each kind of object.

Owns: where each object lies, which packs are known, and the memo of what was proven; what takes objects out of use again
lies in :mod:`casstore.storage.local.index_collection`, the rows' bytes in :mod:`casstore.storage.local.index_rows`.  Trusts
nothing and need not be trusted: what it points at is re-hashed, and all of it can be rebuilt from the packs.

Invariant: the rows of a pack and the pack's own rows are written in one transaction, so a known pack is known whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from casstore.errors import PackNotFound
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.index_collection import CollectionTables
from casstore.storage.local.index_rows import (
    MEMO,
    PACK,
    PLACE,
    RETIRED,
    TABLES,
    check_id,
    file_key,
    kind_key,
    rows_behind,
    sorted_ids,
)
from casstore.storage.local.lmdb_env import Database, Transaction, add_missing_tables, create_environment, verify_closed
from casstore.storage.roles import FileProof, FrameRow, Location, PackRecord

_DIRECTORY: Final = "index"


class LocalChunkIndex(CollectionTables):
    """Implements :class:`~casstore.storage.roles.ChunkIndex`.

    Args:
        directory: the store directory; the index lies below it, in ``index/``.
        files: how commits reach the disk.
        name: of its directory, for one that is being built.

    Raises:
        NotInitialised: there is no index.
        DamagedObject: what is there is not one.
        StoreBusy: this process has it open already.
    """

    def __init__(self, directory: str, files: Files, name: str = _DIRECTORY) -> None:
        super().__init__(os.path.join(directory, name), files)
        self._memo = self._environment.tables[MEMO]

    @classmethod
    def lay_out(cls, directory: str, files: Files, name: str = _DIRECTORY) -> None:
        """Make an empty index in a store directory.

        Raises:
            DestinationExists: there is one.
            StoreFull, Unavailable: it cannot be made.

        Durability: all but the name itself, which the caller makes durable with the directory.
        """
        create_environment(os.path.join(directory, name), files, TABLES, "index")

    @classmethod
    def add_missing_tables(cls, directory: str, files: Files, *, dry_run: bool) -> list[str]:
        """Make the tables that an older format did not have; returns their names.

        Raises:
            As :func:`casstore.storage.local.lmdb_env.add_missing_tables`.
        """
        return add_missing_tables(os.path.join(directory, _DIRECTORY), files, TABLES, "index", dry_run=dry_run)

    @staticmethod
    def verify_closed(directory: str, files: Files) -> None:
        """Do what :meth:`verify_storage` does, before the index of a store directory is opened.

        Raises:
            NotInitialised: there is none.
            DamagedObject, Unavailable: as :meth:`verify_storage`.
        """
        verify_closed(os.path.join(directory, _DIRECTORY), files, "index")

    def has(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        """See the role."""
        return self._present(self._kinds[kind], ids)

    def locate(self, kind: ObjectKind, ids: Sequence[bytes], *, live: bool = False) -> list[Location | None]:
        """See the role."""
        rows: dict[bytes, Location | None] = {}
        packs: dict[int, PackId] = {}
        database, condemned = self._kinds[kind], self._condemned
        prefix = bytes((kind,))
        location = self._rows.location
        with self._environment.read() as transaction:
            get = transaction.get
            for key in sorted_ids(ids):
                value = get(key, None, database)
                if value is None and not live:
                    value = get(prefix + key, None, condemned)
                    value = value and value[: PLACE.size]
                rows[key] = None if value is None else location(transaction, value, packs)
        return [rows[key] for key in ids]

    def remember(
        self,
        packs: Sequence[tuple[PackRecord, Sequence[FrameRow]]] = (),
        *,
        memo: Sequence[bytes] = (),
        files: Sequence[FileProof] = (),
    ) -> None:
        """See the role."""
        for _, frames in packs:
            for frame in frames:
                check_id(frame.id)
        tables = ((self._memo, sorted_ids(memo)), (self._file_memo, sorted({file_key(proof) for proof in files})))
        if not packs and not memo and not files:
            return
        with self._environment.write() as transaction:
            for database, keys in tables:
                if keys:
                    with transaction.cursor(database) as cursor:
                        cursor.putmulti([(key, b"") for key in keys], overwrite=False)
            for pack, frames in packs:
                self._add_pack(transaction, pack, frames)

    def add_pack(self, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        """See the role."""
        self.remember([(pack, frames)])

    def _add_pack(self, transaction: Transaction, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        if transaction.get(pack.pack, None, self._packs) is not None:
            return
        retired = transaction.pop(pack.pack, self._retired)
        if retired is None:
            number = self.add_record(transaction, pack)
        else:
            # It was about to be deleted, and came again under its own name.
            number = self._rows.number(retired)
            transaction.put(pack.pack, PACK.pack(*RETIRED.unpack_from(retired)[:3]), db=self._packs)
        for kind, database in self._kinds.items():
            # Sorted, so that one pass over the tree touches each of its pages once.
            rows = sorted(
                (row.id, PLACE.pack(number, row.offset, row.stored_length, row.plain_length))
                for row in frames
                if row.kind == kind
            )
            if rows:
                with transaction.cursor(database) as cursor:
                    cursor.putmulti(rows, overwrite=False)
        # What was taken out of use and comes anew is in use again, at its new place.
        for other in (self._condemned, self._quarantine):
            if transaction.stat(other)["entries"]:
                for row in frames:
                    transaction.delete(kind_key(row.kind, row.id), db=other)

    def add_frames(self, pack: PackId, frames: Sequence[FrameRow]) -> None:
        """See the role."""
        with self._environment.write() as transaction:
            value = transaction.get(pack, None, self._packs)
            if value is None:
                raise PackNotFound(f"the index does not know pack {pack}")
            number = self._rows.number(value)
            for frame in frames:
                check_id(frame.id)
                place = PLACE.pack(number, frame.offset, frame.stored_length, frame.plain_length)
                transaction.put(frame.id, place, db=self._kinds[frame.kind], overwrite=False)
                for other in (self._condemned, self._quarantine):
                    transaction.delete(kind_key(frame.kind, frame.id), db=other)

    def pack(self, pack: PackId) -> PackRecord | None:
        """See the role."""
        with self._environment.read() as transaction:
            value = transaction.get(pack, None, self._packs)
        return None if value is None else self._rows.record(pack, value)

    def packs(self, *, after: PackId | None = None, limit: int) -> list[PackRecord]:
        """See the role."""
        with self._environment.read() as transaction:
            rows = rows_behind(transaction, self._packs, after or b"", limit)
        return [self._rows.record(PackId(key), value) for key, value in rows]

    def objects(self, kind: ObjectKind, *, after: bytes = b"", limit: int) -> list[tuple[bytes, Location]]:
        """See the role."""
        packs: dict[int, PackId] = {}
        with self._environment.read() as transaction:
            rows = rows_behind(transaction, self._kinds[kind], after, limit)
            return [(key, self._rows.location(transaction, value, packs)) for key, value in rows]

    def count(self, kind: ObjectKind) -> int:
        """See the role."""
        with self._environment.read() as transaction:
            return transaction.stat(self._kinds[kind])["entries"]

    def memo_has(self, keys: Sequence[bytes]) -> list[bool]:
        """See the role."""
        return self._present(self._memo, keys)

    def memo_add(self, keys: Sequence[bytes]) -> None:
        """See the role."""
        self.remember(memo=keys)

    def memo_drop(self, keys: Sequence[bytes]) -> None:
        """See the role."""
        with self._environment.write() as transaction:
            for key in sorted_ids(keys):
                transaction.delete(key, db=self._memo)

    def files_have(self, proofs: Sequence[FileProof]) -> list[bool]:
        """See the role."""
        keys = [file_key(proof) for proof in proofs]
        with self._environment.read() as transaction:
            return [transaction.get(key, None, self._file_memo) is not None for key in keys]

    def files_add(self, proofs: Sequence[FileProof]) -> None:
        """See the role."""
        self.remember(files=proofs)

    def copy_to(self, descriptor: int) -> None:
        """See the role :class:`~casstore.storage.roles.Copyable`."""
        self._environment.copy_to(descriptor)

    def close(self) -> None:
        """See the role."""
        self._environment.close()

    def _present(self, database: Database, ids: Sequence[bytes]) -> list[bool]:
        wanted = sorted_ids(ids)
        with self._environment.read() as transaction:
            get = transaction.get
            found = {key for key in wanted if get(key, None, database) is not None}
        return [key in found for key in ids]
