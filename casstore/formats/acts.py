"""The arguments of each act: what a principal can ask the log to do, and with which fields.

Owns the schema of ``args`` in an intent.  Every field is always there, null where it is not used, so that one request
has one spelling.  Must not know signatures, policy or state: whether an act is *allowed* or *possible* is judged in
:mod:`casstore.transitions`.

Invariant: ``parse_args(act, args_of(x)) == x`` for every value ``x`` of the classes below, and :func:`parse_args`
accepts nothing else.

Source: docs/formats/entry.md
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import msgspec

from casstore.errors import MalformedDocument, TooLarge, Unsupported
from casstore.formats.canonical import INTEGER_MAX
from casstore.ids import PointerName, SnapshotDigest
from casstore.limits import FLIP_MEMBERS_MAX, ORIGIN_SIZE_MAX_BYTES, SNAPSHOT_SIZE_MAX_BYTES

FlipKind = Literal["init", "deploy", "promote", "rollback", "breakglass", "retire"]
Verdict = Literal["good", "bad"]
Count = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
"""A number from 0 to 2^53 − 1."""
HashHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A SHA-256 as it stands in our JSON."""

LATER_ACTS: Final = frozenset({"attest", "freeze", "thaw", "ack", "observe", "close"})
"""Acts that the format has a name for and that this version does not act on."""
OWN_ACTS: Final = frozenset({"gc"})
"""Entries that the server writes by itself: nobody can ask for them, and they change no state."""

_ORIGIN: Final = re.compile(r"[!-*,-~]+\Z")


class Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the arguments of all acts have in common."""


class PreviousLog(Args, frozen=True):
    """The log that a new one continues: its origin and its highest verified head."""

    origin: str
    root: HashHex
    size: Count


class GenesisArgs(Args, frozen=True):
    """The first entry: the first policy, and where the log comes from."""

    policy: dict[str, Any]
    prev: PreviousLog | None


class PolicyArgs(Args, frozen=True):
    """A new policy, whole.  ``version`` is the policy's own and one more than the one in force."""

    policy: dict[str, Any]
    version: Count


class SnapshotArgs(Args, frozen=True):
    """Publish a snapshot document of ``size`` bytes."""

    digest: SnapshotDigest
    parents: list[SnapshotDigest]
    size: Annotated[int, msgspec.Meta(ge=1, le=SNAPSHOT_SIZE_MAX_BYTES)]


class Left(Args, frozen=True):
    """What a rollback does about what it leaves: mark it bad, put the pointer on hold."""

    bad: bool
    hold: bool


class Clear(Args, frozen=True):
    """What a flip overrides, and ends: the target's bad mark, the pointer's hold."""

    bad: bool
    hold: bool


class Member(Args, frozen=True):
    """One pointer of a flip.

    ``expect`` is the log index of the flip that the signer saw as current (None for a new pointer), ``to`` the snapshot
    (None retires the pointer).
    """

    expect: Count | None
    pointer: PointerName
    to: SnapshotDigest | None


class FlipArgs(Args, frozen=True):
    """Make one to 32 pointers use other snapshots, all or none; members are sorted by pointer."""

    clear: Clear
    effective_at: Count | None
    guards: list[dict[str, Any]]
    kind: FlipKind
    left: Left
    members: list[Member]
    resolve: Literal["previous"] | None
    rollout: dict[str, Any] | None


class MarkArgs(Args, frozen=True):
    """Say that a snapshot is good or bad on a pointer."""

    pointer: PointerName
    snapshot: SnapshotDigest
    verdict: Verdict


class HoldArgs(Args, frozen=True):
    """Refuse flips other than rollbacks until ``until`` (ms; None: until released)."""

    pointer: PointerName
    until: Count | None


class ReleaseArgs(Args, frozen=True):
    """End a hold."""

    pointer: PointerName


AnyArgs = GenesisArgs | PolicyArgs | SnapshotArgs | FlipArgs | MarkArgs | HoldArgs | ReleaseArgs

ACTS: Final[dict[str, type[AnyArgs]]] = {
    "genesis": GenesisArgs,
    "policy": PolicyArgs,
    "snapshot": SnapshotArgs,
    "flip": FlipArgs,
    "mark": MarkArgs,
    "hold": HoldArgs,
    "release": ReleaseArgs,
}
"""The acts that this version knows, by name."""


