"""From a request to the ledger: submit, count, and look at content before the writer has to.

Must not know how to read a request; routes hand in what they read.
"""

from __future__ import annotations

from collections.abc import Iterable

from casstore.engine.pointers import SignedSubmission, Submission
from casstore.errors import DamagedObject, MalformedDocument, SnapshotNotFound
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
    if isinstance(args, FlipArgs):
        await look_ahead(context, (member.to for member in args.members))
    elif isinstance(args, SnapshotArgs):
        await look_ahead(context, [args.digest])
    return await submit(context, SignedSubmission(envelope))


async def submit(context: Context, submission: Submission) -> Submitted:
    """Submit, and count what was committed.

    Raises:
        CasstoreError: whatever the ledger says to it.
    """
    submitted = await context.bridge.submit(submission)
    if not submitted.replayed and not submitted.no_op:
        context.metrics.entries.labels(submitted.type).inc()
    return submitted


async def look_ahead(context: Context, snapshots: Iterable[SnapshotDigest | None]) -> None:
    """Have the content of snapshots looked up by a reader.

    The ledger's writer looks again, and finds the answer remembered: so the first flip to a snapshot of a million files does
    not keep every other flip waiting.  What is wrong with a snapshot is for the writer to say, in its order of checks.
    """
    for snapshot in snapshots:
        if snapshot is None:
            continue
        try:
            await context.bridge.read(context.store.snapshots.completeness, snapshot)
        except (SnapshotNotFound, MalformedDocument, DamagedObject):
            continue
