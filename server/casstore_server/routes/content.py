"""Content: pushes, packs, trees, blobs, artifacts, comparison.

Source: docs/formats/wire.md
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from casstore.engine.ingest import PackIngest
from casstore.engine.pushes import Proof
from casstore.engine.trees import resolve_prefix
from casstore.errors import InvalidInput, Overloaded
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest, PackId, PushId, TreeDigest
from casstore.limits import MISSING_IDS_MAX, PACK_SIZE_MAX_BYTES, PAGES_REQUEST_MAX
from casstore.store import Store
from casstore.wire import (
    MEDIA_IDS,
    MEDIA_PACK,
    MEDIA_PAGES,
    MEDIA_TREE,
    CommitRequest,
    PackStored,
    encode_page_record,
)
from casstore_server.auth import demand
from casstore_server.bodies import demand_media_type, demand_size, read_ids, read_json, stream_body
from casstore_server.context import context_of
from casstore_server.descriptors import open_pack
from casstore_server.params import Query
from casstore_server.responses import (
    CACHE_NEVER,
    prepare_ranged,
    respond_bytes,
    respond_json,
    send_pack,
    send_pieces,
)

# LIMIT: a prefix that means more than this is too short; the caller asks for more digits.
RESOLVE_MAX: Final = 20
RESOLVE_DIGITS_MIN: Final = 4
_KINDS: Final = {"chunk": ObjectKind.CHUNK, "page": ObjectKind.PAGE}


async def find_missing(request: web.Request) -> web.Response:
    """``POST /v1/pushes/{id}/missing?kind=chunk|page``: which of these ids the push must send."""
    identity = await demand(request, "content:push")
    context = context_of(request)
    push = PushId.parse(request.match_info["id"])
    kind = _KINDS.get(Query(request, "kind").require("kind"))
    if kind is None:
        raise InvalidInput(f"kind is {' or '.join(_KINDS)}")
    ids = await read_ids(request, MEDIA_IDS, count_max=MISSING_IDS_MAX)
    # Chunks are looked up, pages are gone through.
    run = context.bridge.read if kind is ObjectKind.CHUNK else context.bridge.scan
    bitmap = await run(context.store.pushes.missing, push, kind, ids, by=identity.principal)
    return web.Response(body=bitmap, content_type=MEDIA_IDS, headers={"Cache-Control": CACHE_NEVER})


async def receive_pack(request: web.Request) -> web.Response:
    """``POST /v1/pushes/{id}/packs?pack=``: take in one pack, verified as it comes."""
    identity = await demand(request, "content:push")
    context = context_of(request)
    push = PushId.parse(request.match_info["id"])
    query = Query(request, "pack", "runs")
    pack = PackId.parse(query.require("pack"))
    runs_size = query.number("runs") or 0
    demand_media_type(request, MEDIA_PACK)
    limit = min(PACK_SIZE_MAX_BYTES, context.settings.limits.pack_size_bytes) + runs_size
    demand_size(request, limit)
    # LIMIT: memory and processor time; the client waits and sends again.
    if context.uploads >= context.bounds.uploads_max:
        raise Overloaded(f"{context.uploads} packs are being taken in already", retry_after_s=1)
    share = context.upload_shares.take()
    context.uploads += 1
    try:
        # Before a byte of it is read: a pack for which there is no room is not half sent.
        await context.bridge.work(context.store.room.demand, request.content_length or 0)
        ingest = await context.bridge.work(
            context.store.pushes.begin_pack, push, pack, by=identity.principal, runs_size=runs_size
        )
        stored = await _take_in(request, ingest, limit)
    finally:
        context.uploads -= 1
        context.upload_shares.give_back(share)
    context.metrics.packs.inc()
    return respond_json(stored, status=200 if stored.duplicate else 201)


async def _take_in(request: web.Request, ingest: PackIngest, limit: int) -> PackStored:
    bridge = context_of(request).bridge
    feeding: asyncio.Task[None] | None = None
    try:
        # One piece is verified while the next one arrives; never two at once, for a pack is a sequence.
        async for piece in stream_body(request, limit):
            if feeding is not None:
                await feeding
            feeding = asyncio.create_task(bridge.work(ingest.feed, piece))
        if feeding is not None:
            await feeding
        await bridge.work(ingest.seal)
        return await bridge.write_index(ingest.record)
    finally:
        # CRASH: whatever went wrong, a client that vanished included, nothing of the pack stays behind.
        if feeding is not None:
            await asyncio.gather(feeding, return_exceptions=True)
        # ORDER: not in the workers' lane, which may be full: a refused abort would leave the file and the slot for ever.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, ingest.abort))


async def commit_push(request: web.Request) -> web.Response:
    """``POST /v1/pushes/{id}/commit``: prove every file, then record the artifact."""
    identity = await demand(request, "content:push")
    context = context_of(request)
    push = PushId.parse(request.match_info["id"])
    body = await read_json(request, CommitRequest)
    store, bridge = context.store, context.bridge
    # ORDER: the proof, then the index learns of it, then the ledger: each on the thread that it belongs to.
    artifact = await bridge.prove(
        store.pushes.prove, push, body, pool=bridge.provers.executor, width=context.bounds.worker_threads
    )
    if isinstance(artifact, Proof):
        context.metrics.proof_read.inc(artifact.read_bytes)
        remembered = await bridge.write_index(store.pushes.remember, artifact)
        artifact = await bridge.write_ledger(store.pushes.record, remembered, by=identity.principal)
        context.metrics.pushes.inc()
    return respond_json(artifact, status=201)


async def get_tree(request: web.Request) -> web.Response:
    """``GET /v1/trees/{digest}``: the root."""
    await demand(request, "content:read")
    context = context_of(request)
    digest = TreeDigest.parse(request.match_info["digest"])
    root = await context.bridge.read(context.store.trees.root, digest)
    return respond_bytes(request, root, media=MEDIA_TREE, etag=f'"{digest.hex()}"')


async def get_pages(request: web.Request) -> web.StreamResponse:
    """``POST /v1/trees/{digest}/pages``: pages, layouts and where the chunks lie."""
    await demand(request, "content:read")
    context = context_of(request)
    digest = TreeDigest.parse(request.match_info["digest"])
    ids = await read_ids(request, MEDIA_IDS, count_max=PAGES_REQUEST_MAX)
    wanted = await context.bridge.scan(context.store.trees.select_pages, digest, ids)
    records = map(encode_page_record, context.store.trees.page_records(wanted))
    response = web.StreamResponse(headers={"Content-Type": MEDIA_PAGES, "Cache-Control": CACHE_NEVER})
    return await send_pieces(request, response, records)


async def get_blob(request: web.Request) -> web.StreamResponse:
    """``GET /v1/blobs/{digest}``: the bytes, verified as they go."""
    await demand(request, "content:read")
    context = context_of(request)
    blobs = context.store.blobs
    digest = BlobDigest.parse(request.match_info["digest"])
    size = await context.bridge.scan(blobs.size, digest)
    response, selected = await prepare_ranged(
        request, size=size, media="application/octet-stream", etag=f'"{digest.hex()}"'
    )
    if selected is None:
        return response
    pieces = await context.bridge.scan(blobs.read, digest, selected.offset, selected.length)
    return await send_pieces(request, response, pieces)


async def get_blob_layout(request: web.Request) -> web.Response:
    """``GET /v1/blobs/{digest}/layout``: one page record with an empty page."""
    await demand(request, "content:read")
    context = context_of(request)
    digest = BlobDigest.parse(request.match_info["digest"])
    record = await context.bridge.scan(context.store.blobs.record, digest)
    headers = {"Cache-Control": CACHE_NEVER}
    return web.Response(body=encode_page_record(record), content_type=MEDIA_PAGES, headers=headers)


async def get_pack(request: web.Request) -> web.StreamResponse:
    """``GET /v1/packs/{id}``: a pack or a range of it; the client hashes what it gets."""
    await demand(request, "content:read")
    context = context_of(request)
    pack = PackId.parse(request.match_info["id"])
    opened = context.descriptors.find(pack)
    if opened is None:
        fresh = await context.bridge.read(open_pack, context.store.packs.store, pack)
        opened = context.descriptors.keep(pack, fresh)
    return await send_pack(request, opened, media=MEDIA_PACK, etag=f'"{pack}"')


async def list_artifacts(request: web.Request) -> web.Response:
    """``GET /v1/artifacts``: newest first."""
    await demand(request, "content:read")
    context = context_of(request)
    query = Query(request, "name", "label", "after", "limit")
    artifacts = await context.bridge.scan(
        context.store.artifacts.list,
        name=query.text("name"),
        label=query.text("label"),
        after=query.text("after"),
        limit=query.limit(),
    )
    return respond_json(artifacts)


async def resolve(request: web.Request) -> web.Response:
    """``GET /v1/resolve?prefix=``: the digests that a shortened one may mean."""
    await demand(request, "content:read")
    context = context_of(request)
    prefix = Query(request, "prefix").require("prefix")
    digests = await context.bridge.read(_resolve, context.store, prefix)
    return respond_json({"digests": digests})


def _resolve(store: Store, prefix: str) -> list[str]:
    """Snapshots, trees and blobs whose digest begins with ``prefix``."""
    if len(prefix.removeprefix("blake3:")) < RESOLVE_DIGITS_MIN:
        raise InvalidInput(f"a shortened digest has at least {RESOLVE_DIGITS_MIN} hex digits")
    found: set[str] = {str(digest) for digest in store.snapshots.resolve(prefix, limit=RESOLVE_MAX)}
    found |= {str(digest) for digest in store.trees.resolve(prefix, limit=RESOLVE_MAX)}
    # Pages have layouts too; what has a layout and is no page is a blob.
    laid_out = resolve_prefix(store.packs, ObjectKind.LAYOUT, prefix, limit=RESOLVE_MAX)
    for id, is_page in zip(laid_out, store.packs.available(ObjectKind.PAGE, laid_out), strict=True):
        if not is_page:
            found.add(str(BlobDigest(id)))
    return sorted(found)[:RESOLVE_MAX]


async def compare(request: web.Request) -> web.Response:
    """``GET /v1/diff?from=&to=``: what differs between two trees or two snapshots."""
    await demand(request, "content:read")
    context = context_of(request)
    query = Query(request, "from", "to")
    diff = await context.bridge.scan(context.store.diff.diff, query.require("from"), query.require("to"))
    return respond_json(diff)


ROUTES: Final = (
    web.post("/v1/pushes/{id}/missing", find_missing),
    web.post("/v1/pushes/{id}/packs", receive_pack),
    web.post("/v1/pushes/{id}/commit", commit_push),
    web.get("/v1/trees/{digest}", get_tree),
    web.post("/v1/trees/{digest}/pages", get_pages),
    web.get("/v1/blobs/{digest}", get_blob),
    web.get("/v1/blobs/{digest}/layout", get_blob_layout),
    web.get("/v1/packs/{id}", get_pack),
    web.get("/v1/artifacts", list_artifacts),
    web.get("/v1/resolve", resolve),
    web.get("/v1/diff", compare),
)
