"""The whole store against a small model: pushes, flips, time, damage, deaths and power cuts, in any order.

The promises under test: what was acknowledged reads back bit for bit, whatever came between; a push that was told that
something is present finds it when it commits; a pointer is where its last flip has put it; and fsck finds damage, and
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from casstore.errors import (
    CasstoreError,
    LeaseLost,
    NoRollbackTarget,
    OutcomeUnknown,
    PointerNotFound,
    SnapshotIncomplete,
)
from casstore.ids import PointerName, SnapshotDigest
from casstore.wire import Submitted
from tests.crash.faulty import Effect, Fault, Loss
from tests.support.storeworld import LETTERS, Push, StoreWorld
from tests.support.tally import count_states

POINTERS = (PointerName("prod/api"), PointerName("prod/web"))
NOTICES = {"orphan-pack", "unfinished-push"}
HOUR_MS = 3_600_000
letter_sets = st.frozensets(st.sampled_from(LETTERS), min_size=1, max_size=4)
names = st.sampled_from(["app", "lib"])
pointers = st.sampled_from(POINTERS)
losses = st.sampled_from(Loss)


class StoreMachine(RuleBasedStateMachine):
    """Drives a real store on a disk that can lose its power, and the model beside it."""

    @initialize()
    def begin(self) -> None:
        self.world = StoreWorld()
        self.artifacts: dict[int, tuple[str, frozenset[str]]] = {}
        """Number → name and letters of every acknowledged push."""
        self.live: list[Push] = []
        self.published: dict[SnapshotDigest, frozenset[str]] = {}
        self.flips: dict[PointerName, list[tuple[int, str]]] = {name: [] for name in POINTERS}
        self.doubt: tuple[Any, ...] | None = None
        """What was asked when the process died, and may or may not have happened."""
        self.doubts = 0

    # --- build agents ------------------------------------------------------------------------------------------------

    def note_artifact(self, number: int, name: str, letters: frozenset[str]) -> None:
        assert self.artifacts.setdefault(number, (name, letters)) == (name, letters)

    @rule(letters=letter_sets, name=names)
    def push(self, letters: frozenset[str], name: str) -> None:
        push = self.world.begin_push(letters)
        self.world.send(push)
        self.note_artifact(self.world.commit(push, name).number, name, letters)

    @precondition(lambda self: self.artifacts)
    @rule(data=st.data())
    def push_again(self, data: st.DataObject) -> None:
        """What is there already: nothing but the root is sent."""
        name, letters = data.draw(st.sampled_from(list(self.artifacts.values())))
        self.push(letters, name)

    @precondition(lambda self: len(self.live) < 4)
    @rule(letters=letter_sets, is_sent=st.booleans())
    def begin_push(self, letters: frozenset[str], is_sent: bool) -> None:
        push = self.world.begin_push(letters)
        if is_sent:
            self.world.send(push)
        self.live.append(push._replace(wanted=[]) if is_sent else push)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), name=names)
    def finish_push(self, data: st.DataObject, name: str) -> None:
        """What the push was told is there still, unless its lease is over."""
        push = data.draw(st.sampled_from(self.live))
        self.live.remove(push)
        refused_with = (LeaseLost, SnapshotIncomplete) if not self.world.is_live(push) else ()
        try:
            if push.wanted:
                self.world.send(push)
            artifact = self.world.commit(push, name)
        except refused_with:
            return
        self.note_artifact(artifact.number, name, push.letters)

    # --- the deployer ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.artifacts)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        _, letters = data.draw(st.sampled_from(list(self.artifacts.values())))
        self.published[self.world.publish(letters)] = letters

    @precondition(lambda self: self.published)
    @rule(data=st.data(), name=pointers)
    def flip(self, data: st.DataObject, name: PointerName) -> None:
        snapshot = data.draw(st.sampled_from(list(self.published)))
        self.flip_to(name, snapshot)

    def flip_to(self, name: PointerName, snapshot: SnapshotDigest) -> None:
        refused_with: tuple[type[CasstoreError], ...] = () if snapshot in self.whole() else (SnapshotIncomplete,)
        try:
            answer = self.world.flip(name, snapshot, self.expect(name))
        except refused_with:
            return
        self.note_flip(name, answer)

    @rule(name=pointers)
    def rollback(self, name: PointerName) -> None:
        try:
            answer = self.world.rollback(name)
        except PointerNotFound:
            assert not self.flips[name]
            return
        except NoRollbackTarget:
            return
        assert answer.pointers[0].snapshot in {to for _, to in self.flips[name]}
        self.note_flip(name, answer)

    def expect(self, name: PointerName) -> int | None:
        return self.flips[name][-1][0] if self.flips[name] else None

    def note_flip(self, name: PointerName, answer: Submitted) -> None:
        if not answer.no_op:
            self.flips[name].append((answer.entry, str(answer.pointers[0].snapshot)))

    # --- time, damage and death --------------------------------------------------------------------------------------

    @rule(hours=st.sampled_from([0.1, 0.6, 2, 30, 24 * 40]))
    def wait(self, hours: float) -> None:
        self.world.clock.advance(int(hours * HOUR_MS))

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A bit of a pack turns over: fsck names the pack, and is content once the bit is back."""
        # A retired pack waits for its deletion; nobody looks into it.
        retired = {record.pack.hex() for record, _ in self.world.store.packs.index.retired(limit=1000)}
        packs = sorted(Path(self.world.directory, "packs").rglob("*.pack"))
        packs = [pack for pack in packs if pack.stem not in retired]
        if packs:
            pack = data.draw(st.sampled_from(packs))
            content = pack.read_bytes()
            at = data.draw(st.integers(0, len(content) - 1))
            pack.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            try:
                report = self.world.store.fsck(full=True)
            finally:
                pack.write_bytes(content)
            named = [finding for finding in report.findings if pack.stem in finding.where]
            assert named, "whether it is in use, left over, or unknown to the index"
            # What lies there twice, and is read elsewhere, is no error.
            assert report.ok == ({finding.code for finding in named} <= {"dead-frame", "orphan-pack"})

    @rule(loss=losses)
    def die(self, loss: Loss) -> None:
        """Killed, or without power, between two requests."""
        self.world.reopen(loss)
        self.look_whole()

    @rule(
        at=st.integers(0, 60),
        effect=st.sampled_from([Effect.HALF, Effect.ALL]),
        loss=losses,
        what=st.sampled_from(["push", "publish", "flip", "collect"]),
        data=st.data(),
    )
    def die_in(self, at: int, effect: Effect, loss: Loss, what: str, data: st.DataObject) -> None:
        """Killed, or without power, at an operation of the disk in the middle of a request."""
        requests = self.requests(data)
        if what in requests:
            self.world.arm(Fault(at, effect, for_good=True))
            try:
                requests[what]()
            except OutcomeUnknown:
                pass
            except CasstoreError:
                assert self.world.files.has_failed
            if self.world.disarm():
                self.world.reopen(loss)
                self.settle_doubt()
                self.look_whole()
            self.doubt = None

    def requests(self, data: st.DataObject) -> dict[str, Callable[[], None]]:
        """What can be asked now; each notes first what is in doubt while it is under way."""
        name = data.draw(names)
        letters = data.draw(letter_sets)
        pointer = data.draw(pointers)

        def push() -> None:
            self.doubt = ("push", name, letters)
            self.push(letters, name)

        def publish() -> None:
            self.publish(data)

        def flip() -> None:
            snapshot = data.draw(st.sampled_from(list(self.published)))
            self.doubt = ("flip", pointer, str(snapshot))
            self.flip_to(pointer, snapshot)

        found: dict[str, Callable[[], None]] = {"push": push}
        if self.artifacts:
            found["publish"] = publish
        if self.published:
            found["flip"] = flip
        return found

    def settle_doubt(self) -> None:
        """Take into the model what was asked and not answered, and happened all the same."""
        match self.doubt:
            case ("push", name, letters):
                for artifact in self.world.store.artifacts.list().artifacts:
                    if artifact.number not in self.artifacts:
                        self.note_artifact(artifact.number, name, letters)
                        self.doubts += 1
            case ("flip", pointer, snapshot):
                found = self.current(pointer)
                if found is not None and found[0] != self.expect(pointer):
                    assert found[1] == snapshot
                    self.flips[pointer].append(found)
                    self.doubts += 1

    # --- what must be true -------------------------------------------------------------------------------------------

    def current(self, name: PointerName) -> tuple[int, str] | None:
        try:
            pointer = self.world.store.pointers.read.pointer(name)
        except PointerNotFound:
            return None
        return pointer.flip, str(pointer.snapshot)

    @invariant()
    def agrees(self) -> None:
        """What is listed and named is what was acknowledged."""
        listed = {artifact.number: artifact for artifact in self.world.store.artifacts.list(limit=1000).artifacts}
        assert listed.keys() == self.artifacts.keys()
        assert all(listed[number].name == name for number, (name, _) in self.artifacts.items())
        for name in POINTERS:
            assert self.current(name) == (self.flips[name][-1] if self.flips[name] else None)

    def kept(self) -> set[frozenset[str]]:
        """The trees that must be there."""
        return {letters for _, letters in self.artifacts.values()} | {self.published[digest] for digest in self.whole()}

    def whole(self) -> set[SnapshotDigest]:
        """The snapshots whose content must be there."""
        return set(self.published)

    def look_whole(self) -> None:
        """Everything reads back, and fsck finds nothing."""
        for letters in self.kept():
            self.world.verify_tree(letters)
        for snapshot in self.whole():
            assert self.world.store.snapshots.completeness(snapshot).complete
        report = self.world.store.fsck(full=True)
        assert report.ok, report.findings
        assert {finding.code for finding in report.findings} <= NOTICES
        for name, flips in self.flips.items():
            if flips:
                items = self.world.store.pointers.read.history(name).items
                assert [(item.flip, item.to) for item in reversed(items)] == flips[-100:]
        count_states(type(self).__name__, 1)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.look_whole()
            finally:
                self.world.close()


LONG = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SHORT = settings(LONG, max_examples=12, stateful_step_count=25)


@pytest.mark.parametrize("bounds", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def test_store_machine(bounds: settings) -> None:
    run_state_machine_as_test(StoreMachine, settings=bounds)
