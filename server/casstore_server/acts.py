"""From a request to the ledger: submit, count, and look at content before the writer has to.

Must not know how to read a request; routes hand in what they read.
"""

from __future__ import annotations

import contextlib

from casstore.engine.pointers import SignedSubmission, Submission
from casstore.errors import DamagedObject, MalformedDocument, Overloaded, SnapshotNotFound
from casstore.formats.acts import AnyArgs, FlipArgs, SnapshotArgs
from casstore.ids import SnapshotDigest
from casstore.wire import Envelope, Submitted
from casstore_server.context import Context


async def submit_signed(context: Context, envelope: Envelope, args: AnyArgs) -> Submitted:
    """Submit a signed intent.

    Args:
        context: the server.
        envelope: the intent.
        args: its arguments, as :func:`casstore_server.intents.authorise_intent` read them.

    Raises:
        CasstoreError: whatever the ledger says to it.

    Durability: the entry is durable, signed and published when this returns.
    """
    submission = SignedSubmission(envelope)
    known = context.store.snapshots.is_known_complete
    if isinstance(args, FlipArgs) and not all(known(member.to) for member in args.members if member.to is not None):
        # A rollback must not wait behind those who read: where the scanners are busy, the writer looks by itself.
        with contextlib.suppress(Overloaded):
            await context.bridge.scan(context.store.pointers.look_ahead, submission)
    elif isinstance(args, SnapshotArgs) and not known(args.digest):
        await context.bridge.scan(context.store.pointers.look_ahead, submission)
    return await submit(context, submission)


async def submit(context: Context, submission: Submission) -> Submitted:
    """Submit, and count what was committed.

    Raises:
        CasstoreError: whatever the ledger says to it.
    """
    submitted = await context.bridge.submit(submission)
    if not submitted.replayed and not submitted.no_op:
        context.metrics.entries.labels(submitted.type).inc()
    return submitted


async def look_ahead(context: Context, snapshot: SnapshotDigest) -> None:
    """Have the content of a snapshot looked up by a scanner.

    The ledger's writer looks again, and finds the answer remembered: so the first flip to a snapshot of a million files does
    not keep every other flip waiting.  What is wrong with a snapshot is for the writer to say, in its order of checks.
    """
    if not context.store.snapshots.is_known_complete(snapshot):
        with contextlib.suppress(SnapshotNotFound, MalformedDocument, DamagedObject, Overloaded):
            await context.bridge.scan(context.store.snapshots.completeness, snapshot)
