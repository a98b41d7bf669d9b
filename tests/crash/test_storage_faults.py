"""Fail every single disk operation of the storage layer, and look at what the next process finds.

The promise under test: what was acknowledged is there after any one failure, crash or power cut, and what was not is
there whole or not at all.  If it breaks, a build agent was told "stored" for what is gone, or a deployer "flipped" for a
flip that is half there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, OutcomeUnknown, StoreFull
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.heads import SignedHeads
from casstore.storage.local.home import Home
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.local.packs import LocalPackStore
from casstore.storage.roles import FrameRow, PackRecord, Table
from tests.crash.enumeration import Enumeration
from tests.crash.faulty import Effect, Fault, Loss

SAMPLE = 100
ROUNDS = 2
FRAMES = 3
KEY = b"the server's key\n"


def pack_of(number: int) -> PackId:
    return PackId(hashlib.sha256(b"pack %d" % number).digest()[:16])


def parts_of(number: int) -> list[bytes]:
    """What the writer of a pack is given, one write each."""
    return [hashlib.sha256(b"part %d %d" % (number, part)).digest() * 20 for part in range(FRAMES)]


def rows_of(number: int) -> list[FrameRow]:
    return [
        FrameRow(ObjectKind.CHUNK, hashlib.sha256(part).digest(), 640 * position, 640, 640)
        for position, part in enumerate(parts_of(number))
    ]


def entry_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def root_of(number: int) -> bytes:
    return hashlib.sha256(b"root %d" % number).digest()


class Session:
    """One process that has a store open and does what a server does, in its order."""

    def __init__(self, directory: str, files: Files) -> None:
        self.acknowledged: set[tuple[str, int]] = set()
        self.errors: list[CasstoreError] = []
        self._stack = ExitStack()
        try:
            self.home = self._stack.enter_context(closing(Home.open(directory, files)))
            self.packs: LocalPackStore = self._stack.enter_context(closing(self.home.open_packs()))
            self.index: LocalChunkIndex = self._stack.enter_context(closing(self.home.open_index()))
            self.ledger: LocalLedger = self._stack.enter_context(closing(self.home.open_ledger()))
            self.heads: SignedHeads = self._stack.enter_context(closing(self.home.open_heads()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def put_pack(self, number: int) -> None:
        writer = self.packs.create(pack_of(number))
        try:
            for part in parts_of(number):
                writer.write(part)
            writer.commit()
        finally:
            writer.abort()

    def record_pack(self, number: int) -> None:
        self.index.add_pack(PackRecord(pack_of(number), 640 * FRAMES, FRAMES), rows_of(number))

    def append_entry(self, number: int) -> None:
        with self.ledger.write() as transaction:
            transaction.put(Table.ENTRIES, entry_key(number), b"entry %d" % number)
            transaction.put(Table.POINTERS, b"pointer", b"at %d" % number)
            transaction.put(Table.HISTORY, b"pointer\x00" + entry_key(number), b"")

    def append_head(self, number: int) -> None:
        self.heads.append(number + 1, root_of(number))

    def run_round(self, number: int) -> None:
        """One push and flip; a step runs only when the one before it was acknowledged."""
        steps: list[tuple[str, Callable[[int], None]]] = [
            ("pack", self.put_pack),
            ("index", self.record_pack),
            ("entry", self.append_entry),
            ("head", self.append_head),
        ]
        for name, step in steps:
            if not self.run_step(name, number, step):
                return

    def run_step(self, name: str, number: int, step: Callable[[int], None]) -> bool:
        try:
            step(number)
        except CasstoreError as error:
            self.errors.append(error)
            return False
        self.acknowledged.add((name, number))
        return True


class SessionLife:
    """What a process was told.  Only casstore's errors may escape a step."""

    def __init__(self, directory: str, files: Files) -> None:
        self.acknowledged: set[tuple[str, int]] = set()
        self.errors: list[CasstoreError] = []
        try:
            session = Session(directory, files)
        except CasstoreError as error:
            self.errors.append(error)
            return
        self.acknowledged, self.errors = session.acknowledged, session.errors
        with closing(session):
            session.run_step("key", 0, lambda _: session.home.write_key("log", KEY))
            for number in range(ROUNDS):
                session.run_round(number)
            session.run_step("deleted", 0, lambda number: session.packs.delete(pack_of(99)))
            if ("head", ROUNDS - 1) in session.acknowledged:
                session.run_step("compacted", 0, lambda _: session.heads.compact(session.heads.read_all()[-1]))

    @classmethod
    def of(cls, session: Session) -> SessionLife:
        """The life of a session that someone else led."""
        life = cls.__new__(cls)
        life.acknowledged, life.errors = session.acknowledged, session.errors
        return life

    def told(self) -> Hashable:
        return frozenset(self.acknowledged)


