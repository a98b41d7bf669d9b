"""Where a rollback may go: a walk back over a pointer's own history.

Owns what ``previous`` means and which targets a rollback may name.  Pure: the history comes from a
:class:`~casstore.transitions.lookup.Lookup`.

The walk goes from the current flip to older ones and never re-activates what was rolled back from: where it meets a
rollback to X, it goes on from the flip that X came from, and everything between is passed over.  So a second rollback
goes further *back*, also where the first one declined to mark what it left.

Source: docs/formats/entry.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from casstore.errors import NoRollbackTarget, Superseded
from casstore.formats.policy import Rule
from casstore.formats.state import PointerLeaf
from casstore.ids import SnapshotDigest
from casstore.transitions.lookup import HistoryRow, Lookup

SKIPPED_MAX: Final = 20  # LIMIT: what an answer names; the walk itself goes on
_DAY_MS: Final = 24 * 3600 * 1000

Why = Literal["bad", "rolled-back", "not-good", "incomplete"]


class Skipped(NamedTuple):
    """A snapshot that the walk passed over, and why."""

    snapshot: SnapshotDigest
    flip: int
    why: Why


class Resolved(NamedTuple):
    """What ``previous`` means now."""

    target: SnapshotDigest
    flip: int
    """Log index of the flip that had made it live."""
    skipped: tuple[Skipped, ...]


class Step(NamedTuple):
    """One flip that the walk met; ``why`` is None if the rules let a rollback go there (content not looked at)."""

    row: HistoryRow
    snapshot: SnapshotDigest
    why: Why | None


def is_bad(leaf: PointerLeaf, snapshot: SnapshotDigest, lookup: Lookup) -> bool:
    """Whether a snapshot counts as bad on a pointer.

    The leaf holds the newest marks, the marks themselves are never forgotten.
    """
    return snapshot in leaf.bad or lookup.marks(leaf.pointer, snapshot) == "bad"


def walk_back(leaf: PointerLeaf, rule: Rule, *, ts: int, lookup: Lookup) -> Iterator[Step]:
    """The flips that a rollback from here would consider, newest first; the current snapshot and retirements are left
    out.

    Args:
        leaf: the pointer now.
        rule: the policy's, for gating and age.
        ts: now, ms.
        lookup: the log so far.
    """
    ended = ts
    resume: SnapshotDigest | None = None  # after a rollback to X: pass over everything until X came from somewhere
    for row in lookup.history(leaf.pointer):
        if _too_old(rule, ended, ts):
            return  # everything older ended earlier still
        ended = row.ts
        passed_over = resume is not None and row.to != resume
        if not passed_over:
            resume = row.to if row.kind == "rollback" else None
        if row.to is None or row.to == leaf.snapshot:
            continue
        yield Step(row, row.to, "rolled-back" if passed_over else _unfit(leaf, row.to, rule, lookup))


def resolve_previous(leaf: PointerLeaf, rule: Rule, *, ts: int, lookup: Lookup) -> Resolved:
    """What a rollback to ``previous`` goes to, for the client to sign.

    Args:
        leaf: the pointer now.
        rule: the policy's, for gating and age.
        ts: now, ms.
        lookup: the log so far, and which content is there.

    Raises:
        NoRollbackTarget: nothing qualifies; ``skipped`` says what was passed over and why.
    """
    skipped: dict[SnapshotDigest, Skipped] = {}
    for step in walk_back(leaf, rule, ts=ts, lookup=lookup):
        why = step.why
        if why is None and lookup.is_complete(step.snapshot) is False:
            why = "incomplete"
        if why is None:
            return Resolved(step.snapshot, step.row.flip, tuple(skipped.values()))
        if len(skipped) < SKIPPED_MAX:
            skipped.setdefault(step.snapshot, Skipped(step.snapshot, step.row.flip, why))
    raise NoRollbackTarget(
        f"{leaf.pointer} has nothing to roll back to" + (f"; {len(skipped)} passed over" if skipped else ""),
        skipped=[{"snapshot": str(item.snapshot), "flip": item.flip, "why": item.why} for item in skipped.values()],
    )


def check_previous(leaf: PointerLeaf, rule: Rule, to: SnapshotDigest, *, ts: int, lookup: Lookup) -> None:
    """Check at commit that the resolved target still is the answer.

    # KNOWN HOLE: which content was there is not in the log, so a replay believes the server that what it passed over
    # was incomplete.  The signer saw the target and signed it; what a lying server gains is that they go further back.

    Raises:
        Superseded: another snapshot is the answer now, or none is.
    """
    for step in walk_back(leaf, rule, ts=ts, lookup=lookup):
        if step.why is not None:
            continue
        if step.snapshot == to:
            return
        if lookup.is_complete(step.snapshot):
            raise Superseded(
                f"{leaf.pointer}: the previous snapshot is {step.snapshot.short} (f{step.row.flip}) now, "
                f"not {to.short} as signed.  Nothing changed."
            )
    raise Superseded(f"{leaf.pointer}: {to.short} is no longer what a rollback goes to.  Nothing changed.")


def check_target(leaf: PointerLeaf, rule: Rule, to: SnapshotDigest, *, ts: int, lookup: Lookup) -> None:
    """Check that a target that the signer chose is one for a rollback: it was live here, lately enough, and found good
    where the rule says so.

    Raises:
        NoRollbackTarget: it is not.
    """
    ended = ts
    for row in lookup.history(leaf.pointer):
        if _too_old(rule, ended, ts):
            assert rule.rollback is not None
            raise NoRollbackTarget(
                f"{leaf.pointer}: {to.short} was not live within the last {rule.rollback.max_age_days} days"
            )
        if row.to == to:
            break
        ended = row.ts
    else:
        raise NoRollbackTarget(f"{leaf.pointer}: {to.short} never was live here: flip to it instead")
    if rule.rollback is not None and rule.rollback.confirmed_good_only and lookup.marks(leaf.pointer, to) != "good":
        raise NoRollbackTarget(f"{leaf.pointer}: {to.short} was never marked good, and the policy asks for that")


def _too_old(rule: Rule, ended: int, ts: int) -> bool:
    """Whether what stopped being live at ``ended`` is beyond the rule's age."""
    days = None if rule.rollback is None else rule.rollback.max_age_days
    return days is not None and ended < ts - days * _DAY_MS


def _unfit(leaf: PointerLeaf, snapshot: SnapshotDigest, rule: Rule, lookup: Lookup) -> Why | None:
    if is_bad(leaf, snapshot, lookup):
        return "bad"
    confirmed = rule.rollback is not None and rule.rollback.confirmed_good_only
    if (rule.gating != "none" or confirmed) and lookup.marks(leaf.pointer, snapshot) != "good":
        return "not-good"
    return None
