"""The whole ledger side against a small model: flips, rollbacks, marks, holds, races, retries, restarts, in any order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from casstore.errors import (
    CasstoreError,
    Held,
    NoRollbackTarget,
    PointerNotFound,
    PreconditionFailed,
    SnapshotBad,
)
from casstore.ids import PointerName, SnapshotDigest
from casstore.wire import Submitted
from tests.support.ledgerworld import API, WEB, LedgerWorld

POINTERS = (API, WEB)
LETTERS = "ABCD"
pointers = st.sampled_from(POINTERS)
letters = st.sampled_from(LETTERS)


@dataclass
class Model:
    """One pointer, as someone would keep it on paper."""

    flips: list[tuple[int, str | None, str]] = field(default_factory=list)
    """Number, snapshot and kind of each flip, oldest first."""
    marks: dict[str, str] = field(default_factory=dict)
    held: bool = False

    @property
    def expect(self) -> int | None:
        return self.flips[-1][0] if self.flips else None

    @property
    def current(self) -> str | None:
        return self.flips[-1][1] if self.flips else None

    def previous(self) -> str | None:
        """Walk back; from a rollback go on where its target came from; take the first that is neither bad nor current."""
        came_from: str | None = None
        for _, to, kind in reversed(self.flips):
            if came_from is not None and to != came_from:
                continue
            came_from = to if kind == "rollback" else None
            if to is not None and to != self.current and self.marks.get(to) != "bad":
                return to
        return None

    def refuses(self, to: str | None, expect: int | None, clear: bool) -> type[CasstoreError] | None:
        """Why a flip fails, if it does."""
        if expect != self.expect:
            return PreconditionFailed
        if self.flips and to == self.current:
            return None
        if to is not None and self.marks.get(to) == "bad" and not clear:
            return SnapshotBad
        return Held if self.held and not clear else None

    def moved(self, number: int, to: str | None, kind: str, clear: bool = False) -> None:
        if kind == "rollback":
            self.held = True
            if self.current is not None:
                self.marks[self.current] = "bad"
        if clear:
            self.held = False
            if to is not None and self.marks.get(to) == "bad":
                del self.marks[to]
        self.flips.append((number, to, kind))


class PointerMachine(RuleBasedStateMachine):
    """Drives a real ledger and the model side by side."""

    @initialize()
    def begin(self) -> None:
        self.world = LedgerWorld()
        self.digests = {letter: self.world.publish(letter) for letter in LETTERS}
        self.names = {str(digest): letter for letter, digest in self.digests.items()}
        self.models = {name: Model() for name in POINTERS}
        self.done: list[tuple[object, int]] = []

    def digest(self, letter: str | None) -> SnapshotDigest | None:
        return None if letter is None else self.digests[letter]

    def refused(self, answer: Submitted | CasstoreError, why: type[CasstoreError] | None) -> bool:
        """Whether the answer is a refusal, which must be for the reason that the model gives."""
        if why is None:
            assert isinstance(answer, Submitted), answer
            return False
        assert type(answer) is why, (answer, why)
        return True

    @rule(name=pointers, to=letters, clear=st.booleans(), stale=st.booleans())
    def flip(self, name: PointerName, to: str, clear: bool, stale: bool) -> None:
        model = self.models[name]
        expect = model.flips[-2][0] if stale and len(model.flips) > 1 else model.expect
        kind = "init" if expect is None else "promote"
        ask = self.world.ask_flip(name, self.digests[to], expect, kind=kind, clear=(clear, clear))
        answer = self.world.submit(ask)[0]
        if self.refused(answer, model.refuses(to, expect, clear)):
            return
        assert isinstance(answer, Submitted)
        assert answer.no_op == (bool(model.flips) and to == model.current)
        if not answer.no_op:
            model.moved(answer.entry, to, kind, clear)
            self.done.append((ask, answer.entry))

    @rule(name=pointers, flippers=st.lists(letters, min_size=2, max_size=5))
    def race(self, name: PointerName, flippers: list[str]) -> None:
        """Several flips of one pointer in one commit: at most one moves it, and who is told so is the one who did."""
        model = self.models[name]
        asks = [self.world.ask_flip(name, self.digests[to], model.expect, clear=(True, True)) for to in flippers]
        expect, before = model.expect, model.current
        won = False
        for ask, to, answer in zip(asks, flippers, self.world.submit(*asks), strict=True):
            if self.refused(answer, PreconditionFailed if won else None):
                continue
            assert isinstance(answer, Submitted)
            assert answer.no_op == (expect is not None and to == before)
            if not answer.no_op:
                won = True
                model.moved(answer.entry, to, "deploy" if expect is not None else "init", clear=True)
                self.done.append((ask, answer.entry))

    @rule(name=pointers)
    def rollback(self, name: PointerName) -> None:
        model = self.models[name]
        target = model.previous()
        try:
            ask = self.world.ask_rollback(name)
        except PointerNotFound:
            assert not model.flips
            return
        except NoRollbackTarget:
            assert target is None
            return
        answer = self.world.one(ask)
        assert self.names[answer.pointers[0].snapshot or ""] == target
        model.moved(answer.entry, target, "rollback")
        self.done.append((ask, answer.entry))

    @precondition(lambda self: any(model.flips for model in self.models.values()))
    @rule(name=pointers, letter=letters, verdict=st.sampled_from(["good", "bad"]))
    def mark(self, name: PointerName, letter: str, verdict: str) -> None:
        if self.models[name].flips:
            answer = self.world.mark(name, self.digests[letter], verdict)
            assert answer.no_op == (self.models[name].marks.get(letter) == verdict)
            self.models[name].marks[letter] = verdict

    @rule(name=pointers, held=st.booleans())
    def hold(self, name: PointerName, held: bool) -> None:
        if self.models[name].flips:
            answer = self.world.hold(name) if held else self.world.release(name)
            assert answer.no_op == (self.models[name].held == held)
            self.models[name].held = held

    @rule(name=pointers)
    def retire(self, name: PointerName) -> None:
        model = self.models[name]
        if model.current is not None:
            ask = self.world.ask_flip(name, None, model.expect, kind="retire")
            answer = self.world.submit(ask)[0]
            if not self.refused(answer, Held if model.held else None):
                assert isinstance(answer, Submitted)
                model.moved(answer.entry, None, "retire")
                self.done.append((ask, answer.entry))

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Any success, asked for again at any later time, is that success and changes nothing."""
        ask, entry = data.draw(st.sampled_from(self.done))
        size = self.world.log.size
        answer = self.world.one(ask)  # type: ignore[arg-type]
        assert (answer.replayed, answer.entry, self.world.log.size) == (True, entry, size)
        self.world.verify(answer.proof)

    @rule(seconds=st.integers(0, 20))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds * 1000)

    @rule()
    def restart(self) -> None:
        self.world.reopen()

    @invariant()
    def agrees(self) -> None:
        read = self.world.pointers.read
        assert [pointer.pointer for pointer in read.list().pointers] == [n for n in POINTERS if self.models[n].flips]
        for name, model in self.models.items():
            if not model.flips:
                continue
            pointer = read.pointer(name, proof=True)
            (leaf,) = self.world.verify(pointer.proof)
            assert pointer.snapshot == (None if model.current is None else str(self.digests[model.current]))
            assert (pointer.flip, pointer.seq, pointer.hold is not None) == (model.expect, len(model.flips), model.held)
            assert pointer.status == (model.marks.get(model.current, "unmarked") if model.current else "unmarked")
            assert (leaf.snapshot, leaf.flip, leaf.seq) == (self.digest(model.current), model.expect, len(model.flips))
            assert {self.names[str(digest)] for digest in leaf.bad} == {
                letter for letter, verdict in model.marks.items() if verdict == "bad"
            }

    @invariant()
    def remembers(self) -> None:
        for name, model in self.models.items():
            if model.flips:
                items = self.world.pointers.read.history(name).items
                found = [(item.flip, self.names.get(item.to or ""), item.kind) for item in reversed(items)]
                assert found == model.flips[-100:]
                number, to, _ = model.flips[len(model.flips) // 2]
                was = self.world.pointers.read.at(name, f"f{number}")
                assert was.snapshot == (None if to is None else str(self.digests[to]))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            report = self.world.fsck()
            assert report.ok, report.findings


TestPointerMachine = PointerMachine.TestCase
TestPointerMachine.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