def check_store(directory: str, acknowledged: set[tuple[str, int]]) -> None:
    """Hold what the next process finds against what the last one acknowledged."""
    session = Session(directory, Files())
    try:
        assert os.listdir(os.path.join(directory, "tmp")) == [], "opening clears what had no name"
        packs = set(session.packs.list(limit=100))
        indexed = {record.pack for record in session.index.packs(limit=100)}
        with session.ledger.read() as view:
            entries = {int.from_bytes(key, "big") for key, _ in view.scan(Table.ENTRIES, limit=100)}
            history = [key for key, _ in view.scan(Table.HISTORY, limit=100)]
            pointer = view.get(Table.POINTERS, b"pointer")
        heads = {head.size - 1: head.root for head in session.heads.read_all()}

        # Nothing is there that nobody wrote, and nothing is there in part.
        assert packs <= {pack_of(number) for number in range(ROUNDS)} | {pack_of(99)}
        for number in range(ROUNDS):
            if pack_of(number) in packs:
                assert session.packs.read(pack_of(number), 0, 640 * FRAMES) == b"".join(parts_of(number))
                assert session.packs.size(pack_of(number)) == 640 * FRAMES
            known = session.index.has(ObjectKind.CHUNK, [row.id for row in rows_of(number)])
            assert known == [pack_of(number) in indexed] * FRAMES
        assert history == [b"pointer\x00" + entry_key(number) for number in sorted(entries)]
        assert pointer == (b"at %d" % max(entries) if entries else None)
        assert all(root == root_of(number) for number, root in heads.items())

        # Each step that is there stands on the one before it.
        assert indexed <= packs
        assert {pack_of(number) for number in entries} <= indexed
        assert set(heads) <= entries

        # What was acknowledged is there.
        has_one_head = set(heads) == {ROUNDS - 1}
        for name, number in acknowledged:
            if name == "pack":
                assert pack_of(number) in packs
            elif name == "index":
                assert pack_of(number) in indexed
            elif name == "entry":
                assert number in entries
            elif name == "head":
                assert number in heads or has_one_head
            elif name == "deleted":
                assert pack_of(99) not in packs
            elif name == "compacted":
                assert has_one_head
            elif name == "key":
                assert session.home.read_key("log") == KEY

        # And the store goes on from there.
        session.run_round(ROUNDS)
        assert not session.errors
    finally:
        session.close()


class StorageWorld:
    """Implements :class:`tests.crash.enumeration.World`: an empty store with one old pack to delete."""

    name = "packs, index, ledger and heads alone"

    def prepare(self, directory: str) -> None:
        Home.create(directory, Files())
        with closing(Session(directory, Files())) as session:
            session.put_pack(99)

    def live(self, directory: str, files: Files, *, is_disk_dead: bool) -> SessionLife:
        return SessionLife(directory, files)

    def judge(self, directory: str, life: SessionLife) -> None:
        check_store(directory, life.acknowledged)


@pytest.fixture(scope="module")
def bench(scratch: Path) -> Enumeration[SessionLife]:
    return Enumeration(scratch / "bench", StorageWorld())


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_any_operation_may_fail(bench: Enumeration[SessionLife], sample: int | None) -> None:
    """A failing disk or a crash at any point costs nobody what was acknowledged."""
    assert {"commit", "fsync", "fsync_dir", "link_new", "rename", "write", "unlink", "truncate"} <= set(bench.calls)
    bench.run_all(bench.faults() if sample is None else bench.sample(sample))


def test_a_full_disk_costs_nothing_but_the_request(bench: Enumeration[SessionLife]) -> None:
    """A disk that was full once must not seal packs, index or ledger: when space was freed, pushes go on."""
    went_on = 0
    for _, life in bench.full_disk(["write", "open_write", "commit"]):
        done = life.acknowledged
        for error in life.errors[:1]:
            # The record of heads is the exception: it cannot tell how much of a failed append is there.
            is_head = any(("entry", number) in done and ("head", number) not in done for number in range(ROUNDS))
            assert isinstance(error, OutcomeUnknown if is_head else StoreFull)
            went_on += ("head", ROUNDS - 1) in done
    assert went_on >= 5


def test_a_commit_that_failed_seals(bench: Enumeration[SessionLife]) -> None:
    """After an unknown outcome no answer may come from a state that a restart could take back."""
    for at in (position for position, name in enumerate(bench.calls) if name == "commit"):
        files = bench.begin(Fault(at, Effect.ALL))
        with closing(Session(bench.directory, files)) as session:
            session.home.write_key("log", KEY)
            for number in range(ROUNDS):
                session.run_round(number)
            assert isinstance(session.errors[0], OutcomeUnknown)
            stopped_at = next(number for number in range(ROUNDS) if ("entry", number) not in session.acknowledged)
            if ("index", stopped_at) in session.acknowledged:
                with pytest.raises(OutcomeUnknown), session.ledger.read():
                    pass
                with pytest.raises(OutcomeUnknown), session.ledger.write():
                    pass
            else:
                with pytest.raises(OutcomeUnknown):
                    session.index.has(ObjectKind.CHUNK, [bytes(32)])
                with pytest.raises(OutcomeUnknown):
                    session.record_pack(ROUNDS)
        life = SessionLife.of(session)
        for loss in Loss:
            bench.judge(files, life, loss)
