"""Where a rollback goes: from the five ways of saying so to one snapshot.

Owns the reading of ``to``.  What ``previous`` means is :mod:`casstore.transitions.rollback`'s; whether an explicit target is
allowed is judged again when the flip is planned.
"""

from __future__ import annotations

from casstore.engine.history import Flip, flips_down, last_seq, parse_flip, read_flip
from casstore.engine.lookup import LedgerLookup
from casstore.errors import InvalidInput, NoRollbackTarget, NotPermitted
from casstore.formats.policy import Policy
from casstore.formats.state import PointerLeaf
from casstore.ids import SnapshotDigest
from casstore.storage.roles import LedgerView
from casstore.transitions.rollback import Resolved, resolve_previous
from casstore.wire import RollbackTo, parse_time

PREVIOUS = RollbackTo(previous=True)


def parse_target(text: str) -> RollbackTo:
    """Read ``to`` as it stands in a query: ``previous``, a snapshot's digest, ``f1043``, ``seq:12`` or ``before:<time>``.

    Raises:
        InvalidInput: none of them.
    """
    if text == "previous":
        return PREVIOUS
    if text.startswith("blake3:"):
        return RollbackTo(snapshot=text)
    if text.startswith("before:"):
        return RollbackTo(before=text.removeprefix("before:"))
    if text.startswith("seq:"):
        return RollbackTo(seq=parse_flip("f" + text.removeprefix("seq:")))
    if text.startswith("f"):
        return RollbackTo(flip=parse_flip(text))
    raise InvalidInput(
        f"{text[:100]!r} is not where a rollback can go: previous, blake3:…, f1043, seq:12 or before:<time>"
    )


def resolve_target(
    view: LedgerView, lookup: LedgerLookup, leaf: PointerLeaf, policy: Policy, *, to: RollbackTo, ts: int
) -> Resolved:
    """The snapshot that a rollback would go to.

    Args:
        view: holds the pointer's history up to ``leaf``.
        lookup: over the same view.
        leaf: the pointer now.
        policy: in force.
        to: exactly one of its fields is set.
        ts: now, ms since the epoch.

    Raises:
        InvalidInput: none or several fields are set, or one is out of range.
        InvalidDigest: not a snapshot's digest.
        NoRollbackTarget: nothing qualifies, or the pointer named nothing there.
        NotPermitted: the policy has no rule for the pointer.
    """
    given = [name for name in RollbackTo.__struct_fields__ if _is_given(getattr(to, name))]
    if len(given) != 1:
        raise InvalidInput(f"a rollback has one target, this has {len(given)}: {', '.join(given) or 'none'}")
    if to.previous:
        rule = policy.rule_for(leaf.pointer)
        if rule is None:
            raise NotPermitted(f"the policy has no rule for {leaf.pointer}", permission=f"rollback:{leaf.pointer}")
        return resolve_previous(leaf, rule, ts=ts, lookup=lookup)
    found = _find(view, leaf, to)
    if found is None or found.row.to is None:
        raise NoRollbackTarget(f"{leaf.pointer} named no snapshot there", skipped=[])
    return Resolved(SnapshotDigest.parse(found.row.to), found.row.flip, ())


def _is_given(value: object) -> bool:
    return value is not None and value is not False  # not "in (None, False)": flip 0 equals False


def _find(view: LedgerView, leaf: PointerLeaf, to: RollbackTo) -> Flip | None:
    name, newest = leaf.pointer, leaf.seq
    seq = 0
    if to.snapshot is not None:
        wanted = str(SnapshotDigest.parse(to.snapshot))
        return next((flip for flip in flips_down(view, name, newest) if flip.row.to == wanted), None)
    if to.seq is not None:
        seq = to.seq
    elif to.flip is not None:
        index = to.flip
        seq = last_seq(view, name, newest, lambda row: row.flip <= index)
        if seq and read_flip(view, name, seq).flip != index:
            seq = 0
    elif to.before is not None:
        time = parse_time(to.before)
        seq = last_seq(view, name, newest, lambda row: row.at < time)
    return Flip(seq, read_flip(view, name, seq)) if 0 < seq <= newest else None
