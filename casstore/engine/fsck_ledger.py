"""The judge of a store's ledger: is the log what was signed, and does everything beside it follow from it?

Owns the checks of the log and of all that is derived from it.  It believes nothing that is stored but the entries' bytes: it
hashes them, recomputes every node of the log tree, replays every entry through :mod:`casstore.transitions`, signatures
included, and holds state, pointers, history, marks, snapshots, policies and intents against what the replay gives.

It changes nothing, and runs while a server serves: it looks at one moment.

Memory: the state, one record a pointer, one row a mark, and the findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from casstore.engine.findings import Findings
from casstore.engine.history import lookup_rows
from casstore.engine.log import LogHead
from casstore.engine.nodes import (
    decode_index,
    encode_index,
    encode_node,
    node_reader,
    read_size,
)
from casstore.engine.records import MarkRecord, SnapshotRecord, decode_record, derive, mark_key
from casstore.engine.submissions import decode_remembered
from casstore.engine.tokens import check_token_row
from casstore.errors import CasstoreError, DamagedObject, Unsupported
from casstore.formats.acts import Verdict
from casstore.formats.entry import TokenAuth, decode_entry
from casstore.ids import IntentId, PointerName, SnapshotDigest
from casstore.limits import TILE_WIDTH
from casstore.merkle import Frontier, leaf_hash, root_at
from casstore.storage.roles import Ledger, LedgerView, Table
from casstore.transitions.lookup import HistoryRow
from casstore.transitions.machine import Machine
from casstore.transitions.replay import replay_planned

_BATCH: Final = TILE_WIDTH
_WRITE_ONCE: Final = frozenset({Table.HISTORY, Table.SNAPSHOTS, Table.SNAPSHOT_ORDER, Table.POLICIES, Table.INTENTS})
_RESTORE: Final = "restore the ledger from a backup, or the entries from a mirror or bundle"


def fsck_ledger(ledger: Ledger, heads: Sequence[LogHead], findings: Findings, *, origin: str | None = None) -> None:
    """Check the log and everything that follows from it.

    Args:
        ledger: the ledger.
        heads: the signed heads, read *before* this is called: the log only grows.
        findings: takes what is found.
        origin: the log's; None takes the genesis's word.
    """
    with ledger.read() as view:
        judge = _Judge(view, findings, origin)
        judge.check_entries()
        judge.check_nodes()
        judge.check_heads(heads)
        judge.check_derived()
        judge.check_unlogged()


class _Rows:
    """What the replay derives: what changes is kept, what is written once is compared with the ledger and let go.

    Implements :class:`casstore.engine.records.Rows`.
    """

    def __init__(self, view: LedgerView, findings: Findings) -> None:
        self._view = view
        self._findings = findings
        self.kept: dict[Table, dict[bytes, bytes]] = {Table.POINTERS: {}, Table.MARKS: {}}
        self.written = dict.fromkeys(_WRITE_ONCE, 0)
        self.index = 0
        """The entry that is being replayed."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """A row as the replay has it."""
        return self.kept[table].get(key)

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Keep the row, or compare it."""
        if table in self.kept:
            self.kept[table][key] = value
            return
        self.written[table] += 1
        self.compare(table, key, value)

    def delete(self, table: Table, key: bytes) -> None:
        """Drop a row that is kept."""
        self.kept[table].pop(key, None)

    def compare(self, table: Table, key: bytes, expected: bytes) -> None:
        """Hold one stored row against what the log gives."""
        found = self._view.get(table, key)
        if found != expected:
            self._findings.error(
                "wrong-row" if found is not None else "missing-row",
                f"{table.value} {_show(key)}",
                where=f"ledger, table {table.value}; derived from entry {self.index}",
                expected=_show(expected),
                found="nothing" if found is None else _show(found),
                hint=_RESTORE,
            )


