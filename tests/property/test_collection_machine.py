"""The whole store with collections, pins and damage to their timing, against the same small model.

The promises under test, beside those of :mod:`tests.property.test_store_machine`: what retention keeps is kept, a pin keeps,
a push that holds its lease never misses what it was told is there, and what a collection takes it was allowed to take.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from casstore.engine.gc.retention import DAY_MS, Retention
from casstore.ids import SnapshotDigest
from tests.property.test_store_machine import LONG, SHORT, StoreMachine
from tests.support.storeworld import tree_of

KEPT_DAYS = 3
RETENTION = Retention(artifact_days=KEPT_DAYS, snapshot_days=KEPT_DAYS, history_days=KEPT_DAYS, keep_artifacts=1)


class CollectionMachine(StoreMachine):
    """Drives collections as well."""

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.pushed_ms: dict[int, int] = {}
        self.published_ms: dict[SnapshotDigest, int] = {}
        self.pins: dict[str, frozenset[str]] = {}

    def note_artifact(self, number: int, name: str, letters: frozenset[str]) -> None:
        super().note_artifact(number, name, letters)
        self.pushed_ms.setdefault(number, self.world.clock.now_ms())

    @precondition(lambda self: self.artifacts)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        """Published again, it is as young as at first."""
        before = set(self.published)
        super().publish(data)
        self.published_ms |= {digest: self.world.clock.now_ms() for digest in set(self.published) - before}

    # --- rules -------------------------------------------------------------------------------------------------------

    @rule()
    def collect(self) -> None:
        self.world.store.collect(RETENTION)
        self.forgive_expired()

    @rule(hours=st.sampled_from([1.5, 26]))
    def collect_later(self, hours: float) -> None:
        self.wait(hours)
        self.collect()

    @rule()
    def undo(self) -> None:
        self.world.store.undo_collect()

    @precondition(lambda self: self.artifacts)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        _, letters = data.draw(st.sampled_from(list(self.artifacts.values())))
        pin = self.world.store.pins.pin(
            "tree", tree_of(letters).digest, owner="x", reason="kept", until_ms=None, by="operator"
        )
        self.pins[pin.id] = letters

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.pins)))
        self.world.store.pins.unpin(id)
        del self.pins[id]

    # --- the model ---------------------------------------------------------------------------------------------------

    def is_young(self, since_ms: int) -> bool:
        return self.world.clock.now_ms() - since_ms < KEPT_DAYS * DAY_MS

    def forgive_expired(self) -> None:
        """An artifact may go when its time is over and it is not the newest of its name."""
        listed = {artifact.number for artifact in self.world.store.artifacts.list(limit=1000).artifacts}
        newest = {name: number for number, (name, _) in sorted(self.artifacts.items())}
        for number in set(self.artifacts) - listed:
            name, _ = self.artifacts.pop(number)
            assert newest[name] != number, f"the newest artifact of {name} is gone"
            assert not self.is_young(self.pushed_ms[number]), f"artifact {number} is gone before its time"

    def whole(self) -> set[SnapshotDigest]:
        """What is young, what a pointer names, and the last few that are not bad."""
        found = {digest for digest in self.published if self.is_young(self.published_ms[digest])}
        for flips in self.flips.values():
            for _, to in flips[-1:]:
                found |= {digest for digest in self.published if str(digest) == to}
        return found

    def kept(self) -> set[frozenset[str]]:
        return super().kept() | set(self.pins.values())

    def settle_doubt(self) -> None:
        super().settle_doubt()
        if self.doubt == ("collect",):
            self.forgive_expired()

    def requests(self, data: st.DataObject) -> dict[str, Callable[[], None]]:
        def collect() -> None:
            self.doubt = ("collect",)
            self.collect()

        return {**super().requests(data), "collect": collect}


@pytest.mark.parametrize("bounds", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def test_collection_machine(bounds: settings) -> None:
    run_state_machine_as_test(CollectionMachine, settings=bounds)
