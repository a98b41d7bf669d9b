"""The steps that every competitor takes, their order, and their names in tables."""

from __future__ import annotations

from typing import Final

PUSH_1: Final = "push-1"
PUSH_SAME: Final = "push-same"
PUSH_2: Final = "push-2"
VERIFY: Final = "verify"
PULL_1: Final = "pull-1"
PULL_1_NO_SYNC: Final = "pull-1-no-sync"
PULL_2: Final = "pull-2"
PULL_2_LINK: Final = "pull-2-link"

TITLES: Final = {
    PUSH_1: "push release 1 into an empty store",
    PUSH_SAME: "push release 1 again, unchanged",
    PUSH_2: "push release 2",
    VERIFY: "verify everything",
    PULL_1: "pull release 1 into an empty directory",
    PULL_1_NO_SYNC: "pull release 1, not synced",
    PULL_2: "pull release 2 with release 1 there",
    PULL_2_LINK: "pull release 2 with release 1 there, linked",
}
"""In the order in which they are taken; what a step needs was made by those before it."""

PUSHES: Final = (PUSH_1, PUSH_SAME, PUSH_2)

# What a peer is held against where it has no such step of its own: it syncs no restore, and knows no linked one.
STANDS_FOR: Final = {PULL_1_NO_SYNC: PULL_1, PULL_2_LINK: PULL_2}


_NEEDS: Final = {
    PUSH_SAME: {PUSH_1},
    PUSH_2: {PUSH_1},
    VERIFY: {PUSH_1, PUSH_2},
    PULL_1: {PUSH_1},
    PULL_1_NO_SYNC: {PUSH_1},
    PULL_2: {PUSH_1, PUSH_2, PULL_1},
    PULL_2_LINK: {PUSH_1, PUSH_2, PULL_1},
}


def needed(wanted: list[str]) -> list[str]:
    """``wanted`` and what those steps need, in order: a pull without something pushed is nothing."""
    all_of_them = set(wanted).union(*(_NEEDS.get(step, set()) for step in wanted))
    return [step for step in TITLES if step in all_of_them]
