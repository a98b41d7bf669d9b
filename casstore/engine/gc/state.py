"""What collection remembers between runs: a note in the index.

Owns the numbers of marks, and whether the clock can be believed.  Grace runs on the wall clock, because it goes on while the machine
is off; a wall clock can be set, so it is held against the boot clock, which no one can set.

Lost with the index, the note is begun anew: nothing is condemned then.
"""

from __future__ import annotations

from typing import Final

import msgspec

from casstore.clock import Clock
from casstore.limits import CLOCK_SKEW_MAX_MS
from casstore.storage.roles import ChunkIndex

NOTE: Final = "gc"
ORPHANS_MAX: Final = 500  # LIMIT: of the note, 64 KiB


class GcState(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered.

    Attributes:
        mark: number of the newest mark that was begun.
        wall_ms: the wall clock when the clocks were last held against each other, ms since the epoch; None: never.
        boot_ms: the boot clock at the same moment.
        boot: which boot that was.
        newest_ms: the latest wall time that was seen.
        swept: whether anything was ever dropped: from then on a frame that no row names is no damage.
        orphans: packs that the index does not know, in hex, and since when.
    """

    mark: int = 0
    wall_ms: int | None = None
    boot_ms: int = 0
    boot: str = ""
    newest_ms: int = 0
    swept: bool = False
    orphans: dict[str, int] = msgspec.field(default_factory=dict)


def read_state(index: ChunkIndex) -> GcState:
    """The note; a new one where there is none, or none that can be read."""
    data = index.read_note(NOTE)
    try:
        return GcState() if data is None else msgspec.json.decode(data, type=GcState)
    except msgspec.MsgspecError:
        return GcState()


def write_state(index: ChunkIndex, state: GcState) -> None:
    """Keep the note.

    Threads: index writer.
    """
    index.write_note(NOTE, msgspec.json.encode(state))


def clock_step(state: GcState, clock: Clock) -> int | None:
    """By how much the wall clock was set since the note was written, in ms; None where it was not.

    KNOWN HOLE: over a reboot the boot clock begins anew, and a clock that was set forward meanwhile can not be told from a machine
    that was off.  It shortens the time in which a condemned object can be had back, and nothing else: no push and no claim
    outlives the process, and a second mark reads the roots again.
    """
    if state.wall_ms is None:
        return None
    now = clock.now_ms()
    if state.boot == clock.boot():
        step = (now - clock.boottime_ms()) - (state.wall_ms - state.boot_ms)
    else:
        step = min(now - state.newest_ms, 0)
    return step if abs(step) > CLOCK_SKEW_MAX_MS else None


def anchor(state: GcState, clock: Clock) -> None:
    """Believe the clock as it stands."""
    state.wall_ms, state.boot_ms, state.boot = clock.now_ms(), clock.boottime_ms(), clock.boot()
    state.newest_ms = state.wall_ms
