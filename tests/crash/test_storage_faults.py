"""Fail every single disk operation of the storage layer, and look at what the next process finds.

The promise under test: what was acknowledged is there after any one failure, crash or power cut, and what was not is
there whole or not at all.  If it breaks, a build agent was told "stored" for what is gone, or a deployer "flipped" for a
flip that is half there.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, NotInitialised, OutcomeUnknown, StoreFull, StoreNotFound
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.heads import SignedHeads
from casstore.storage.local.home import Home
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.local.packs import LocalPackStore
from casstore.storage.roles import FrameRow, PackRecord, Table
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, fingerprint, picture_of, restore

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


def run_session(directory: str, files: Files) -> Session | None:
    """A whole life of a process; None if it could not even open the store.  Only casstore's errors may escape a step."""
    try:
        session = Session(directory, files)
    except CasstoreError:
        return None
    try:
        session.run_step("key", 0, lambda _: session.home.write_key("log", KEY))
        for number in range(ROUNDS):
            session.run_round(number)
        session.run_step("deleted", 0, lambda number: session.packs.delete(pack_of(99)))
        if ("head", ROUNDS - 1) in session.acknowledged:
            session.run_step("compacted", 0, lambda _: session.heads.compact(session.heads.read_all()[-1]))
    finally:
        session.close()
    return session


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


class Bench:
    """A place to run one process after another, each from the same start, with a fault in each."""

    def __init__(self, scratch: Path) -> None:
        self.directory = str(scratch / "store")
        self._left = str(scratch / "left")
        self._checked: set[tuple[bytes, frozenset[tuple[str, int]]]] = set()
        # The start: an empty store with one old pack to delete.
        Home.create(self.directory, Files())
        with closing(Session(self.directory, Files())) as session:
            session.put_pack(99)
        self._start = picture_of(self.directory)
        # What a process does when nothing fails, operation by operation.
        files, session_or_none = self.run(None)
        assert session_or_none is not None
        assert not session_or_none.errors
        self.calls = files.calls
        self.check(files, session_or_none.acknowledged)

    def begin(self, fault: Fault | None) -> FaultyFiles:
        restore(self._start, self.directory)
        return FaultyFiles(self.directory, fault)

    def run(self, fault: Fault | None) -> tuple[FaultyFiles, Session | None]:
        files = self.begin(fault)
        session = run_session(self.directory, files)
        assert fault is None or files.has_failed
        return files, session

    def check(self, files: FaultyFiles, acknowledged: set[tuple[str, int]]) -> None:
        """Whatever the next process may find, hold it against what was acknowledged."""
        for loss in Loss:
            picture = files.picture(loss)
            key = (fingerprint(picture), frozenset(acknowledged))
            if key in self._checked:
                continue
            restore(picture, self._left)
            try:
                check_store(self._left, acknowledged)
            except (AssertionError, CasstoreError) as error:
                what = files.calls[files.fault.at] if files.fault else "nothing"
                raise AssertionError(f"{files.fault} in {what!r}, then {loss}: {error}") from error
            self._checked.add(key)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("effect", list(Effect), ids=lambda effect: effect.value)
def test_any_operation_may_fail(bench: Bench, effect: Effect, for_good: bool) -> None:
    """A failing disk or a crash at any point costs nobody what was acknowledged."""
    assert {"commit", "fsync", "fsync_dir", "link_new", "rename", "write", "unlink", "truncate"} <= set(bench.calls)
    for at, name in enumerate(bench.calls):
        if effect is not Effect.HALF or name == "write":
            files, session = bench.run(Fault(at, effect, for_good))
            bench.check(files, session.acknowledged if session else set())


def test_a_full_disk_costs_nothing_but_the_request(bench: Bench) -> None:
    """A disk that was full once must not seal packs, index or ledger: when space was freed, pushes go on."""
    went_on = 0
    for at, name in enumerate(bench.calls):
        if name in {"write", "open_write", "commit"}:
            files, session = bench.run(Fault(at, number=errno.ENOSPC))
            assert session is not None
            bench.check(files, session.acknowledged)
            done = session.acknowledged
            for error in session.errors[:1]:
                # The record of heads is the exception: it cannot tell how much of a failed append is there.
                is_head = any(("entry", number) in done and ("head", number) not in done for number in range(ROUNDS))
                assert isinstance(error, OutcomeUnknown if is_head else StoreFull)
                went_on += ("head", ROUNDS - 1) in done
    assert went_on >= 5


def test_a_commit_that_failed_seals(bench: Bench) -> None:
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
        bench.check(files, session.acknowledged)


def create(directory: str, files: Files) -> bool:
    try:
        Home.create(directory, files, lambda home: home.write_key("log", KEY))
    except CasstoreError:
        return False
    return True


def check_created(directory: str, created: bool) -> None:
    try:
        session = Session(directory, Files())
    except (NotInitialised, StoreNotFound):
        assert not created
        return
    with closing(session):
        assert session.home.read_key("log") == KEY
        session.run_round(0)
        assert not session.errors


def test_an_interrupted_creation_is_not_a_store(tmp_path: Path) -> None:
    """A store that was half made must say so, not open and lack its ledger later."""
    above, left = tmp_path / "above", tmp_path / "left"
    above.mkdir()
    files = FaultyFiles(str(above))
    assert create(str(above / "store"), files)
    calls = files.calls
    # The 256 directories for packs are alike: the first and the last of them stand for the others.
    positions = [
        at for at, name in enumerate(calls) if name != "mkdir" or at < 5 or set(calls[at - 1 : at + 2]) != {"mkdir"}
    ]
    checked: set[tuple[bytes, bool]] = set()
    for fault in (Fault(at, effect, for_good=True) for at in positions for effect in (Effect.NOTHING, Effect.ALL)):
        restore({}, str(above))
        files = FaultyFiles(str(above), fault)
        created = create(str(above / "store"), files)
        for loss in Loss:
            picture = files.picture(loss)
            key = (fingerprint(picture), created)
            if key not in checked:
                restore(picture, str(left))
                try:
                    check_created(str(left / "store"), created)
                except (AssertionError, CasstoreError) as error:
                    raise AssertionError(f"{fault} in {calls[fault.at]!r}, then {loss}: {error}") from error
                checked.add(key)