def flip_args(
    kind: FlipKind,
    members: list[Member],
    *,
    resolve: Literal["previous"] | None = None,
    left: tuple[bool, bool] = (False, False),
    clear: tuple[bool, bool] = (False, False),
) -> FlipArgs:
    """Arguments of a flip with the fields that later versions use left empty.

    Args:
        kind: why the pointers move.
        members: in any order.
        resolve: ``previous`` where the targets of a rollback were resolved by the server.
        left: (bad, hold).
        clear: (bad, hold).
    """
    return FlipArgs(
        clear=Clear(bad=clear[0], hold=clear[1]),
        effective_at=None,
        guards=[],
        kind=kind,
        left=Left(bad=left[0], hold=left[1]),
        members=sorted(members, key=lambda member: member.pointer),
        resolve=resolve,
        rollout=None,
    )


def args_of(args: AnyArgs) -> dict[str, Any]:
    """The arguments as they stand in an intent."""
    value = msgspec.to_builtins(args, enc_hook=str)
    assert isinstance(value, dict)
    return value


def parse_args(act: str, args: Any) -> AnyArgs:
    """Read the arguments of an act.

    Args:
        act: the act's name.
        args: decoded JSON.

    Raises:
        MalformedDocument: an act that the format does not have, a missing or unknown field, a field of another type, or
            fields that contradict each other.
        InvalidName: not a pointer's name.
        InvalidDigest: not a snapshot's digest.
        TooLarge: more members than a flip may have.
        Unsupported: an act or a field that the format has and that this version does not act on.
    """
    kind = ACTS.get(act)
    if kind is None:
        if act in OWN_ACTS:
            raise Unsupported(f"{act!r} is the server's own act: nobody signs it")
        if act in LATER_ACTS:
            raise Unsupported(f"the act {act!r} is not supported by this version")
        raise MalformedDocument(f"{act[:100]!r} is not an act")
    try:
        parsed = msgspec.convert(args, kind, dec_hook=parse_id)
    except msgspec.ValidationError as error:
        raise MalformedDocument(f"the arguments of the {act} are not well-formed: {error}") from error
    if isinstance(parsed, FlipArgs):
        _check_flip(parsed)
    elif isinstance(parsed, SnapshotArgs):
        check_sorted([str(parent) for parent in parsed.parents], "parents")
    elif isinstance(parsed, GenesisArgs) and parsed.prev is not None:
        check_origin(parsed.prev.origin)
    return parsed


def check_origin(origin: str) -> None:
    """Refuse what cannot name a log: 1 to 255 bytes of printable ASCII without space and ``+``.

    Raises:
        MalformedDocument: it cannot.
    """
    if not _ORIGIN.match(origin) or len(origin) > ORIGIN_SIZE_MAX_BYTES:
        raise MalformedDocument(f"{origin[:100]!r} cannot be the origin of a log: printable ASCII without space or '+'")


def check_sorted(values: list[str], what: str) -> None:
    """Refuse a list that is not sorted or holds something twice.

    Raises:
        MalformedDocument: it does.
    """
    for left, right in pairwise(values):
        if left >= right:
            raise MalformedDocument(f"the {what} must be sorted and distinct: {right[:100]!r} follows {left[:100]!r}")


def parse_id(kind: type[Any], value: Any) -> Any:
    """Read an identifier where it stands in JSON (a ``dec_hook`` of msgspec)."""
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {type(value).__name__}")
    return kind.parse(value)


def _check_flip(flip: FlipArgs) -> None:
    """Hold the fields of a flip against each other."""
    if flip.kind == "breakglass":
        raise Unsupported("break-glass flips are not supported by this version")
    if flip.effective_at is not None or flip.guards or flip.rollout is not None:
        raise Unsupported("a flip with 'effective_at', 'guards' or 'rollout' is not supported by this version")
    if len(flip.members) > FLIP_MEMBERS_MAX:
        raise TooLarge(
            f"a flip has at most {FLIP_MEMBERS_MAX} members, this has {len(flip.members)}", limit=FLIP_MEMBERS_MAX
        )
    if not flip.members:
        raise MalformedDocument("a flip has at least one member")
    check_sorted([member.pointer for member in flip.members], "members of a flip")
    if flip.kind != "rollback" and (flip.resolve is not None or flip.left.bad or flip.left.hold):
        raise MalformedDocument(f"only a rollback resolves its target or says what it leaves, this is a {flip.kind}")
    if flip.left.hold and flip.clear.hold:
        raise MalformedDocument("a flip cannot clear the hold and leave one")
    for member in flip.members:
        if (flip.kind == "retire") != (member.to is None):
            raise MalformedDocument(f"{member.pointer}: a retire has no target, every other flip has one")
        if flip.kind == "init" and member.expect is not None:
            raise MalformedDocument(f"{member.pointer}: an init expects no earlier flip")
        if flip.kind in ("rollback", "retire") and member.expect is None:
            raise MalformedDocument(f"{member.pointer}: a {flip.kind} expects an earlier flip")