class _Lookup:
    """What the transitions ask, answered from rows that the replay has verified so far."""

    def __init__(self, view: LedgerView, rows: _Rows, machine: Machine) -> None:
        self._view = view
        self._rows = rows
        self._machine = machine
        self._read_nodes = node_reader(view)

    def history(self, pointer: PointerName) -> Iterator[HistoryRow]:
        """See :class:`casstore.transitions.lookup.Lookup`."""
        leaf = self._machine.state.pointer(pointer)
        return iter(()) if leaf is None else lookup_rows(self._view, pointer, leaf.seq)

    def marks(self, pointer: PointerName, snapshot: SnapshotDigest) -> Verdict | None:
        """See :class:`casstore.transitions.lookup.Lookup`."""
        row = self._rows.get(Table.MARKS, mark_key(pointer, snapshot))
        return None if row is None else decode_record(row, MarkRecord, f"mark of {snapshot} on {pointer}").verdict

    def snapshot_published(self, digest: SnapshotDigest) -> bool:
        """See :class:`casstore.transitions.lookup.Lookup`."""
        row = self._view.get(Table.SNAPSHOTS, digest)
        return row is not None and decode_record(row, SnapshotRecord, f"snapshot {digest}").entry < self._machine.size

    def is_complete(self, snapshot: SnapshotDigest) -> bool | None:
        """Which content was there when an old entry was written cannot be known."""
        return None

    def missing(self, snapshot: SnapshotDigest) -> tuple[list[str], int]:
        """Never asked: nothing is said to be incomplete."""
        return [], 0

    def root_at(self, size: int) -> bytes:
        """See :class:`casstore.transitions.lookup.Lookup`."""
        return root_at(size, self._read_nodes)


