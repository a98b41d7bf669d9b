"""``kill -9`` of the real server under the real client's load, again and again, without a repair step in between.

The promise under test: what was acknowledged before a kill is there after it.  Every push pulls back bit for bit, every flip
is in history, fsck finds nothing, and a client that verifies sees one log that only grows.

The moments are random: the seed is printed, and ``CASSTORE_SEED`` sets it (the load is then the same, the machine's timing is
not).  ``CASSTORE_KILLS`` says how often the long run kills; ``make crash KILLS=1000`` is that run alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.crash.siege import Siege
from tests.support.tally import chance_of, count_states, note

KILLS: Final = 8
KILLS_SLOW: Final = int(os.environ.get("CASSTORE_KILLS", "200"))


def besiege(scratch: Path, kept: Path, kills: int) -> None:
    siege = Siege(scratch, chance_of(f"siege of {kills}"))
    try:
        asyncio.run(siege.run(kills))
    except BaseException:
        shutil.copytree(scratch, kept / "siege", symlinks=True)
        print(f"\nthe store and the journal of what was acknowledged: {kept / 'siege'}")
        raise
    finally:
        note(f"siege: {siege.say()}")
    assert siege.kills >= kills
    assert siege.journal.published
    count_states("kills -9 of a server", siege.kills)


def test_kill_9_loses_nothing_that_was_acknowledged(scratch: Path, tmp_path: Path) -> None:
    besiege(scratch / "few", tmp_path, KILLS)


@pytest.mark.slow
def test_many_kills(scratch: Path, tmp_path: Path) -> None:
    besiege(scratch / "many", tmp_path, KILLS_SLOW)
