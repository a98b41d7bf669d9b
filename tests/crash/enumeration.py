"""Every fault at every disk operation of a process's life, and a judge for each state that it may leave.

A :class:`World` says how a life begins, what one process does in it, and what must be true of what is left.
:class:`Enumeration` runs the life once whole, counts its operations, and runs it again with each of them failing: once or for
good, before or after its effect; and whatever the disk may hold then (everything, only what was synced, names without bytes)
is opened by the next process and judged.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from casstore.errors import CasstoreError
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, Picture, fingerprint, picture_of, restore
from tests.support.tally import chance_of, count_life, count_states

LOOKS: Final = frozenset({"listdir", "stat"})


class Told(Protocol):
    """What a process leaves beside the disk: what it was told."""

    errors: list[CasstoreError]

    def told(self) -> Hashable:
        """Everything that the judge asks for: the same disk after the same answers need not be judged twice."""
        ...


TLife = TypeVar("TLife", bound=Told)


class World(Protocol[TLife]):
    """What is enumerated."""

    name: str

    def prepare(self, directory: str) -> None:
        """Make the store in which each life begins."""
        ...

    def live(self, directory: str, files: FaultyFiles, *, is_disk_dead: bool) -> TLife:
        """One process, from the opening of the store to its closing.

        Only what must never happen is raised; refusals are the life's ``errors``.

        Args:
            directory: the store.
            files: with or without a fault in them.
            is_disk_dead: the fault, once it came, stays.
        """
        ...

    def judge(self, directory: str, life: TLife) -> None:
        """Hold what is left against what the process was told."""
        ...


class Enumeration(Generic[TLife]):
    """One world, and a place to run its lives, each from the same start."""

    def __init__(self, scratch: Path, world: World[TLife]) -> None:
        scratch.mkdir()
        self.world = world
        self.directory = str(scratch / "store")
        self._left = str(scratch / "left")
        self._judged: set[tuple[bytes, Hashable]] = set()
        world.prepare(self.directory)
        self.start = picture_of(self.directory)
        files, self.whole = self.run(None)
        assert self.whole.errors == [], self.whole.errors
        self.calls = files.calls

    def faults(self) -> list[Fault]:
        """All of them: every operation × what it has done when it fails × once or for good."""
        return [
            Fault(at, effect, for_good)
            for at, name in enumerate(self.calls)
            # In a long run of the same look, the first and the last few stand for the others.
            if name not in LOOKS or set(self.calls[max(0, at - 3) : at + 4]) != {name}
            for effect in Effect
            if effect is not Effect.HALF or name == "write"
            for for_good in (False, True)
        ]

    def sample(self, number: int) -> list[Fault]:
        """Some of them, drawn with the seed of the run; one of each kind of operation among them at least."""
        every = self.faults()
        chance = chance_of(f"faults of {self.world.name}")
        chance.shuffle(every)
        kinds = {self.calls[fault.at]: fault for fault in every}
        first = list(kinds.values())
        return first + [fault for fault in every if fault not in first][: max(0, number - len(first))]

    def run_all(self, faults: Iterable[Fault]) -> None:
        """A life for each fault."""
        for fault in faults:
            self.run(fault)

    def run(self, fault: Fault | None) -> tuple[FaultyFiles, TLife]:
        """A life from the start, and a look at everything that it may leave."""
        files, life = self.live(fault)
        for loss in Loss:
            self.judge(files, life, loss)
        return files, life

    def begin(self, fault: Fault | None, start: Picture | None = None) -> FaultyFiles:
        """Put everything back to the start."""
        restore(self.start if start is None else start, self.directory)
        return FaultyFiles(self.directory, fault)

    def live(
        self,
        fault: Fault | None,
        start: Picture | None = None,
        live: Callable[[FaultyFiles, bool], TLife] | None = None,
    ) -> tuple[FaultyFiles, TLife]:
        """A life, not judged yet.

        Args:
            fault: the one fault in it.
            start: where it begins, if not at the start.
            live: another life than the world's.
        """
        files = self.begin(fault, start)
        dead = fault is not None and fault.for_good
        count_life(self.world.name)
        try:
            if live is not None:
                return files, live(files, dead)
            return files, self.world.live(self.directory, files, is_disk_dead=dead)
        except (AssertionError, CasstoreError) as error:
            raise AssertionError(f"{self.world.name}: {say(files)}, in the process itself: {error!r}") from error

    def judge(self, files: FaultyFiles, life: TLife, loss: Loss) -> Picture:
        """Hold what is left after one loss against what was told, unless the same was held before."""
        picture = files.picture(loss)
        key = (fingerprint(picture), life.told())
        if key not in self._judged:
            restore(picture, self._left)
            try:
                self.world.judge(self._left, life)
            except (AssertionError, CasstoreError) as error:
                raise AssertionError(f"{self.world.name}: {say(files)}, then {loss}: {error!r}") from error
            self._judged.add(key)
            count_states(self.world.name, 1)
        return picture

    def full_disk(self, names: Sequence[str], begin: int = 0) -> Iterable[tuple[int, TLife]]:
        """A life for each operation of these names that is told once that no space is left."""
        for at, name in enumerate(self.calls):
            if at >= begin and name in names:
                yield at, self.run(Fault(at, Effect.HALF, number=errno.ENOSPC))[1]


def say(files: FaultyFiles) -> str:
    """The fault, for a person."""
    what = files.calls[files.fault.at] if files.fault and files.has_failed else "nothing"
    return f"{files.fault} in {what!r} (operation of {len(files.calls)})"
