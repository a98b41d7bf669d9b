"""Collection: run it, undo it, and say what is to be kept.

Source: docs/operations/collection.md
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore.ids import BlobDigest
from casstore.wire import GcDropped, GcRequest, GcUndone, PinCreate, parse_time
from casstore_server.auth import demand
from casstore_server.bodies import read_json
from casstore_server.context import context_of
from casstore_server.params import Query
from casstore_server.responses import respond_json


async def collect(request: web.Request) -> web.Response:
    """``POST /v1/gc``: one run, or what one would do."""
    await demand(request, "operate")
    Query(request)
    body = await read_json(request, GcRequest)
    return respond_json(await context_of(request).collector.collect(dry_run=body.dry_run))


async def undo(request: web.Request) -> web.Response:
    """``POST /v1/gc/undo``: what is condemned is live again."""
    await demand(request, "operate")
    Query(request)
    return respond_json(GcUndone(revived=await context_of(request).collector.undo()))


async def show_dropped(request: web.Request) -> web.Response:
    """``GET /v1/gc/dropped/{digest}``: the list that a ``gc`` entry of the log names."""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    digest = BlobDigest.parse(request.match_info["digest"])
    lines = await context.bridge.read(context.store.dropped, digest)
    return respond_json(GcDropped(digest=str(digest), dropped=lines))


async def create_pin(request: web.Request) -> web.Response:
    """``POST /v1/pins``: keep something, whatever its age."""
    identity = await demand(request, "operate")
    context = context_of(request)
    Query(request)
    body = await read_json(request, PinCreate)
    digest = BlobDigest.parse(body.digest)
    until_ms = None if body.until is None else parse_time(body.until)
    # The writer looks again and finds the answer remembered, so a large tree keeps no flip waiting.
    await context.bridge.scan(context.store.pins.look_ahead, body.kind, digest)
    pin = await context.bridge.write_ledger(
        context.store.pins.pin,
        body.kind,
        digest,
        owner=body.owner,
        reason=body.reason,
        until_ms=until_ms,
        by=identity.principal,
    )
    return respond_json(pin, status=201)


async def list_pins(request: web.Request) -> web.Response:
    """``GET /v1/pins``: all of them, oldest first."""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    return respond_json(await context.bridge.read(context.store.pins.list))


async def remove_pin(request: web.Request) -> web.Response:
    """``DELETE /v1/pins/{id}``"""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    await context.bridge.write_ledger(context.store.pins.unpin, request.match_info["id"])
    return web.Response(status=204)


ROUTES: Final = (
    web.post("/v1/gc", collect),
    web.post("/v1/gc/undo", undo),
    web.get("/v1/gc/dropped/{digest}", show_dropped),
    web.post("/v1/pins", create_pin),
    web.get("/v1/pins", list_pins),
    web.delete("/v1/pins/{id}", remove_pin),
)
