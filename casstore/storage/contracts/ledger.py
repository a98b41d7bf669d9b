"""What a :class:`~casstore.storage.roles.Ledger` promises."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from casstore.errors import StateError
from casstore.storage.contracts.expect import raises, run_threads
from casstore.storage.roles import Ledger, LedgerView, Table

KEYS = (
    b"\x00",
    b"a",
    b"a\x00",
    b"a\x00\x01",
    b"a\x00\xff",
    b"ab",
    b"a\xff",
    b"a\xff\xff",
    b"b",
    b"\xff",
    b"\xff\xff\x01",
)
"""Keys in order, with the borders that prefix scans get wrong."""


class _GaveUp(Exception):
    """What a test raises inside a transaction to have it rolled back."""


def fill(ledger: Ledger, table: Table, keys: tuple[bytes, ...] = KEYS) -> None:
    """Write each key with itself, reversed, as its value."""
    with ledger.write() as transaction:
        for key in reversed(keys):
            transaction.put(table, key, key[::-1])


def keys_of(view: LedgerView, table: Table) -> list[bytes]:
    """All keys of a table."""
    return [key for key, _ in view.scan(table, limit=1000)]


class LedgerContract(ABC):
    """One transaction over a few ordered tables."""

    @abstractmethod
    def make(self) -> Ledger:
        """An empty ledger."""

    def test_a_new_ledger_is_empty(self) -> None:
        """Every table of the role exists from the start, so no reader needs a special case."""
        ledger = self.make()
        with ledger.read() as view:
            for table in Table:
                assert view.get(table, b"x") is None
                assert view.scan(table, limit=10) == []
                assert view.scan(table, limit=10, reverse=True) == []
                assert view.count(table) == 0
        ledger.close()

    def test_committed_rows_are_read_back(self) -> None:
        """The log is these rows."""
        ledger = self.make()
        with ledger.write() as transaction:
            transaction.put(Table.ENTRIES, b"k", b"v")
            transaction.put(Table.NODES, b"k", b"")
            transaction.put(Table.ENTRIES, b"long", b"x" * 61_440)
            transaction.put(Table.ENTRIES, b"K" * 511, b"y")
        with ledger.read() as view:
            assert view.get(Table.ENTRIES, b"k") == b"v"
            assert view.get(Table.NODES, b"k") == b""
            assert view.get(Table.STATE, b"k") is None
            assert view.get(Table.ENTRIES, b"long") == b"x" * 61_440
            assert view.get(Table.ENTRIES, b"K" * 511) == b"y"
            assert view.count(Table.ENTRIES) == 3
        ledger.close()

    def test_put_replaces_and_delete_removes(self) -> None:
        """A pointer's row is replaced at each flip; a token's is removed when it is revoked."""
        ledger = self.make()
        fill(ledger, Table.POINTERS, (b"a", b"b", b"c"))
        with ledger.write() as transaction:
            transaction.put(Table.POINTERS, b"a", b"new")
            transaction.delete(Table.POINTERS, b"b")
            transaction.delete(Table.POINTERS, b"never there")
        with ledger.read() as view:
            assert view.scan(Table.POINTERS, limit=10) == [(b"a", b"new"), (b"c", b"c")]
            assert view.count(Table.POINTERS) == 2
        ledger.close()

    def test_keys_out_of_bounds_are_refused(self) -> None:
        """A key that one implementation cuts and another keeps would make two ledgers disagree."""
        ledger = self.make()
        with ledger.write() as transaction:
            for key in (b"", b"k" * 512):
                with raises(ValueError):
                    transaction.put(Table.META, key, b"v")
                assert transaction.get(Table.META, key) is None
                transaction.delete(Table.META, key)
        ledger.close()

    def test_a_transaction_sees_its_own_writes(self) -> None:
        """Appending a batch computes each entry from the one before."""
        ledger = self.make()
        fill(ledger, Table.STATE, (b"a", b"b"))
        with ledger.write() as transaction:
            transaction.put(Table.STATE, b"aa", b"1")
            transaction.delete(Table.STATE, b"b")
            assert transaction.get(Table.STATE, b"aa") == b"1"
            assert transaction.get(Table.STATE, b"b") is None
            assert keys_of(transaction, Table.STATE) == [b"a", b"aa"]
            assert transaction.count(Table.STATE) == 2
        ledger.close()

    def test_a_transaction_that_raises_leaves_nothing(self) -> None:
        """A refused flip must not leave its entry without its pointer, in any table."""
        ledger = self.make()
        fill(ledger, Table.ENTRIES, (b"a",))
        with raises(_GaveUp), ledger.write() as transaction:
            transaction.put(Table.ENTRIES, b"a", b"changed")
            transaction.put(Table.ENTRIES, b"b", b"new")
            transaction.put(Table.POINTERS, b"p", b"new")
            raise _GaveUp
        with ledger.read() as view:
            assert view.scan(Table.ENTRIES, limit=10) == [(b"a", b"a")]
            assert view.count(Table.POINTERS) == 0
        fill(ledger, Table.ENTRIES, (b"c",))
        with ledger.read() as view:
            assert keys_of(view, Table.ENTRIES) == [b"a", b"c"]
        ledger.close()

    def test_a_view_does_not_move(self) -> None:
        """A proof is built from many rows of one moment; a commit in between must not show in it."""
        ledger = self.make()
        fill(ledger, Table.NODES, (b"a",))
        with ledger.read() as view:
            assert view.get(Table.NODES, b"a") == b"a"
            with ledger.write() as transaction:
                transaction.put(Table.NODES, b"a", b"later")
                transaction.put(Table.NODES, b"b", b"later")
                assert view.get(Table.NODES, b"b") is None
            assert view.get(Table.NODES, b"a") == b"a"
            assert keys_of(view, Table.NODES) == [b"a"]
            assert view.count(Table.NODES) == 1
            with ledger.read() as newer:
                assert newer.get(Table.NODES, b"b") == b"later"
        ledger.close()

    def test_nobody_sees_what_is_not_committed(self) -> None:
        """A reader on another thread that saw a flip before its commit could deploy what never happened."""
        ledger = self.make()
        seen: list[bytes | None] = []

        def read() -> None:
            with ledger.read() as view:
                seen.append(view.get(Table.POINTERS, b"p"))

        with ledger.write() as transaction:
            transaction.put(Table.POINTERS, b"p", b"v")
            run_threads([read])
        run_threads([read])
        assert seen == [None, b"v"]
        ledger.close()

    def test_scan_gives_rows_in_key_order(self) -> None:
        """History and listings are pages of such scans."""
        ledger = self.make()
        fill(ledger, Table.HISTORY)
        with ledger.read() as view:
            rows = [(key, key[::-1]) for key in KEYS]
            assert view.scan(Table.HISTORY, limit=100) == rows
            assert view.scan(Table.HISTORY, limit=100, reverse=True) == rows[::-1]
            assert view.scan(Table.HISTORY, limit=4) == rows[:4]
            assert view.scan(Table.HISTORY, limit=4, reverse=True) == rows[:-5:-1]
            assert view.scan(Table.HISTORY, limit=0) == []
            assert view.scan(Table.HISTORY, limit=0, reverse=True) == []
        ledger.close()

    def test_scan_keeps_every_combination_of_bounds(self) -> None:
        """A scan one row too wide shows one pointer's flips as another's; one too narrow hides the newest flip."""
        ledger = self.make()
        fill(ledger, Table.HISTORY)
        long = b"a" + b"\x00" * 600
        bounds = (
            None,
            b"",
            b"\x00",
            b"a",
            b"a\x00",
            b"a\x00\x80",
            b"a\xff",
            b"aa",
            b"b",
            b"\xff\xff",
            b"\xff" * 3,
            long,
        )
        prefixes = (b"", b"a", b"a\x00", b"a\xff", b"b", b"c", b"\xff", b"\xff\xff", long)
        with ledger.read() as view:
            for prefix in prefixes:
                for after in bounds:
                    for before in bounds:
                        wanted = [
                            key
                            for key in KEYS
                            if key.startswith(prefix)
                            and (after is None or key > after)
                            and (before is None or key < before)
                        ]
                        asked = {"prefix": prefix, "after": after, "before": before}
                        up = view.scan(Table.HISTORY, prefix=prefix, after=after, before=before, limit=100)
                        assert [key for key, _ in up] == wanted, asked
                        down = view.scan(
                            Table.HISTORY, prefix=prefix, after=after, before=before, limit=2, reverse=True
                        )
                        assert [key for key, _ in down] == wanted[::-1][:2], asked
        ledger.close()

    def test_a_view_ends_with_its_block(self) -> None:
        """A view that is kept alive pins old pages and lets the file grow without bound."""
        ledger = self.make()
        with ledger.read() as view:
            pass
        with raises(StateError):
            view.get(Table.META, b"k")
        with ledger.write() as transaction:
            transaction.put(Table.META, b"k", b"v")
        with raises(StateError):
            transaction.put(Table.META, b"k", b"w")
        with raises(StateError):
            transaction.scan(Table.META, limit=1)
        with ledger.read() as view:
            assert view.get(Table.META, b"k") == b"v"
        ledger.close()

    def test_writing_goes_on_after_another_thread_has_written(self) -> None:
        """The writer thread may be replaced while the ledger stays open."""
        ledger = self.make()
        run_threads([lambda: fill(ledger, Table.META, (b"a",))])
        fill(ledger, Table.META, (b"b",))
        with ledger.read() as view:
            assert keys_of(view, Table.META) == [b"a", b"b"]
        ledger.close()

    def test_readers_see_transactions_whole(self) -> None:
        """A pointer that is visible before its log entry is a flip without proof."""
        ledger = self.make()
        done = threading.Event()

        def write() -> None:
            try:
                for number in range(50):
                    with ledger.write() as transaction:
                        transaction.put(Table.ENTRIES, b"n", b"%d" % number)
                        transaction.put(Table.POINTERS, b"n", b"%d" % number)
            finally:
                done.set()

        def read() -> None:
            while True:
                last = done.is_set()
                with ledger.read() as view:
                    assert view.get(Table.POINTERS, b"n") == view.get(Table.ENTRIES, b"n")
                if last:
                    return

        run_threads([write, read, read])
        ledger.close()

    def test_a_closed_ledger_refuses(self) -> None:
        """A request that outlives shutdown must fail, not write."""
        ledger = self.make()
        ledger.close()
        ledger.close()
        with raises(StateError), ledger.read():
            pass
        with raises(StateError), ledger.write():
            pass


class DurableLedgerContract(LedgerContract):
    """What also holds for a ledger that outlives its process."""

    @abstractmethod
    def reopen(self, ledger: Ledger) -> Ledger:
        """Close ``ledger`` and open the same one again."""

    def test_what_was_committed_survives_and_nothing_else(self) -> None:
        """After a restart the log is what was acknowledged."""
        ledger = self.make()
        for table in Table:
            fill(ledger, table)
        with raises(_GaveUp), ledger.write() as transaction:
            transaction.put(Table.ENTRIES, b"rolled back", b"x")
            raise _GaveUp
        ledger = self.reopen(ledger)
        with ledger.read() as view:
            for table in Table:
                assert view.scan(table, limit=100) == [(key, key[::-1]) for key in KEYS]
        ledger.close()