class _Judge:
    """The checks, in order: each leans on those before it."""

    def __init__(self, view: LedgerView, findings: Findings, origin: str | None) -> None:
        self._view = view
        self._findings = findings
        self._size = read_size(view)
        self._frontier = Frontier()
        self._machine = Machine(origin)
        self._rows = _Rows(view, findings)
        self._lookup = _Lookup(view, self._rows, self._machine)
        self._replaying = True

    # --- the log -------------------------------------------------------------------------------------------------------

    def check_entries(self) -> None:
        """Entries are there without a gap, are canonical, hash to their leaves, and follow from those before."""
        after: bytes | None = None
        while rows := self._view.scan(Table.ENTRIES, after=after, limit=_BATCH):
            after = rows[-1][0]
            for key, data in rows:
                if key != encode_index(self._frontier.size):
                    self._wrong_entry(
                        "missing-entry", self._frontier.size, "an entry", f"the next one has the key {_show(key)}"
                    )
                    self._replaying = False
                    return
                self._check_entry(self._frontier.size, data)

    def _check_entry(self, index: int, data: bytes) -> None:
        self._findings.count("entries")
        stored = self._view.get(Table.NODES, encode_node(0, index))
        if stored != leaf_hash(data):
            self._wrong_entry(
                "wrong-leaf",
                index,
                f"bytes that hash to {_show(stored)}",
                f"bytes that hash to {leaf_hash(data).hex()}",
            )
        for (level, position), value in self._frontier.append(leaf_hash(data)):
            found = self._view.get(Table.NODES, encode_node(level, position))
            if found != value and level > 0:
                self._findings.error(
                    "wrong-node",
                    f"log node {level}/{position}",
                    where=f"ledger, table nodes; completed by entry {index}",
                    expected=value.hex(),
                    found=_show(found),
                    hint=_RESTORE,
                )
        if self._replaying:
            self._replay(index, data)

    def _replay(self, index: int, data: bytes) -> None:
        self._rows.index = index
        try:
            planned = replay_planned(self._machine, data, self._lookup)
        except Unsupported as error:
            self._replaying = False
            self._findings.notice(
                error.code,
                f"log entry {index}",
                where="ledger, table entries",
                expected="an act that is known here",
                found=error.detail,
            )
            return
        except CasstoreError as error:
            # What the entries behind it do cannot be judged; their bytes still can.
            self._replaying = False
            self._wrong_entry("wrong-entry", index, "an entry that follows from what was signed", error.detail)
            return
        if planned.intent_id is not None and self._earlier(planned.intent_id, index):
            self._wrong_entry(
                "repeated-intent", index, "an intent that is carried out once", f"intent {planned.intent_id}"
            )
        derive(self._rows, planned)

    def _earlier(self, intent: IntentId, index: int) -> bool:
        row = self._view.get(Table.INTENTS, intent)
        return row is not None and len(row) == 8 and decode_index(row) < index

    def _wrong_entry(self, code: str, index: int, expected: str, found: str) -> None:
        self._findings.error(
            code, f"log entry {index}", where="ledger, table entries", expected=expected, found=found, hint=_RESTORE
        )

    def check_nodes(self) -> None:
        """There are as many nodes as complete subtrees."""
        expected, width = 0, self._frontier.size
        while width:
            expected += width
            width >>= 1
        found = self._view.count(Table.NODES)
        self._findings.count("nodes", found)
        if found != expected:
            self._count_error(Table.NODES, expected, found)

    def check_heads(self, heads: Sequence[LogHead]) -> None:
        """Every head that was signed is a beginning of the log."""
        read = node_reader(self._view)
        if self._size and not heads:
            self._findings.error(
                "missing-head",
                "signed heads",
                where="signed-heads",
                expected="at least one head",
                found="none",
                hint="restore signed-heads from a backup that is not older than the ledger",
            )
        for size, root in heads:
            self._findings.count("heads")
            try:
                found = root_at(size, read).hex() if size <= self._size else f"a log of {self._size} entries"
            except DamagedObject as error:
                found = error.detail
            if found != root.hex():
                self._findings.error(
                    "wrong-head",
                    f"signed head of size {size}",
                    where="signed-heads",
                    expected=root.hex(),
                    found=found,
                    hint="this is an older copy of the store, or another history: it must not sign anything",
                )
        if self._frontier.size == self._size and self._size:
            try:
                found = root_at(self._size, read).hex()
            except DamagedObject as error:
                found = error.detail
            if found != self._frontier.root.hex():
                self._findings.error(
                    "wrong-root",
                    f"root of the log at {self._size}",
                    where="ledger, table nodes",
                    expected=self._frontier.root.hex(),
                    found=found,
                    hint=_RESTORE,
                )

    # --- what follows from it --------------------------------------------------------------------------------------------

    def check_derived(self) -> None:
        """State, pointers, marks as they are now, and no row too many in any derived table."""
        if not self._replaying:
            self._findings.notice(
                "not-replayed",
                f"entries from {self._machine.size} on",
                where="ledger",
                expected="a log that can be replayed to its end",
                found="state, pointers and history behind that entry were not checked",
            )
            return
        self._rows.index = max(0, self._size - 1)
        state = {leaf.key.encode(): leaf.encode() for leaf in self._machine.state.leaves()}
        for table, rows in ((Table.STATE, state), *self._rows.kept.items()):
            self._findings.count(f"{table.value} rows", len(rows))
            for key, value in rows.items():
                self._rows.compare(table, key, value)
            self._check_count(table, len(rows))
        for table, number in self._rows.written.items():
            self._findings.count(f"{table.value} rows", number)
            if table is not Table.INTENTS:
                self._check_count(table, number)

    def _check_count(self, table: Table, expected: int) -> None:
        found = self._view.count(table)
        if found != expected:
            self._count_error(table, expected, found)

    def _count_error(self, table: Table, expected: int, found: int) -> None:
        self._findings.error(
            "wrong-count",
            f"table {table.value}",
            where="ledger",
            expected=f"{expected} rows, as the log gives",
            found=f"{found} rows",
            hint=_RESTORE,
        )

    def check_unlogged(self) -> None:
        """What was asked for under idempotency keys leads to entries; tokens can be read."""
        derived = 0
        for key, row in self._all(Table.INTENTS):
            if len(key) == IntentId.SIZE:
                derived += 1
                continue
            try:
                entry = decode_entry(self._view.get(Table.ENTRIES, encode_index(decode_remembered(row).entry)) or b"")
                if not isinstance(entry.auth, TokenAuth):
                    raise DamagedObject(f"entry {entry.idx} was signed", object="idempotency key", where="ledger")
            except CasstoreError as error:
                self._findings.damage(error, object=f"idempotency key {_show(key)}", where="ledger, table intents")
        if self._replaying and derived != self._rows.written[Table.INTENTS]:
            self._count_error(Table.INTENTS, self._rows.written[Table.INTENTS], derived)
        for key, row in self._all(Table.TOKENS):
            self._findings.count("tokens")
            try:
                check_token_row(key, row)
            except CasstoreError as error:
                self._findings.damage(error, object=f"token {_show(key)}", where="ledger, table tokens")

    def _all(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while rows := self._view.scan(table, after=after, limit=_BATCH):
            after = rows[-1][0]
            yield from rows


def _show(data: bytes | None) -> str:
    """Bytes for a person: text where it is, else hex; never more than a line."""
    if data is None:
        return "nothing"
    text = data.decode("ascii", "replace")
    return (text if text.isprintable() and "\ufffd" not in text else data.hex())[:200]
