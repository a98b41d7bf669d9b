"""Collection: what is kept and why, when what is not is gone, and that nobody who relies on something loses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gcworld import HOUR_MS, GcWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GcWorld]:
    with GcWorld(tmp_path / "store") as opened:
        yield opened


def test_garbage_is_condemned_dropped_retired_and_deleted(world: GcWorld) -> None:
    """The whole way of something that nobody needs any more, from its last use to free space."""
    old = world.push("old")
    world.age()
    kept = world.push("kept")
    first = world.collect()
    assert first.condemned["root"] == 1
    assert not first.dropped
    assert world.is_there(old)  # condemned is there for who reads, and missing for who pushes
    assert not world.is_live(old)
    again = world.collect()
    assert not again.condemned
    assert not again.dropped
    assert again.waiting == sum(first.condemned.values())
    world.clock.advance(25 * HOUR_MS)
    last = world.collect()
    assert last.dropped == first.condemned
    assert last.packs_retired >= 1
    assert not world.is_there(old)
    assert world.is_whole(kept)
    before = len(world.files())
    world.clock.advance(2 * HOUR_MS)
    assert world.collect().packs_deleted == last.packs_retired
    assert len(world.files()) == before - last.packs_retired
    world.check()
