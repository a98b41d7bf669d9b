"""Snapshots: publish, read, list.

Source: docs/formats/snapshot.md
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore.errors import DigestMismatch, InvalidInput
from casstore.formats.acts import SnapshotArgs
from casstore.formats.canonical import decode_b64
from casstore.formats.snapshot import decode_snapshot, snapshot_digest
from casstore.ids import SnapshotDigest
from casstore.wire import MEDIA_SNAPSHOT, SnapshotPublish
from casstore_server.acts import submit_signed
from casstore_server.auth import demand, identify
from casstore_server.bodies import read_json
from casstore_server.context import context_of
from casstore_server.intents import authorise_intent
from casstore_server.params import Query
from casstore_server.responses import respond_bytes, respond_json, respond_submitted


async def publish(request: web.Request) -> web.Response:
    """``POST /v1/snapshots``: store the document, then log the intent that publishes it."""
    identity = await identify(request)
    context = context_of(request)
    body = await read_json(request, SnapshotPublish)
    args = authorise_intent(identity, body.intent, ("snapshot",))
    assert isinstance(args, SnapshotArgs)
    # Not on the loop: a document of a megabyte takes a fifth of a second.
    document = await context.bridge.scan(_hold_against, body.document, args)
    # ORDER: the content before the document, the document before the entry that says that it exists.
    await context.bridge.store_document(document)
    return respond_submitted(await submit_signed(context, body.intent, args))


def _hold_against(text: str, args: SnapshotArgs) -> bytes:
    """The document, which must be the one that was signed.

    Raises:
        MalformedDocument: not a snapshot document.
        DigestMismatch: another document than the signed one.
        InvalidInput: the signed size or parents are not those of the document.
    """
    document = decode_b64(text)
    snapshot = decode_snapshot(document)
    digest = snapshot_digest(document)
    if digest != args.digest:
        raise DigestMismatch(
            "the document is not the one that the intent names", expected=str(args.digest), found=str(digest)
        )
    if args.size != len(document) or list(args.parents) != list(snapshot.parents):
        raise InvalidInput("size or parents in the intent are not those of the document")
    return document


async def get_snapshot(request: web.Request) -> web.Response:
    """``GET /v1/snapshots/{digest}``: the document."""
    await demand(request, "content:read")
    context = context_of(request)
    digest = SnapshotDigest.parse(request.match_info["digest"])
    document = await context.bridge.read(context.store.snapshots.document, digest)
    return respond_bytes(request, document, media=MEDIA_SNAPSHOT, etag=f'"{digest.hex()}"')


async def list_snapshots(request: web.Request) -> web.Response:
    """``GET /v1/snapshots``: published ones, newest first."""
    await demand(request, "content:read")
    context = context_of(request)
    query = Query(request, "after", "limit")
    found = await context.bridge.read(context.store.pointers.read.snapshots, query.text("after") or "", query.limit())
    return respond_json(found)


ROUTES: Final = (
    web.post("/v1/snapshots", publish),
    web.get("/v1/snapshots", list_snapshots),
    web.get("/v1/snapshots/{digest}", get_snapshot),
)
