"""From a signed intent to the permission that its sender's token needs.

A request must pass its token *and* the policy.  The policy is judged where the act is planned, with the signatures; here
stands which permission of the token covers which act, and that the act is one that the resource takes.
"""

from __future__ import annotations

from collections.abc import Collection

from casstore.engine.tokens import Identity, demand_permission
from casstore.errors import InvalidInput
from casstore.formats.acts import AnyArgs, FlipArgs, HoldArgs, MarkArgs, PolicyArgs, ReleaseArgs, SnapshotArgs
from casstore.formats.canonical import decode_b64
from casstore.formats.intent import normalise_envelope, parse_intent
from casstore.ids import PointerName
from casstore.wire import Envelope
from casstore_server.params import parse_pointer


def authorise_intent(
    identity: Identity, envelope: Envelope, acts: Collection[str], *, pointer: PointerName | None = None
) -> AnyArgs:
    """Hold an intent against its sender's token and against the resource that it was sent to.

    Args:
        identity: who sends it.
        envelope: the intent with its signatures, which are *not* verified here.
        acts: what the resource takes.
        pointer: the pointer that the resource's path names, if it names one.

    Returns:
        the act's arguments.

    Raises:
        MalformedDocument: not an intent.
        InvalidInput: another act, or another pointer than the path's.
        InvalidName: a pointer whose name no path can hold.
        NotPermitted: the token lacks the permission.
    """
    intent, args = parse_intent(decode_b64(normalise_envelope(envelope).payload))
    if intent.act not in acts:
        raise InvalidInput(f"this resource takes {' or '.join(sorted(acts))}, the intent says {intent.act}")
    if isinstance(args, FlipArgs):
        verb = "rollback" if args.kind == "rollback" else "flip"
        for member in args.members:
            demand_permission(identity, verb, parse_pointer(member.pointer))
        named = [member.pointer for member in args.members]
    elif isinstance(args, MarkArgs):
        demand_permission(identity, "mark", args.pointer)
        named = [args.pointer]
    elif isinstance(args, HoldArgs | ReleaseArgs):
        demand_permission(identity, "hold", args.pointer)
        named = [args.pointer]
    elif isinstance(args, SnapshotArgs):
        demand_permission(identity, "snapshot:publish")
        named = []
    else:
        assert isinstance(args, PolicyArgs), "no resource takes a genesis"
        demand_permission(identity, "admin")
        named = []
    if pointer is not None and named != [pointer]:
        raise InvalidInput(f"the path says {pointer}, the intent says {', '.join(named)}")
    return args
