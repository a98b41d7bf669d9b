"""The making of a store, with a death at any of its disk operations.

The promise under test: a directory that is half a store says so, and never opens without its keys, its genesis or its tables.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import pytest

from casstore.admin import Created, create_store
from casstore.clock import ManualClock
from casstore.errors import CasstoreError, NotInitialised, StoreNotFound
from casstore.store import Store
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, fingerprint, restore
from tests.support.tally import chance_of, count_life, count_states

SAMPLE: Final = 12


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_interrupted_creation_is_not_a_store(scratch: Path, sample: int | None) -> None:
    """A store that was half made must say so, not open without its genesis."""
    above, left = scratch / f"above-{sample}", scratch / f"left-{sample}"

    def make(fault: Fault | None) -> tuple[FaultyFiles, Created | None]:
        restore({}, str(above))
        files = FaultyFiles(str(above), fault)
        try:
            made = create_store(
                above / "store", clock=ManualClock(), files=files, randomness=random.Random(0).randbytes
            )
        except CasstoreError:
            return files, None
        return files, made

    files, made = make(None)
    assert made is not None
    calls = files.calls
    # The 256 directories for packs are alike: the first and the last of them stand for the others.
    positions = [
        at for at, name in enumerate(calls) if name != "mkdir" or at < 5 or set(calls[at - 1 : at + 2]) != {"mkdir"}
    ]
    checked: set[tuple[bytes, bool]] = set()
    every = [Fault(at, effect, for_good=True) for at in positions for effect in (Effect.NOTHING, Effect.ALL)]
    for fault in every if sample is None else chance_of("creation").sample(every, sample):
        at = fault.at
        count_life("making a store")
        files, made = make(fault)
        for loss in Loss:
            picture = files.picture(loss)
            key = (fingerprint(picture), made is not None)
            if key not in checked:
                checked.add(key)
                count_states("making a store", 1)
                restore(picture, str(left))
                try:
                    store = Store.open(left / "store", clock=ManualClock())
                except (NotInitialised, StoreNotFound):
                    assert made is None, (calls[at], loss)
                    continue
                with store:
                    assert store.log.size == 1
                    assert store.fsck().ok
                    if made is not None:
                        assert store.tokens.authenticate(made.token.secret or "").principal == "operator"
