"""What the fault runs have tried: counted where it is tried, told at the end of the run.

``CASSTORE_SEED`` sets the seed that every random choice of these runs is drawn from; without it one is drawn and printed.
"""

from __future__ import annotations

import os
import random
from functools import cache
from typing import Any

_counts: dict[str, int] = {}
_lives: dict[str, int] = {}
_notes: list[str] = []


@cache
def seed_of_run() -> int:
    """The seed of this run, the same for all that ask."""
    seed = int(os.environ.get("CASSTORE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    os.environ["CASSTORE_SEED"] = str(seed)  # processes that share the run make the same choices
    _notes.append(f"CASSTORE_SEED={seed} makes the same choices again")
    return seed


def chance_of(what: str) -> random.Random:
    """A source of random choices for one purpose, whatever else ran before it."""
    return random.Random(f"{seed_of_run()} {what}")


def count_states(scenario: str, number: int) -> None:
    """So many states of a store were made and judged."""
    _counts[scenario] = _counts.get(scenario, 0) + number


def count_life(scenario: str) -> None:
    """A process lived with a fault in it; what it left may have been judged before."""
    _lives[scenario] = _lives.get(scenario, 0) + 1


def note(line: str) -> None:
    """Something else to be told at the end."""
    _notes.append(line)


def hand_over() -> list[object]:
    """All that was counted here, for another process."""
    return [_counts, _lives, _notes]


def take_over(handed: list[Any]) -> None:
    """Add what another process counted."""
    counts, lives, notes = handed
    for mine, theirs in ((_counts, counts), (_lives, lives)):
        for what, number in theirs.items():
            mine[what] = mine.get(what, 0) + number
    _notes.extend(line for line in notes if line not in _notes)


def summary() -> list[str]:
    """Lines for a person; none if nothing was counted."""
    lines = []
    if _counts:
        lines.append(f"{sum(_counts.values())} states were made and judged:")
    for what, number in _counts.items():
        lives = f" that {_lives[what]} lives with a fault have left" if what in _lives else ""
        lines.append(f"  {number} states: {what}{lives}")
    return lines + _notes
