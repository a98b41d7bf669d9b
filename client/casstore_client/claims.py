"""Answers about pointers, held against the facts that their proofs establish.

Pure.  An answer of ``/v1`` is a claim; each function here raises unless the facts say the same.

Source: docs/formats/wire.md
"""

from __future__ import annotations

from typing import Literal

from casstore.errors import InvalidInput, InvalidName, VerificationError
from casstore.formats.acts import AnyArgs, FlipArgs, HoldArgs, MarkArgs, ReleaseArgs, SnapshotArgs
from casstore.formats.intent import parse_intent
from casstore.ids import PointerName, SnapshotDigest
from casstore.wire import Pointer, RollbackTarget, RollbackTo, Submitted, WasLive, format_time, parse_time
from casstore_client.facts import Facts, ProvenEntry


def check_pointer(answer: Pointer, facts: Facts) -> None:
    """Check that the pointer is where the answer says.

    Raises:
        VerificationError: the state, or the flip's entry, says otherwise.
    """
    name = _name(answer.pointer)
    leaf = facts.pointer(name)
    snapshot = None if leaf.snapshot is None else str(leaf.snapshot)
    _same(f"the snapshot of {name}", answer.snapshot, snapshot)
    _same(f"the flip of {name}", answer.flip, leaf.flip)
    _same(f"the number of flips of {name}", answer.seq, leaf.seq)
    if answer.hold is not None:
        # The other way round is no lie: a hold that has run out is not shown, and its leaf stays.
        held = None if leaf.held is None else leaf.held.idx
        _same(f"the hold of {name}", answer.hold.entry, held)
    proven, flipped = facts.flip_of(leaf.flip, name)
    _same(f"the target of f{leaf.flip}", None if flipped.to is None else str(flipped.to), snapshot)
    _check_story((answer.kind, answer.reason, answer.since, answer.by), proven, facts)


def check_submitted(answer: Submitted, facts: Facts, payload: bytes) -> None:
    """Check that what was signed is what was logged (or was so already), and that the pointers are where the answer says.

    Raises:
        VerificationError: the entry carries another payload, the log does not show that it was so already, or
            :func:`check_pointer` does.
    """
    proven = facts.entries.get(answer.entry)
    if proven is None:
        raise VerificationError(f"the answer carries no proof of entry {answer.entry}", index=answer.entry)
    args = parse_intent(payload)[1]
    if answer.no_op:
        _check_made_so(args, facts, proven)
    elif proven.entry.payload != payload:
        raise VerificationError(f"entry {answer.entry} is not what this client signed", index=answer.entry)
    told = {pointer.pointer for pointer in answer.pointers}
    for name in _pointers(args):
        if name not in told:
            raise VerificationError(f"the answer says nothing about {name}")
    for pointer in answer.pointers:
        check_pointer(pointer, facts)


def _pointers(args: AnyArgs) -> list[PointerName]:
    if isinstance(args, FlipArgs):
        return [member.pointer for member in args.members]
    return [args.pointer] if isinstance(args, MarkArgs | HoldArgs | ReleaseArgs) else []


def _check_made_so(args: AnyArgs, facts: Facts, proven: ProvenEntry) -> None:
    """Check that there was nothing to do.  A mark may lie further back than the state's leaf reaches: it is believed."""
    if isinstance(args, SnapshotArgs):
        found = proven.entry.intent()[1]
        if not isinstance(found, SnapshotArgs) or found.digest != args.digest:
            raise VerificationError(f"entry {proven.idx} does not publish {args.digest}", index=proven.idx)
    elif isinstance(args, FlipArgs):
        for member in args.members:
            _same(f"the snapshot of {member.pointer}", member.to, facts.pointer(member.pointer).snapshot)
    elif isinstance(args, HoldArgs | ReleaseArgs):
        held = facts.pointer(args.pointer).held is not None
        _same(f"that {args.pointer} is held", isinstance(args, HoldArgs), held)


