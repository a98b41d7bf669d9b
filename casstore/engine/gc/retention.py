"""How long things are kept that nothing current needs.

Owns the numbers and their meaning; where they are written down is :mod:`casstore.config`'s business.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from casstore.formats.policy import glob_matches

DAY_MS: Final = 24 * 60 * 60 * 1000
KEEP_LAST_MIN: Final = 5  # a rollback, and one more, and the one before that, must be possible whatever the age
HISTORY_DAYS: Final = 365
SNAPSHOT_DAYS: Final = 180
ARTIFACT_DAYS: Final = 90
ARTIFACTS_KEPT: Final = 5


class HistoryRule(NamedTuple):
    """How long the pointers that a glob covers keep what they have named."""

    pointers: str
    days: int


class Retention(NamedTuple):
    """What is kept beside what is current.

    Attributes:
        history: by pointer, the first rule that covers it; without one, ``history_days``.
        history_days: for how long a pointer's earlier snapshots are kept after it has left them.
        snapshot_days: for how long a published snapshot is kept that no pointer has named.
        artifact_days: for how long an artifact is kept.
        keep_last: of each pointer, this many distinct snapshots that are not bad are kept whatever their age.
        keep_artifacts: of each name, this many newest artifacts are kept whatever their age.
    """

    history: tuple[HistoryRule, ...] = ()
    history_days: int = HISTORY_DAYS
    snapshot_days: int = SNAPSHOT_DAYS
    artifact_days: int = ARTIFACT_DAYS
    keep_last: int = KEEP_LAST_MIN
    keep_artifacts: int = ARTIFACTS_KEPT

    def history_ms(self, pointer: str) -> int:
        """For how long this pointer keeps what it has left."""
        for rule in self.history:
            if glob_matches(rule.pointers, pointer):
                return rule.days * DAY_MS
        return self.history_days * DAY_MS
