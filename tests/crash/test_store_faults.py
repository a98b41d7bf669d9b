"""Fail every single disk operation of a whole store's life, and look at what is left.

The promise under test: after any one failure, crash or power cut an acknowledged push pulls back bit for bit, an
acknowledged flip is in history, nothing is there in half, and the store goes on.  If it breaks, a build agent was told
"stored" for what is gone, or a deployer "flipped" for a flip that nobody can find.

What :mod:`tests.crash.test_flip_faults` does not do: content is pushed, a process goes on after a failure as a server does
(so that a store which should have sealed itself shows), and the opening that heals is itself interrupted.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, OutcomeUnknown, StoreFull
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, Picture, fingerprint, picture_of, restore
from tests.crash.lifetime import ACTS, STEPS, Life, Script, check_store

EVERY_KIND = {"open_write", "write", "fsync", "link_new", "fsync_dir", "unlink", "commit", "pread", "open_read"}


class Bench:
    """A place to run one life after another, each from the same start, with a fault in each."""

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir()
        self.directory = str(scratch / "store")
        self._left = str(scratch / "left")
        self._checked: set[tuple[bytes, frozenset[str], frozenset[str]]] = set()
        self.lives = 0
        self.states = 0
        self.script = Script(self.directory)
        self.start = picture_of(self.directory)
        files, life = self.run(None)
        assert life.errors == []
        assert set(life.answered) == set(STEPS)
        self.calls = files.calls
        self.opening = len(self._run(None, ())[0].calls)

    def run(self, fault: Fault | None) -> tuple[FaultyFiles, Life]:
        """A life from the start, and a look at everything that it may leave."""
        files, life = self._run(fault, STEPS)
        for loss in Loss:
            self.check(files, life, loss)
        return files, life

    def _run(
        self, fault: Fault | None, steps: tuple[str, ...], start: Picture | None = None, before: Life | None = None
    ) -> tuple[FaultyFiles, Life]:
        restore(self.start if start is None else start, self.directory)
        files = FaultyFiles(self.directory, fault)
        dead = fault is not None and fault.for_good
        try:
            life = Life(self.script, self.directory, files, steps, is_disk_dead=dead, before=before)
        except (AssertionError, CasstoreError) as error:
            raise AssertionError(f"{_say(files)}, in the process itself: {error!r}") from error
        self.lives += 1
        return files, life

    def check(self, files: FaultyFiles, life: Life, loss: Loss) -> Picture:
        """Hold what is left after one loss against what was answered, unless the same was held before."""
        picture = files.picture(loss)
        key = (fingerprint(picture), frozenset(life.answered), frozenset(life.asked))
        if key not in self._checked:
            restore(picture, self._left)
            try:
                check_store(self._left, life)
            except (AssertionError, CasstoreError) as error:
                raise AssertionError(f"{_say(files)}, then {loss}: {error!r}") from error
            self._checked.add(key)
            self.states += 1
        return picture

    def heal(self, start: Picture, before: Life) -> None:
        """Fail every operation of opening what a crash has left, and look at what that leaves."""
        whole, life = self._run(None, (), start, before)
        assert life.errors == []
        for at, name in enumerate(whole.calls):
            for effect in Effect:
                if effect is Effect.HALF and name != "write":
                    continue
                for for_good in (False, True):
                    files, life = self._run(Fault(at, effect, for_good), (), start, before)
                    for loss in Loss:
                        self.check(files, life, loss)


def _say(files: FaultyFiles) -> str:
    what = files.calls[files.fault.at] if files.fault and files.has_failed else "nothing"
    return f"{files.fault} in {what!r} (operation of {len(files.calls)})"


@pytest.fixture(scope="module")
def bench(scratch: Path) -> Iterator[Bench]:
    made = Bench(scratch / "bench")
    yield made
    print(f"\n{made.lives} lives with a fault each, {made.states} distinct states opened and judged")


def run_all(bench: Bench, effect: Effect, *, for_good: bool) -> None:
    for at, name in enumerate(bench.calls):
        if effect is not Effect.HALF or name == "write":
            bench.run(Fault(at, effect, for_good))


def heads_of(bench: Bench) -> list[int]:
    """Where the heads that are about to be signed are written: a write behind a commit is that."""
    heads = [at for at, pair in enumerate(pairwise(bench.calls), 1) if pair == ("commit", "write")]
    assert len(heads) == len(ACTS)
    return heads


@pytest.mark.parametrize("effect", list(Effect), ids=lambda effect: effect.value)
def test_any_operation_may_fail_once(bench: Bench, effect: Effect) -> None:
    """A disk that fails once costs nobody what was acknowledged; the store seals itself or goes on, and never lies."""
    assert set(bench.calls) >= EVERY_KIND
    run_all(bench, effect, for_good=False)


@pytest.mark.parametrize("effect", [Effect.HALF, Effect.ALL], ids=lambda effect: effect.value)
def test_process_may_die_or_power_be_cut_behind_any_operation(bench: Bench, effect: Effect) -> None:
    """Killed behind any operation, with the machine running on, or with everything lost that was not synced."""
    run_all(bench, effect, for_good=True)


@pytest.mark.slow
def test_disk_may_die_before_any_operation(bench: Bench) -> None:
    """Nearly the same states as behind the operation before; what differs is what the process was told."""
    run_all(bench, Effect.NOTHING, for_good=True)


def test_failed_sync_seals(bench: Bench) -> None:
    """After a failed fsync the kernel may have dropped the bytes: no answer may stand on them.

    That a sealed store refuses whoever asks again is held in every life (:class:`Life`).
    """
    sealed = 0
    for at, name in enumerate(bench.calls):
        if at >= bench.opening and name in {"fsync", "fsync_dir", "commit", "link_new"}:
            for effect in (Effect.NOTHING, Effect.ALL):
                _, life = bench.run(Fault(at, effect))
                assert isinstance(life.errors[0], OutcomeUnknown), f"{name} {at}: {life.errors[0]!r}"
                assert len(life.answered) < len(STEPS)
                sealed += 1
    assert sealed >= 60


def test_full_disk_costs_nothing_but_the_request(bench: Bench) -> None:
    """Whoever was refused for want of space asks again when there is space, and the store was never sealed."""
    refused = 0
    heads = heads_of(bench)
    for at, name in enumerate(bench.calls):
        if at >= bench.opening and name in {"write", "open_write", "commit", "fsync"}:
            _, life = bench.run(Fault(at, Effect.HALF, number=errno.ENOSPC))
            is_head = at in heads or at - 1 in heads
            # The record of signed heads is the exception: the entries are committed, so "refused" would be wrong.
            assert isinstance(life.errors[0], OutcomeUnknown if is_head else StoreFull), f"{name} {at}"
            assert is_head or set(life.answered) == set(STEPS)
            refused += not is_head
    assert refused >= 40


@pytest.mark.parametrize(
    ("which", "effect", "loss"),
    [
        pytest.param(-1, Effect.NOTHING, Loss.KEPT, id="head-not-written"),
        pytest.param(-1, Effect.HALF, Loss.KEPT, id="head-torn"),
        pytest.param(-1, Effect.ALL, Loss.ZEROED, id="head-zeroed", marks=pytest.mark.slow),
        pytest.param(0, Effect.ALL, Loss.LOST, id="first-head-lost", marks=pytest.mark.slow),
    ],
)
def test_opening_that_heals_may_be_interrupted(bench: Bench, which: int, effect: Effect, loss: Loss) -> None:
    """What was committed and not signed is signed at open; a supervisor that restarts a dying server must not end worse."""
    files, life = bench.run(Fault(heads_of(bench)[which], effect, for_good=True))
    assert len(life.asked - set(life.answered)) == 1
    bench.heal(bench.check(files, life, loss), life)
