"""What can be submitted to the log, in the form in which it arrives.

Owns the way from a request without a signature to the intent that is logged for it.  A signed request carries its intent; for
an unsigned one the server writes it, with the token's principal beside it, and the policy's rule must say ``unsigned``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from casstore.engine.records import PointerRecord
from casstore.errors import DamagedObject, InvalidInput, PreconditionFailed
from casstore.formats.acts import FlipArgs, FlipKind, Member, args_of, flip_args
from casstore.formats.canonical import encode_canonical
from casstore.formats.entry import GcBody
from casstore.formats.intent import Intent, encode_intent
from casstore.formats.policy import Policy
from casstore.ids import PointerName, PrincipalName, SnapshotDigest
from casstore.limits import INTENT_MAX_MS
from casstore.transitions.authority import UnsignedAct
from casstore.wire import Envelope, RollbackTo

IDEMPOTENCY_KEY_MAX_CHARS: Final = 255
UNSIGNED_INTENT_MS: Final = 60_000  # the server commits it at once; a rule with a shorter bound shortens it


class SignedSubmission(NamedTuple):
    """An intent with its signatures.  Its payload's hash is its idempotency key."""

    envelope: Envelope


class Expect(NamedTuple):
    """Where the caller saw the pointer: at this flip and, where given, with this last entry; None: no such pointer."""

    flip: int | None
    entry: int | None = None


class Caller(NamedTuple):
    """On whose word an unsigned act is taken."""

    token: str
    """The token's id."""
    principal: PrincipalName
    idempotency_key: str | None = None
    """At most ``IDEMPOTENCY_KEY_MAX_CHARS``; a retry with the same key is the same request."""


class UnsignedFlip(NamedTuple):
    """Flip one pointer, where the rule takes a token's word for it."""

    pointer: PointerName
    snapshot: SnapshotDigest
    expect: Expect
    reason: str
    caller: Caller


class UnsignedRollback(NamedTuple):
    """Roll one pointer back, where the rule takes a token's word for it.  The target is resolved when it is planned."""

    pointer: PointerName
    to: RollbackTo
    expect: Expect
    reason: str
    leave_bad: bool
    leave_hold: bool
    caller: Caller


class Collected(NamedTuple):
    """The server's own word on what it is about to drop."""

    body: GcBody


Unsigned = UnsignedFlip | UnsignedRollback
Submission = SignedSubmission | UnsignedFlip | UnsignedRollback | Collected


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an idempotency key of an unsigned request led to."""

    entry: int
    request: str
    """:func:`fingerprint` of the request."""


def decode_remembered(row: bytes) -> Remembered:
    """Read what was remembered.

    Raises:
        DamagedObject: it is not readable.
    """
    try:
        return msgspec.json.decode(row, type=Remembered)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedObject(
            f"an idempotency key's row is not readable: {error}", where="ledger, table intents"
        ) from error


class Moment(NamedTuple):
    """Where and when an intent of the server's own making is written."""

    origin: str
    policy: Policy
    ts: int
    size: int
    root: bytes


def idempotency_row(caller: Caller) -> bytes | None:
    """The key under which an unsigned request is remembered; 33 bytes, so that it is never an intent's id.

    Raises:
        InvalidInput: the idempotency key is empty, too long, or not printable ASCII.
    """
    key = caller.idempotency_key
    if key is None:
        return None
    if not key.isascii() or not key.isprintable() or not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX_CHARS:
        raise InvalidInput(f"an idempotency key has 1 to {IDEMPOTENCY_KEY_MAX_CHARS} printable ASCII characters")
    return b"k" + hashlib.sha256(caller.principal.encode() + b"\0" + key.encode()).digest()


def fingerprint(request: Unsigned) -> str:
    """SHA-256 of what is asked for, so that a key that is used for another request is noticed."""
    asked: dict[str, Any] = {
        "expect": [request.expect.flip, request.expect.entry],
        "pointer": request.pointer,
        "reason": request.reason,
    }
    if isinstance(request, UnsignedFlip):
        asked |= {"snapshot": str(request.snapshot)}
    else:
        to = {name: getattr(request.to, name) for name in RollbackTo.__struct_fields__}
        asked |= {"leave": [request.leave_bad, request.leave_hold], "to": to}
    return hashlib.sha256(encode_canonical(asked)).hexdigest()


def check_expect(request: Unsigned, record: PointerRecord | None) -> None:
    """Hold what the caller saw against the pointer: the flip and, where the whole entity tag was given, the last entry.

    Raises:
        PreconditionFailed: the pointer is not as the caller saw it; whoever answers puts in how it is.
    """
    flip, entry = request.expect
    found = None if record is None else record.flip
    if found == flip and (record is None or entry is None or record.entry == entry):
        return
    expected = "none" if flip is None else f"f{flip}" if entry is None else f"f{flip}.e{entry}"
    raise PreconditionFailed(
        f"{request.pointer} is not at {expected}", expected=expected, current={"pointer": str(request.pointer)}
    )


def kind_of(request: Unsigned) -> FlipKind:
    """The kind of flip that an unsigned request is."""
    if isinstance(request, UnsignedRollback):
        return "rollback"
    return "init" if request.expect.flip is None else "deploy"


def build_act(
    request: Unsigned, target: SnapshotDigest, moment: Moment, randomness: Callable[[int], bytes]
) -> UnsignedAct:
    """The act of an unsigned request.

    Args:
        request: what was asked for.
        target: the snapshot to go to; a rollback's is resolved before.
        moment: the log as it is.
        randomness: returns that many random bytes.

    Raises:
        InvalidInput: a reason that is too long or not well-formed.
    """
    member = Member(expect=request.expect.flip, pointer=request.pointer, to=target)
    args: FlipArgs
    if isinstance(request, UnsignedRollback):
        left = (request.leave_bad, request.leave_hold)
        args = flip_args(kind_of(request), [member], resolve="previous" if request.to.previous else None, left=left)
    else:
        args = flip_args(kind_of(request), [member])
    rule = moment.policy.rule_for(request.pointer)
    valid_ms = min(UNSIGNED_INTENT_MS, rule.max_intent_ms if rule is not None else INTENT_MAX_MS)
    intent = Intent(
        act="flip",
        args=args_of(args),
        exp=moment.ts + valid_ms,
        iat=moment.ts,
        log=moment.origin,
        nonce=randomness(16).hex(),
        policy=moment.policy.version,
        seen_root=moment.root,
        seen_size=moment.size,
        why=request.reason,
    )
    return UnsignedAct(encode_intent(intent), request.caller.token, request.caller.principal)
