"""What each act does to the state, and when it cannot.

Owns the second half of judging: expectations, marks, holds, rollback targets, content.  Signatures and policy are
behind us (:mod:`.authority`).  Each function returns the :class:`~casstore.transitions.effects.Effects`, or None if
the world is as asked already.

Order of checks of a flip, each over all members before the next: ``expect``, no-op, eligibility of the kind, bad, hold,
content.  The first that fails is the answer, so the same request always fails for the same reason.

Source: docs/formats/entry.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from casstore.errors import (
    Held,
    InvalidInput,
    PointerNotFound,
    PreconditionFailed,
    SnapshotBad,
    SnapshotIncomplete,
    SnapshotNotFound,
)
from casstore.formats.acts import FlipArgs, HoldArgs, MarkArgs, Member, ReleaseArgs, SnapshotArgs
from casstore.formats.entry import FlippedMember, flip_body
from casstore.formats.policy import Policy, Rule
from casstore.formats.state import HeldSince, PointerLeaf, PolicyLeaf
from casstore.ids import PointerName, SnapshotDigest
from casstore.transitions.effects import Effects, FlipChange, MarkChange, Situation
from casstore.transitions.rollback import check_previous, check_target, is_bad


class _Move(NamedTuple):
    """A member and what it meets."""

    member: Member
    leaf: PointerLeaf | None

    @property
    def current(self) -> SnapshotDigest | None:
        return None if self.leaf is None else self.leaf.snapshot

    @property
    def stays(self) -> bool:
        """Whether the pointer is where the member puts it."""
        return self.leaf is not None and self.leaf.snapshot == self.member.to


def do_policy(policy: Policy, at: Situation) -> Effects:
    """``genesis`` and ``policy``: the policy's leaf."""
    return Effects(leaves=(PolicyLeaf(at.idx, policy.sha256, policy.version),))


def do_snapshot(args: SnapshotArgs, at: Situation) -> Effects | None:
    """``snapshot``: its parents must have been published before it; publishing twice changes nothing.

    Raises:
        SnapshotNotFound: a parent was never published.
    """
    if at.lookup.snapshot_published(args.digest):
        return None
    for parent in args.parents:
        if not at.lookup.snapshot_published(parent):
            raise SnapshotNotFound(f"the parent {parent} of the snapshot was never published")
    return Effects(snapshot=args.digest)


def do_mark(args: MarkArgs, at: Situation) -> Effects | None:
    """``mark``.

    Raises:
        PointerNotFound: there is no such pointer.
        SnapshotNotFound: the snapshot was never published.
    """
    leaf = _pointer(args.pointer, at)
    if not at.lookup.snapshot_published(args.snapshot):
        raise SnapshotNotFound(f"the snapshot {args.snapshot} was never published")
    if at.lookup.marks(args.pointer, args.snapshot) == args.verdict:
        return None
    after = leaf.with_bad(args.snapshot) if args.verdict == "bad" else leaf.without_bad(args.snapshot)
    return Effects(leaves=(after,), marks=(MarkChange(args.pointer, args.snapshot, args.verdict),))


def do_hold(args: HoldArgs, at: Situation) -> Effects | None:
    """``hold``: a second hold replaces the first.

    Raises:
        PointerNotFound: there is no such pointer.
        InvalidInput: the hold would be over already.
    """
    leaf = _pointer(args.pointer, at)
    if args.until is not None and args.until <= at.ts:
        raise InvalidInput(f"the hold on {args.pointer} would be over before it begins")
    if leaf.held is not None and leaf.held.until == args.until:
        return None
    return Effects(leaves=(leaf._replace(held=HeldSince(at.idx, args.until)),))


def do_release(args: ReleaseArgs, at: Situation) -> Effects | None:
    """``release``.

    Raises:
        PointerNotFound: there is no such pointer.
    """
    leaf = _pointer(args.pointer, at)
    return None if leaf.held is None else Effects(leaves=(leaf._replace(held=None),))


def do_flip(args: FlipArgs, at: Situation) -> Effects | None:
    """``flip``: all members, or none.

    Raises:
        PreconditionFailed: a pointer is not where the signer saw it.
        Superseded: the target of a rollback to ``previous`` is not the answer any more.
        NoRollbackTarget: the target of a rollback is not one that the policy allows.
        SnapshotBad: a target is marked bad.
        Held: a pointer is on hold.
        SnapshotNotFound, SnapshotIncomplete: a target was never published, or its content is not all there.
    """
    moves = [_Move(member, at.state.pointer(member.pointer)) for member in args.members]
    for move in moves:
        _check_expect(move)
    if all(move.stays for move in moves):
        return None
    if args.kind == "rollback":
        _check_rollback(args, moves, at)
    _check_marks_and_holds(args, moves, at)
    _check_content((move.member.to for move in moves), at)
    return _flip_effects(args, moves, at)


