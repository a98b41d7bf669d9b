"""Operating: configuration for clients, tokens, fsck, status."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore import __version__
from casstore.chunking import ALGORITHM, DEFAULT_PARAMETERS
from casstore.errors import RequestInProgress
from casstore.formats.pack import ObjectKind
from casstore.limits import (
    FORMAT_VERSION,
    JSON_BODY_MAX_BYTES,
    MISSING_IDS_MAX,
    PACK_FRAMES_MAX,
    PACK_SIZE_MAX_BYTES,
    PACK_TARGET_BYTES,
    PACKS_PER_PUSH_IN_FLIGHT,
    PAGES_REQUEST_MAX,
    RANGE_REQUEST_MAX_BYTES,
)
from casstore.store import Store
from casstore.wire import Chunking, LogInfo, ServerConfig, TokenCreate
from casstore_server.auth import demand, demand_log_reader
from casstore_server.bodies import read_json
from casstore_server.context import Context, context_of
from casstore_server.params import Query
from casstore_server.responses import CACHE_REVALIDATE, respond_json

_PACKS_PAGE: Final = 1000


def build_config(context: Context) -> ServerConfig:
    """What clients need to know: how to cut, which log this is, and the bounds."""
    limits = context.settings.limits
    return ServerConfig(
        version=__version__,
        format_version=FORMAT_VERSION,
        chunking=Chunking(
            algorithm=ALGORITHM,
            min_bytes=DEFAULT_PARAMETERS.min_bytes,
            avg_bytes=DEFAULT_PARAMETERS.avg_bytes,
            max_bytes=DEFAULT_PARAMETERS.max_bytes,
            seed=DEFAULT_PARAMETERS.seed,
            normalization=DEFAULT_PARAMETERS.normalization,
            small_file_bytes=DEFAULT_PARAMETERS.small_file_bytes,
            bundle_cut_min_bytes=DEFAULT_PARAMETERS.bundle_cut_min_bytes,
            bundle_cut_divisor_bytes=DEFAULT_PARAMETERS.bundle_cut_divisor_bytes,
            compression="zstd",
        ),
        log=LogInfo(
            origin=context.store.log.origin,
            vkey=context.store.log.verifier.encode(),
            genesis_sha256=context.genesis_sha256,
            private=context.settings.private_log,
        ),
        limits={
            "json_body_bytes": min(JSON_BODY_MAX_BYTES, limits.json_body_bytes),
            "missing_ids": MISSING_IDS_MAX,
            "pages_request": PAGES_REQUEST_MAX,
            "pack_target_bytes": PACK_TARGET_BYTES,
            "pack_size_bytes": min(PACK_SIZE_MAX_BYTES, limits.pack_size_bytes),
            "pack_frames": PACK_FRAMES_MAX,
            "packs_per_push": PACKS_PER_PUSH_IN_FLIGHT,
            "range_request_bytes": RANGE_REQUEST_MAX_BYTES,
        },
    )


async def get_config(request: web.Request) -> web.Response:
    """``GET /v1/config``: as public as the log."""
    await demand_log_reader(request)
    Query(request)
    return respond_json(build_config(context_of(request)), cache=CACHE_REVALIDATE)


async def create_token(request: web.Request) -> web.Response:
    """``POST /v1/tokens``: the answer holds the secret, this once."""
    await demand(request, "admin")
    context = context_of(request)
    body = await read_json(request, TokenCreate)
    token = await context.bridge.write_ledger(
        context.store.tokens.create, body.name, body.permissions, expires_in_s=body.expires_in_s
    )
    return respond_json(token, status=201)


async def list_tokens(request: web.Request) -> web.Response:
    """``GET /v1/tokens``: without secrets."""
    await demand(request, "admin")
    context = context_of(request)
    Query(request)
    return respond_json(await context.bridge.read(context.store.tokens.list))


async def revoke_token(request: web.Request) -> web.Response:
    """``DELETE /v1/tokens/{id}``: the next request that carries it is refused."""
    await demand(request, "admin")
    context = context_of(request)
    await context.bridge.write_ledger(context.store.tokens.revoke, request.match_info["id"])
    return web.Response(status=204)


async def check(request: web.Request) -> web.Response:
    """``POST /v1/fsck?full=``: one at a time."""
    await demand(request, "operate")
    context = context_of(request)
    full = Query(request, "full").flag("full")
    # LIMIT: it reads the whole store; two at once would take twice as long and tell the same.
    if context.checking:
        raise RequestInProgress("an fsck is running already: wait for it")
    context.checking = True
    try:
        report = await context.bridge.scan(
            context.store.fsck, full=full, pool=context.bridge.provers.executor, width=context.bounds.worker_threads
        )
    finally:
        context.checking = False
    return respond_json(report)


async def show_status(request: web.Request) -> web.Response:
    """``GET /v1/status``: what the store holds."""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    return respond_json(await context.bridge.scan(_status, context.store))


def _status(store: Store) -> dict[str, object]:
    index = store.packs.index
    packs, stored_bytes, after = 0, 0, None
    while page := index.packs(after=after, limit=_PACKS_PAGE):
        packs += len(page)
        stored_bytes += sum(record.size_bytes for record in page)
        after = page[-1].pack
    return {
        "version": __version__,
        "origin": store.log.origin,
        # A log that contradicts a signed head has no size to show; this answer is where an operator learns of it.
        "log_size": None if store.read_only else store.log.size,
        "packs": packs,
        "stored_bytes": stored_bytes,
        "chunks": index.count(ObjectKind.CHUNK),
        "trees": index.count(ObjectKind.ROOT),
        "read_only": store.read_only,
        "clock_trouble": store.clock_trouble,
    }


ROUTES: Final = (
    web.get("/v1/config", get_config),
    web.post("/v1/tokens", create_token),
    web.get("/v1/tokens", list_tokens),
    web.delete("/v1/tokens/{id}", revoke_token),
    web.post("/v1/fsck", check),
    web.get("/v1/status", show_status),
)
