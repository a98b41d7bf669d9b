"""Fail every single disk operation of a whole store's life, and look at what is left.

The promise under test: after any one failure, crash or power cut an acknowledged push pulls back bit for bit, an
acknowledged flip is in history, nothing is there in half, and the store goes on.  If it breaks, a build agent was told
"stored" for what is gone, or a deployer "flipped" for a flip that nobody can find.

A process goes on after a failure as a server does, so that a store which should have sealed itself shows; and the opening
that heals is itself interrupted.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from casstore.errors import OutcomeUnknown, StoreFull
from tests.crash.enumeration import Enumeration
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, Picture
from tests.crash.lifetime import ACTS, STEPS, Life, LifeWorld
from tests.support.tally import chance_of

SAMPLE: Final = 150
"""Lives with a fault in a bounded run."""
HEALING_SAMPLE: Final = 12
EVERY_KIND: Final = {"open_write", "write", "fsync", "link_new", "fsync_dir", "unlink", "commit", "pread", "open_read"}


class Bench(Enumeration[Life]):
    """The enumeration of a whole life."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch, LifeWorld())
        assert set(self.whole.answered) == set(STEPS)
        self.script = self.whole.script
        self.opening = len(self.live(None, live=lambda files, _: self._open(files, dead=False, before=None))[0].calls)

    def _open(self, files: FaultyFiles, *, dead: bool, before: Life | None) -> Life:
        return Life(self.script, self.directory, files, (), is_disk_dead=dead, before=before)

    def heal(self, start: Picture, before: Life, sample: int | None) -> None:
        """Fail every operation of opening what a crash has left, and look at what that leaves."""

        def live(files: FaultyFiles, dead: bool) -> Life:
            return self._open(files, dead=dead, before=before)

        whole, life = self.live(None, start, live)
        assert life.errors == []
        every = [
            Fault(at, effect, for_good)
            for at, name in enumerate(whole.calls)
            for effect in Effect
            if effect is not Effect.HALF or name == "write"
            for for_good in (False, True)
        ]
        for fault in every if sample is None else chance_of("healing").sample(every, sample):
            files, life = self.live(fault, start, live)
            for loss in Loss:
                self.judge(files, life, loss)


@pytest.fixture(scope="module")
def bench(scratch: Path) -> Bench:
    return Bench(scratch / "bench")


def heads_of(bench: Bench) -> list[int]:
    """Where the heads that are about to be signed are written: a write behind a commit is that."""
    heads = [at for at, pair in enumerate(pairwise(bench.calls), 1) if pair == ("commit", "write")]
    assert len(heads) == len(ACTS)
    return heads


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_any_operation_may_fail(bench: Bench, sample: int | None) -> None:
    """A disk that fails, a process that is killed or a power cut costs nobody what was acknowledged; the store seals itself
    or goes on, and never lies.
    """
    assert set(bench.calls) >= EVERY_KIND
    bench.run_all(bench.faults() if sample is None else bench.sample(sample))


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
    for at, life in bench.full_disk(["write", "open_write", "commit", "fsync"], begin=bench.opening):
        is_head = at in heads or at - 1 in heads
        # The record of signed heads is the exception: the entries are committed, so "refused" would be wrong.
        assert isinstance(life.errors[0], OutcomeUnknown if is_head else StoreFull), f"{bench.calls[at]} {at}"
        assert is_head or set(life.answered) == set(STEPS)
        refused += not is_head
    assert refused >= 40


@pytest.mark.parametrize(
    ("which", "effect", "loss"),
    [
        pytest.param(-1, Effect.NOTHING, Loss.KEPT, id="head-not-written"),
        pytest.param(-1, Effect.HALF, Loss.KEPT, id="head-torn"),
        pytest.param(-1, Effect.ALL, Loss.ZEROED, id="head-zeroed"),
        pytest.param(0, Effect.ALL, Loss.LOST, id="first-head-lost"),
    ],
)
@pytest.mark.parametrize("sample", [HEALING_SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_opening_that_heals_may_be_interrupted(
    bench: Bench, which: int, effect: Effect, loss: Loss, sample: int | None
) -> None:
    """What was committed and not signed is signed at open; a supervisor that restarts a dying server must not end worse."""
    files, life = bench.run(Fault(heads_of(bench)[which], effect, for_good=True))
    assert len(life.asked - set(life.answered)) == 1
    bench.heal(bench.judge(files, life, loss), life, sample)
