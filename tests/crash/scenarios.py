"""A scenario: steps over an open store with a controlled clock, what shows of them, and what must be true at any time.

A scenario runs once whole, and what shows (:attr:`Scenario.observe`) is noted after each step: the chain.  Then each fault is
tried.  Whatever is left must show what the chain has after the last step that was acknowledged, or after the next one if that
was asked for; a step of several commits may have stopped in between, where the promises alone hold.  From there the rest of the
steps is done, and the end must be the end of the chain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

from casstore.admin import create_store
from casstore.clock import ManualClock
from casstore.errors import CasstoreError, OutcomeUnknown
from casstore.ids import TreeDigest
from casstore.storage.local.files import Files
from casstore.store import Store
from casstore.wire import Finding
from tests.crash.lifetime import as_files, read_tree, release, sending_of

# What a crash may leave behind, and nothing else.
NOTICES: Final = frozenset({"orphan-pack", "unfinished-push"})
HOUR_MS: Final = 3_600_000


class Step(NamedTuple):
    """Something that a process is asked to do; asked again it does no harm."""

    name: str
    do: Callable[[Store], object]
    is_atomic: bool = True
    """It happens whole or not at all, to whoever looks."""
    hours: float = 0
    """How much time passes before it."""


class Scenario(NamedTuple):
    """What is enumerated."""

    name: str
    fill: Callable[[Store], object]
    """Puts into a new store what is there before the first step."""
    steps: Sequence[Step]
    observe: Callable[[Store], Hashable]
    """What shows of the steps, without what chance has named."""
    promise: Callable[[Store], object] = lambda store: None
    """What must be true at any time."""
    excuse: Callable[[Finding], bool] = lambda finding: False
    """Which findings are no damage here."""


class StepLife:
    """One process that is asked the steps in order.  What fails is asked once more, as in
    :class:`tests.crash.lifetime.Life`.
    """

    def __init__(self, scenario: Scenario, directory: str, files: Files, *, is_disk_dead: bool) -> None:
        self.answered = 0
        self.asked = 0
        self.errors: list[CasstoreError] = []
        self._is_disk_dead = is_disk_dead
        store = self._open(directory, files)
        if store is None:
            return
        try:
            for step in scenario.steps:
                self.asked += 1
                pass_time(store, step)
                if not self._do(store, step):
                    break
                self.answered += 1
        finally:
            store.close()

    def told(self) -> Hashable:
        return self.answered, self.asked

    def _open(self, directory: str, files: Files) -> Store | None:
        try:
            return open_store(directory, files, seed=1)
        except CasstoreError as error:
            self.errors.append(error)
        return None if self._is_disk_dead else open_store(directory, files, seed=2)

    def _do(self, store: Store, step: Step) -> bool:
        error = refusal_of(step, store)
        if error is None:
            return True
        self.errors.append(error)
        again = refusal_of(step, store)
        if again is None:
            assert not isinstance(error, OutcomeUnknown), f"{step.name}: done after {error!r}"
        elif not self._is_disk_dead:
            sealed = isinstance(error, OutcomeUnknown) and isinstance(again, OutcomeUnknown)
            assert sealed, f"{step.name}: {error!r}, and with a disk that works again {again!r}"
        return again is None


def refusal_of(step: Step, store: Store) -> CasstoreError | None:
    """What a step is refused with, if it is."""
    try:
        step.do(store)
    except CasstoreError as error:
        return error
    return None


class StepWorld:
    """Implements :class:`tests.crash.enumeration.World` for a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.name = scenario.name
        self.chain: list[Hashable] = []

    def prepare(self, directory: str) -> None:
        create_store(directory, clock=ManualClock(), randomness=random.Random(0).randbytes)
        with open_store(directory, Files(), seed=5) as store:
            self.scenario.fill(store)

    def live(self, directory: str, files: Files, *, is_disk_dead: bool) -> StepLife:
        if not self.chain:
            return self._live_whole(directory, files)
        return StepLife(self.scenario, directory, files, is_disk_dead=is_disk_dead)

    def _live_whole(self, directory: str, files: Files) -> StepLife:
        """The first life, without a fault: the chain is noted beside it, by a process of its own each time."""
        observed: list[Hashable] = []

        def noting(step: Step) -> Step:
            def do(store: Store) -> None:
                step.do(store)
                observed.append(self.scenario.observe(store))

            return step._replace(do=do)

        with open_store(directory, Files(), seed=1) as store:
            first = self.scenario.observe(store)
        beside = self.scenario._replace(steps=[noting(step) for step in self.scenario.steps])
        life = StepLife(beside, directory, files, is_disk_dead=False)
        assert not life.errors, life.errors
        self.chain = [first, *observed]
        for step, before, after in zip(self.scenario.steps, self.chain, self.chain[1:], strict=False):
            assert before != after or not step.is_atomic, f"nothing shows of {step.name!r}"
        return life

    def judge(self, directory: str, life: StepLife) -> None:
        scenario = self.scenario
        steps = scenario.steps
        with open_store(directory, Files(), seed=3) as store:
            for step in steps[: life.asked]:
                pass_time(store, step)
            self._fsck(store)
            scenario.promise(store)
            found = scenario.observe(store)
            allowed = self.chain[life.answered : life.asked + 1]
            if life.answered == life.asked or steps[life.answered].is_atomic:
                assert found in allowed, f"after {life.told()}: {found}"
            for number, step in enumerate(steps[life.answered :], life.answered):
                if number >= life.asked:
                    pass_time(store, step)
                step.do(store)
            ended = scenario.observe(store)
            assert ended == self.chain[-1], f"it ends with {ended}"
            scenario.promise(store)
            self._fsck(store)

    def _fsck(self, store: Store) -> None:
        report = store.fsck(full=True)
        findings = [f for f in report.findings if f.code not in NOTICES and not self.scenario.excuse(f)]
        assert not findings, findings


def open_store(directory: str, files: Files, *, seed: int) -> Store:
    """Open a store in a world in which nothing is left to chance."""
    return Store.open(directory, clock=ManualClock(), files=files, randomness=random.Random(seed).randbytes)


def pass_time(store: Store, step: Step) -> None:
    """Let the time before a step pass."""
    assert isinstance(store.clock, ManualClock)
    store.clock.advance(int(step.hours * HOUR_MS))


def check_artifacts(store: Store) -> None:
    """Every artifact that is recorded reads back as the release of its name, bit for bit."""
    for artifact in store.artifacts.list().artifacts:
        sending = sending_of(artifact.name or "")
        assert artifact.digest == str(sending.tree.digest)
        assert read_tree(store, TreeDigest.parse(artifact.digest)) == as_files(release(artifact.name or ""))
