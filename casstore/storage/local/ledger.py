"""The ledger on one machine: each table of the role is a table of one LMDB environment below ``ledger/``.

Owns: the mapping of tables, and scans.  Knows nothing of what the rows mean.

Invariants: one transaction is one LMDB transaction, so all of it is durable or none of it is; a row of a table beside the
log is handed out only if it matches its checksum (:mod:`casstore.storage.local.row_checks`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import lmdb

from casstore.errors import StateError
from casstore.storage.local.files import Files
from casstore.storage.local.lmdb_env import (
    Database,
    LmdbEnvironment,
    Transaction,
    add_missing_tables,
    create_environment,
    verify_closed,
)
from casstore.storage.local.row_checks import open_row, seal_row
from casstore.storage.roles import Table

KEY_MAX_BYTES: Final = 511  # LMDB's own bound, compiled in
_DIRECTORY: Final = "ledger"
_NAMES: Final = {table: table.value.encode("ascii") for table in Table}
# Beside the log: nothing else says what stands there.
_CHECKED: Final = frozenset(
    {Table.ARTIFACTS, Table.ARTIFACT_NAMES, Table.TOKENS, Table.PINS, Table.PENDING, Table.ALIASES}
)
# LIMIT: rows that are looked at in one go.
_VERIFIED_ROWS: Final = 1000


class LocalLedger:
    """Implements :class:`~casstore.storage.roles.Ledger`.

    Args:
        directory: the store directory; the ledger lies below it, in ``ledger/``.
        files: how commits reach the disk.

    Raises:
        NotInitialised: there is no ledger.
        DamagedObject: what is there is not one.
        StoreBusy: this process has it open already.
    """

    def __init__(self, directory: str, files: Files) -> None:
        path = os.path.join(directory, _DIRECTORY)
        self._environment = LmdbEnvironment(path, files, list(_NAMES.values()), "ledger")
        self._tables = {table: self._environment.tables[name] for table, name in _NAMES.items()}

    @classmethod
    def lay_out(cls, directory: str, files: Files) -> None:
        """Make an empty ledger in a store directory.

        Raises:
            DestinationExists: there is one.
            StoreFull, Unavailable: it cannot be made.

        Durability: all but the name ``ledger`` itself, which the caller makes durable with the directory.
        """
        create_environment(os.path.join(directory, _DIRECTORY), files, list(_NAMES.values()), "ledger")

    @classmethod
    def add_missing_tables(cls, directory: str, files: Files, *, dry_run: bool) -> list[str]:
        """Make the tables that an older format did not have; returns their names.

        Raises:
            As :func:`casstore.storage.local.lmdb_env.add_missing_tables`.
        """
        return add_missing_tables(
            os.path.join(directory, _DIRECTORY), files, list(_NAMES.values()), "ledger", dry_run=dry_run
        )

    @staticmethod
    def verify_closed(directory: str, files: Files) -> None:
        """Do what :meth:`verify_storage` does, before the ledger of a store directory is opened.

        Raises:
            NotInitialised: there is none.
            DamagedObject, Unavailable: as :meth:`verify_storage`.
        """
        verify_closed(os.path.join(directory, _DIRECTORY), files, "ledger")

    @contextmanager
    def read(self) -> Iterator[LocalLedgerView]:
        """See the role."""
        with self._environment.read() as transaction:
            view = LocalLedgerView(transaction, self._tables)
            try:
                yield view
            finally:
                view.end()

    @contextmanager
    def write(self) -> Iterator[LocalLedgerTransaction]:
        """See the role.

        Raises:
            StateError: another write transaction is open.
        """
        with self._environment.write() as transaction:
            view = LocalLedgerTransaction(transaction, self._tables)
            try:
                yield view
            finally:
                view.end()

    def copy_to(self, descriptor: int) -> None:
        """See the role :class:`~casstore.storage.roles.Copyable`."""
        self._environment.copy_to(descriptor)

    def verify_storage(self) -> None:
        """See the role."""
        self._environment.verify()
        with self.read() as view:
            for table in sorted(_CHECKED, key=lambda table: table.value):
                after: bytes | None = None
                while rows := view.scan(table, after=after, limit=_VERIFIED_ROWS):
                    after = rows[-1][0]

    def close(self) -> None:
        """See the role."""
        self._environment.close()


class LocalLedgerView:
    """Implements :class:`~casstore.storage.roles.LedgerView` over one LMDB transaction."""

    __slots__ = ("_open", "_tables", "_transaction")

    def __init__(self, transaction: Transaction, tables: dict[Table, Database]) -> None:
        self._transaction = transaction
        self._tables = tables
        self._open = True

    def end(self) -> None:
        """Refuse every later call: the transaction is over."""
        self._open = False

    def _table(self, table: Table) -> Database:
        if not self._open:
            raise StateError("this view of the ledger has ended")
        return self._tables[table]

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See the role."""
        database = self._table(table)
        # LMDB refuses keys that no row can have; the answer to the question is still "none".
        value = self._transaction.get(key, None, database) if 0 < len(key) <= KEY_MAX_BYTES else None
        return value if value is None or table not in _CHECKED else open_row(_NAMES[table], key, value, "ledger")

    def scan(
        self,
        table: Table,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        before: bytes | None = None,
        reverse: bool = False,
        limit: int,
    ) -> list[tuple[bytes, bytes]]:
        """See the role."""
        database = self._table(table)
        rows: list[tuple[bytes, bytes]] = []
        if limit <= 0:
            return rows
        with self._transaction.cursor(database) as cursor:
            if reverse:
                found = _seek_below(cursor, _upper(prefix, before))
                step = cursor.iterprev
            else:
                start = max(prefix, b"" if after is None else after)[:KEY_MAX_BYTES]
                found = cursor.set_range(start) if start else cursor.first()
                if found and after is not None and cursor.key() <= after:
                    found = cursor.next()
                step = cursor.iternext
            if not found:
                return rows
            for key, value in step():
                if not key.startswith(prefix):
                    break
                if reverse:
                    if after is not None and key <= after:
                        break
                elif before is not None and key >= before:
                    break
                rows.append((key, value))
                if len(rows) == limit:
                    break
        if table in _CHECKED:
            return [(key, open_row(_NAMES[table], key, value, "ledger")) for key, value in rows]
        return rows

    def count(self, table: Table) -> int:
        """See the role."""
        return self._transaction.stat(self._table(table))["entries"]


