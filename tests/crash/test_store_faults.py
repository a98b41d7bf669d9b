"""Fail every single disk operation of a whole store's life, and look at what is left.

The promise under test: after any one failure, crash or power cut an acknowledged push pulls back bit for bit, an
acknowledged flip is in history, nothing is there in half, and the store goes on.  If it breaks, a build agent was told
"stored" for what is gone, or a deployer "flipped" for a flip that nobody can find.

What :mod:`tests.crash.test_flip_faults` does not do: content is pushed, a process goes on after a failure as a server does
(so that a store which should have sealed itself shows), and the opening that heals is itself interrupted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, OutcomeUnknown, StoreFull
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, Picture, fingerprint, picture_of, restore
from tests.crash.lifetime import STEPS, Life, Script, check_store

EVERY_KIND = {"open_write", "write", "fsync", "link_new", "fsync_dir", "unlink", "commit", "pread", "open_read", "rename"}


class Bench:
    """A place to run one life after another, each from the same start, with a fault in each."""

    def __init__(self, scratch: Path) -> None:
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

    def heal(self, start: Picture, before: Life, *, effects: tuple[Effect, ...]) -> None:
        """Fail every operation of opening what a crash has left, and look at what that leaves."""
        whole, life = self._run(None, (), start, before)
        assert life.errors == []
        for at in range(len(whole.calls)):
            for effect in effects:
                for for_good in (False, True):
                    files, life = self._run(Fault(at, effect, for_good), (), start, before)
                    for loss in Loss:
                        self.check(files, life, loss)


def _say(files: FaultyFiles) -> str:
    what = files.calls[files.fault.at] if files.fault and files.has_failed else "nothing"
    return f"{files.fault} in {what!r} (operation of {len(files.calls)})"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def faults(bench: Bench) -> Iterator[Fault]:
    """Every operation × what it has done when it fails × whether the disk is dead from then on."""
    for at, name in enumerate(bench.calls):
        for effect in Effect:
            if effect is not Effect.HALF or name == "write":
                yield Fault(at, effect)
                yield Fault(at, effect, for_good=True)
