"""What a :class:`~casstore.storage.roles.PackStore` promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from typing import Final

from casstore.errors import Conflict, DamagedObject, PackNotFound, StateError
from casstore.ids import PackId
from casstore.storage.contracts.expect import raises, run_threads
from casstore.storage.roles import PackStore

_LARGE_BYTES: Final = 3 * 1024 * 1024 + 17


def pack_id(number: int) -> PackId:
    """A pack id that sorts by ``number`` and is spread over the first byte."""
    return PackId(bytes([number & 0xFF]) + number.to_bytes(15, "big"))


def put(store: PackStore, pack: PackId, data: bytes) -> None:
    """Write one pack whole."""
    writer = store.create(pack)
    writer.write(data)
    writer.commit()


class PackStoreContract(ABC):
    """Put-once immutable objects."""

    @abstractmethod
    def make(self) -> PackStore:
        """An empty store."""

    def test_what_was_written_is_read_back(self) -> None:
        """A store that joins writes wrongly gives every host a damaged pull."""
        store = self.make()
        writer = store.create(pack_id(1))
        writer.write(b"abc")
        writer.write(b"")
        writer.write(memoryview(b"-defghi-")[1:-1])
        writer.commit()
        assert store.size(pack_id(1)) == 9
        assert store.read(pack_id(1), 0, 9) == b"abcdefghi"
        assert store.read(pack_id(1), 2, 3) == b"cde"
        assert store.read(pack_id(1), 9, 0) == b""
        store.close()

    def test_large_packs_keep_every_byte(self) -> None:
        """A write that the system does in parts must not lose the rest."""
        store = self.make()
        data = bytes(range(256)) * (_LARGE_BYTES // 256 + 1)
        put(store, pack_id(1), data[:_LARGE_BYTES])
        assert store.size(pack_id(1)) == _LARGE_BYTES
        assert store.read(pack_id(1), 0, _LARGE_BYTES) == data[:_LARGE_BYTES]
        store.close()

    def test_a_read_beyond_the_end_is_damage(self) -> None:
        """A short read that passed for a whole one would hand cut bytes to the decoder."""
        store = self.make()
        put(store, pack_id(1), b"0123456789")
        for offset, length in ((0, 11), (9, 2), (10, 1), (11, 1), (1 << 40, 1)):
            with raises(DamagedObject):
                store.read(pack_id(1), offset, length)
        store.close()

    def test_an_unknown_pack_is_not_found(self) -> None:
        """Readers tell "rewritten, ask again" from damage by this error."""
        store = self.make()
        with raises(PackNotFound):
            store.read(pack_id(1), 0, 1)
        with raises(PackNotFound):
            store.size(pack_id(1))
        with raises(PackNotFound):
            store.path(pack_id(1))
        store.close()

    def test_a_pack_has_no_name_before_commit(self) -> None:
        """A half-written pack that can be read or listed would be adopted by a rebuild of the index."""
        store = self.make()
        writer = store.create(pack_id(1))
        writer.write(b"half")
        assert store.list(limit=10) == []
        with raises(PackNotFound):
            store.read(pack_id(1), 0, 1)
        writer.commit()
        assert store.list(limit=10) == [pack_id(1)]
        store.close()

    def test_an_aborted_pack_leaves_nothing(self) -> None:
        """A push that broke off must not fill the store, and its pack id may come again."""
        store = self.make()
        writer = store.create(pack_id(1))
        writer.write(b"half")
        writer.abort()
        writer.abort()
        assert store.list(limit=10) == []
        put(store, pack_id(1), b"whole")
        assert store.read(pack_id(1), 0, 5) == b"whole"
        store.close()

    def test_abort_after_commit_changes_nothing(self) -> None:
        """Callers abort in ``finally``; that must not take back what was acknowledged."""
        store = self.make()
        writer = store.create(pack_id(1))
        writer.write(b"kept")
        writer.commit()
        writer.abort()
        assert store.read(pack_id(1), 0, 4) == b"kept"
        store.close()

    def test_an_ended_writer_takes_nothing_more(self) -> None:
        """Bytes behind the footer of a named pack would break "packs never change"."""
        store = self.make()
        for end in ("commit", "abort"):
            writer = store.create(pack_id(len(end)))
            writer.write(b"x")
            getattr(writer, end)()
            with raises(StateError):
                writer.write(b"y")
            with raises(StateError):
                writer.commit()
        assert store.size(pack_id(len("commit"))) == 1
        store.close()

    def test_a_pack_is_put_once(self) -> None:
        """An upload that replaced a pack would change bytes that the index points into."""
        store = self.make()
        put(store, pack_id(1), b"first")
        with raises(Conflict):
            store.create(pack_id(1))
        assert store.read(pack_id(1), 0, 5) == b"first"
        store.close()

    def test_two_open_writers_of_one_name_have_one_winner(self) -> None:
        """A client that retries an upload while the first attempt still runs must not mix or replace bytes."""
        store = self.make()
        first, second = store.create(pack_id(1)), store.create(pack_id(1))
        first.write(b"first")
        second.write(b"SECOND")
        first.commit()
        with raises(Conflict):
            second.commit()
        second.abort()
        assert store.size(pack_id(1)) == 5
        assert store.read(pack_id(1), 0, 5) == b"first"
        assert store.list(limit=10) == [pack_id(1)]
        store.close()

    def test_writers_on_several_threads_do_not_mix(self) -> None:
        """Pushes upload side by side."""
        store = self.make()

        def write(number: int) -> None:
            writer = store.create(pack_id(number))
            for _ in range(50):
                writer.write(bytes([number]) * 100)
            writer.commit()
            assert store.read(pack_id(number), 0, 5000) == bytes([number]) * 5000

        run_threads([partial(write, number) for number in range(8)])
        assert store.list(limit=10) == sorted(pack_id(number) for number in range(8))
        store.close()

    def test_racing_commits_of_one_name_have_one_winner(self) -> None:
        """Put-once must hold when both writers commit in the same instant."""
        store = self.make()
        won: list[int] = []

        def write(number: int) -> None:
            # The slower one meets the name already when it begins.
            with suppress(Conflict):
                writer = store.create(pack_id(1))
                writer.write(bytes([number]) * 10)
                writer.commit()
                won.append(number)

        for _ in range(5):
            won.clear()
            run_threads([partial(write, number) for number in range(4)])
            assert len(won) == 1
            assert store.read(pack_id(1), 0, 10) == bytes(won) * 10
            store.delete(pack_id(1))
        store.close()

    def test_list_pages_through_all_names_in_order(self) -> None:
        """A listing that skips or repeats makes a rebuild of the index forget a pack."""
        store = self.make()
        packs = sorted(pack_id(number) for number in (3, 1, 255, 256, 257, 511, 512, 2, 0))
        for pack in packs:
            put(store, pack, b"x")
        assert store.list(limit=100) == packs
        assert store.list(limit=0) == []
        found: list[PackId] = []
        while page := store.list(after=found[-1] if found else None, limit=2):
            assert len(page) <= 2
            found += page
        assert found == packs
        assert store.list(after=PackId(b"\xff" * 16), limit=5) == []
        store.close()

    def test_a_deleted_pack_is_gone(self) -> None:
        """Collection frees nothing if deleted packs are still there, and fails if deleting twice is an error."""
        store = self.make()
        put(store, pack_id(1), b"one")
        put(store, pack_id(2), b"two")
        assert store.read(pack_id(1), 0, 3) == b"one"
        store.delete(pack_id(1))
        store.delete(pack_id(1))
        with raises(PackNotFound):
            store.read(pack_id(1), 0, 3)
        assert store.list(limit=10) == [pack_id(2)]
        assert store.read(pack_id(2), 0, 3) == b"two"
        store.close()

    def test_a_path_holds_the_pack(self) -> None:
        """The server sends packs straight from this file."""
        store = self.make()
        put(store, pack_id(1), b"bytes of a pack")
        path = store.path(pack_id(1))
        if path is not None:
            with open(path, "rb") as file:
                assert file.read() == b"bytes of a pack"
        store.close()

    def test_many_packs_are_readable_at_once(self) -> None:
        """A store that keeps every pack open runs out of descriptors; one that closes too early reads another file."""
        store = self.make()
        packs = [pack_id(number) for number in range(300)]
        for pack in packs:
            put(store, pack, bytes(pack))

        def read() -> None:
            for pack in packs:
                assert store.read(pack, 0, 16) == bytes(pack)

        run_threads([read] * 4)
        store.close()

    def test_a_closed_store_refuses(self) -> None:
        """A request that outlives shutdown must fail, not write; closing aborts what was open."""
        store = self.make()
        put(store, pack_id(1), b"x")
        writer = store.create(pack_id(2))
        store.close()
        store.close()
        with raises(StateError):
            writer.commit()
        with raises(StateError):
            store.create(pack_id(3))
        with raises(StateError):
            store.read(pack_id(1), 0, 1)
        with raises(StateError):
            store.list(limit=1)


class DurablePackStoreContract(PackStoreContract):
    """What also holds for a store that outlives its process."""

    @abstractmethod
    def reopen(self, store: PackStore) -> PackStore:
        """Close ``store`` and open the same one again."""

    def test_committed_packs_survive_and_others_do_not(self) -> None:
        """An acknowledged push must be there after a restart; a broken-off one must not fill the disk."""
        store = self.make()
        put(store, pack_id(1), b"kept")
        open_writer = store.create(pack_id(2))
        open_writer.write(b"never committed")
        store = self.reopen(store)
        assert store.list(limit=10) == [pack_id(1)]
        assert store.read(pack_id(1), 0, 4) == b"kept"
        with raises(Conflict):
            store.create(pack_id(1))
        store.close()