def _upper(prefix: bytes, before: bytes | None) -> bytes | None:
    """The least key that is above every wanted one, or None if there is no such bound."""
    stem = prefix.rstrip(b"\xff")
    behind = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
    if before is None or behind is None:
        return behind if before is None else before
    return min(behind, before)


def _seek_below(cursor: lmdb.Cursor[bytes], upper: bytes | None) -> bool:
    """Move to the greatest key below ``upper``; False if there is none."""
    if upper is None:
        return cursor.last()
    if not upper:
        return False
    if not cursor.set_range(upper[:KEY_MAX_BYTES]):
        return cursor.last()
    return cursor.prev() if cursor.key() >= upper else True


class LocalLedgerTransaction(LocalLedgerView):
    """Implements :class:`~casstore.storage.roles.LedgerTransaction`."""

    __slots__ = ()

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """See the role.

        Raises:
            ValueError: the key is empty or longer than 511 bytes.
        """
        database = self._table(table)
        if not 0 < len(key) <= KEY_MAX_BYTES:
            raise ValueError(f"a ledger key has 1 to {KEY_MAX_BYTES} bytes, this has {len(key)}")
        if table in _CHECKED:
            value = seal_row(_NAMES[table], key, value)
        self._transaction.put(key, value, db=database)

    def delete(self, table: Table, key: bytes) -> None:
        """See the role."""
        database = self._table(table)
        if 0 < len(key) <= KEY_MAX_BYTES:
            self._transaction.delete(key, db=database)