def _pointer(name: PointerName, at: Situation) -> PointerLeaf:
    leaf = at.state.pointer(name)
    if leaf is None:
        raise PointerNotFound(f"there is no pointer {name}")
    return leaf


def _check_expect(move: _Move) -> None:
    member, leaf = move
    found = None if leaf is None else leaf.flip
    if found == member.expect:
        return
    there = f"{member.pointer} is at f{found}" if leaf is not None else f"{member.pointer} does not exist"
    wanted = "no such pointer yet" if member.expect is None else f"f{member.expect}"
    current: dict[str, object] = {"pointer": str(member.pointer), "flip": found}
    if leaf is not None:
        current |= {"snapshot": None if leaf.snapshot is None else str(leaf.snapshot), "seq": leaf.seq}
    raise PreconditionFailed(
        f"{there}, you expected {wanted}.  Nothing changed.",
        expected="none" if member.expect is None else f"f{member.expect}",
        current=current,
    )


def _check_rollback(args: FlipArgs, moves: list[_Move], at: Situation) -> None:
    """The target of each pointer that moves is one that a rollback may have."""
    for move in moves:
        if move.stays:
            continue
        assert move.leaf is not None, "a rollback expects an earlier flip"
        assert move.member.to is not None, "a rollback has a target"
        rule = _rule(move.member.pointer, at)
        check = check_previous if args.resolve == "previous" else check_target
        check(move.leaf, rule, move.member.to, ts=at.ts, lookup=at.lookup)


def _rule(pointer: PointerName, at: Situation) -> Rule:
    rule = at.policy.rule_for(pointer)
    assert rule is not None, "the policy was asked before"
    return rule


def _check_marks_and_holds(args: FlipArgs, moves: list[_Move], at: Situation) -> None:
    for move in moves:
        member, leaf = move
        if leaf is None or member.to is None or move.stays or args.clear.bad:
            continue
        if is_bad(leaf, member.to, at.lookup):
            raise SnapshotBad(
                f"{member.to.short} is marked bad on {member.pointer}.  Nothing changed.",
                hint="say that the mark is to be cleared, if you mean it",
            )
    if args.kind == "rollback" or args.clear.hold:
        return
    for member, leaf in moves:
        if leaf is not None and leaf.held is not None and leaf.held.holds_at(at.ts):
            raise Held(
                f"{member.pointer} is on hold since entry {leaf.held.idx}.  Nothing changed.",
                hint="release the hold first, or say that it is to be cleared",
            )


def _check_content(targets: Iterable[SnapshotDigest | None], at: Situation) -> None:
    """A flip that could not be served is never accepted."""
    for target in {target: None for target in targets if target is not None}:
        if not at.lookup.snapshot_published(target):
            raise SnapshotNotFound(f"the snapshot {target} was never published")
        if at.lookup.is_complete(target) is False:
            missing, count = at.lookup.missing(target)
            raise SnapshotIncomplete(
                f"content of the snapshot {target.short} is not in the store: {count} missing.  Nothing changed.",
                missing=missing,
                missing_count=count,
            )


def _flip_effects(args: FlipArgs, moves: list[_Move], at: Situation) -> Effects:
    leaves: list[PointerLeaf] = []
    flips: list[FlipChange] = []
    marks: list[MarkChange] = []
    for move in moves:
        member, old = move
        leaf = old or PointerLeaf(member.pointer, None, at.idx, 0, None, ())
        if member.to is not None and not move.stays and args.clear.bad and is_bad(leaf, member.to, at.lookup):
            leaf = leaf.without_bad(member.to)
            marks.append(MarkChange(member.pointer, member.to, None))
        if args.left.bad and not move.stays and move.current is not None:
            leaf = leaf.with_bad(move.current)
            marks.append(MarkChange(member.pointer, move.current, "bad"))
        held = leaf.held
        if args.left.hold:
            held = HeldSince(at.idx, None)
        elif args.clear.hold:
            held = None
        leaves.append(leaf._replace(snapshot=member.to, flip=at.idx, seq=leaf.seq + 1, held=held))
        flips.append(FlipChange(member.pointer, leaf.seq + 1, move.current, member.to, args.kind))
    body = flip_body([FlippedMember(flip.from_, flip.to, flip.seq) for flip in flips])
    return Effects(body=body, leaves=tuple(leaves), flips=tuple(flips), marks=tuple(marks))
