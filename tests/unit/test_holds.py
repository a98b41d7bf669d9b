"""Holds: while something is copied nothing is removed, and nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from casstore.clock import ManualClock
from casstore.engine.holds import HOLD_MS, Holds
from casstore.errors import DeletionHeld, LeaseLost


def test_nothing_is_removed_while_something_is_copied() -> None:
    """A backup that lists a pack and then finds it gone would be no backup."""
    holds = Holds(ManualClock())
    with holds.deleting():
        pass
    with holds.hold("a backup to one"), holds.hold("a backup to two"):
        assert holds.holders() == ["a backup to one", "a backup to two"]
        with pytest.raises(DeletionHeld, match="a backup to one") as caught, holds.deleting():
            pass
        assert caught.value.holders == holds.holders()
    assert holds.holders() == []
    with holds.deleting():
        pass


def test_a_hold_waits_for_the_deletion_that_is_under_way() -> None:
    """Else the copy could begin between the look at the index and the removal of the file."""
    holds = Holds(ManualClock())
    taken = threading.Event()

    def take() -> None:
        with holds.hold("a backup"):
            taken.set()

    thread = threading.Thread(target=take)
    with holds.deleting():
        thread.start()
        while not holds.holders():
            pass
        assert not taken.is_set()
        # No second one begins meanwhile: the copy would wait for ever behind a busy collection.
        with pytest.raises(DeletionHeld), holds.deleting():
            pass
    thread.join(10)
    assert taken.is_set()


def test_a_holder_that_hangs_is_not_waited_for() -> None:
    """A backup to a dead disk must not fill the store's own disk with what is never collected."""
    clock = ManualClock()
    holds = Holds(clock)
    with holds.hold("a backup") as hold:
        clock.advance(HOLD_MS)
        hold.renew()
        clock.advance(HOLD_MS + 1)
        with holds.deleting():
            pass
        with pytest.raises(LeaseLost):
            hold.renew()


def test_a_hold_ends_with_its_block_whatever_ends_it() -> None:
    holds = Holds(ManualClock())
    with pytest.raises(RuntimeError), holds.hold("a backup"):
        raise RuntimeError
    with holds.deleting():
        pass
    with pytest.raises(RuntimeError), holds.deleting():
        raise RuntimeError
    with holds.hold("a backup"):
        pass