def check_was_live(answer: WasLive, facts: Facts) -> None:
    """Check what was live at a moment: the flip before it, and the flip behind it, which names the first as what it expected.

    Raises:
        VerificationError: the entries do not show it.
    """
    name = _name(answer.pointer)
    found = None
    if answer.flip is not None:
        found, flipped = facts.flip_of(answer.flip.flip, name)
        _same(f"the target of f{found.idx}", answer.snapshot, None if flipped.to is None else str(flipped.to))
        _same("the beginning", answer.valid_from, format_time(found.entry.ts))
        _same(f"the number of f{found.idx}", answer.flip.seq, flipped.seq)
        told = (answer.flip.kind, answer.flip.reason, answer.flip.at, answer.flip.by)
        _check_story(told, found, facts)
        if _moment(answer.asked, found) < 0:
            raise VerificationError(f"f{found.idx} came after {answer.asked}", index=found.idx)
    elif answer.snapshot is not None:
        raise VerificationError("the answer names a snapshot and no flip that led to it")
    _check_end(answer, facts, name, found)


def check_rollback_target(answer: RollbackTarget, to: Literal["previous"] | RollbackTo, live: WasLive) -> None:
    """Check that a rollback would go where it was told to, and to what was live on its pointer.

    Args:
        answer: where the server says it goes.
        to: what was asked for.
        live: what was live then, checked by :func:`check_was_live`.

    Raises:
        VerificationError: it was not, or it is another flip or snapshot than the one that was asked for.
    """
    if live.flip is None:
        raise VerificationError(f"the server says that {live.pointer} goes back to where it named nothing")
    _same(f"the rollback of {live.pointer} goes to", answer.target, live.snapshot)
    _same("the flip that it goes to", answer.target_flip, live.flip.flip)
    if to == "previous":
        return
    asked = (to.snapshot, live.snapshot), (to.flip, live.flip.flip), (to.seq, live.flip.seq)
    for wanted, found in asked:
        if wanted is not None and found != wanted:
            raise VerificationError(f"the server takes {live.pointer} back to {found}, asked for was {wanted}")


def _check_end(answer: WasLive, facts: Facts, name: PointerName, found: ProvenEntry | None) -> None:
    behind = [proven for proven in facts.entries.values() if found is None or proven.idx != found.idx]
    if answer.valid_until is None and found is not None:
        _same(f"the flip of {name}", facts.pointer(name).flip, found.idx)
        return
    if len(behind) != 1:
        raise VerificationError("the answer does not carry the flip that ended what was live")
    ended, flipped = facts.flip_of(behind[0].idx, name)
    _same(f"what f{ended.idx} replaced", flipped.expect, None if found is None else found.idx)
    if found is not None:
        _same("the end", answer.valid_until, format_time(ended.entry.ts))
    if _moment(answer.asked, ended) >= 0:
        raise VerificationError(f"f{ended.idx} had come before {answer.asked}", index=ended.idx)


def _moment(asked: str, proven: ProvenEntry) -> int:
    """Where the asked moment lies from an entry: below 0 before it, else at it or behind it."""
    if asked.startswith("f"):
        return int(asked[1:]) - proven.idx
    return parse_time(asked) - proven.entry.ts


def _check_story(told: tuple[str, str, str, str], proven: ProvenEntry, facts: Facts) -> None:
    """Hold kind, reason, time and author of a flip against its entry."""
    kind, reason, at, by = told
    intent, args = proven.entry.intent()
    if not isinstance(args, FlipArgs):
        raise VerificationError(f"entry {proven.idx} is not a flip", index=proven.idx)
    _same(f"the kind of f{proven.idx}", kind, args.kind)
    _same(f"the reason of f{proven.idx}", reason, intent.why)
    _same(f"the time of f{proven.idx}", at, format_time(proven.entry.ts))
    if proven.idx in facts.principals:
        _same(f"the author of f{proven.idx}", by, ", ".join(facts.principals[proven.idx]))


def _name(text: str) -> PointerName:
    try:
        return PointerName.parse(text)
    except InvalidName as error:
        raise VerificationError(f"the server speaks of a pointer that cannot be: {error.detail}") from error


def _same(what: str, said: object, proven: object) -> None:
    if said != proven:
        raise VerificationError(f"the server says {what} is {said}, the log proves {proven}")


def snapshot_of(text: str) -> SnapshotDigest:
    """A whole digest of a snapshot.

    Raises:
        InvalidInput: it is not one.
    """
    if not text.startswith("blake3:"):
        raise InvalidInput(f"{text[:80]!r} is not a whole digest", hint="resolve() makes one of a short one")
    return SnapshotDigest.parse(text)
