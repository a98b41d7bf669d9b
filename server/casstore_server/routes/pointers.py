"""Pointers, flips and the policy.

Source: docs/formats/wire.md
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from aiohttp import web

from casstore.engine.history import HistoryFilter, parse_flip
from casstore.engine.pointers import Caller, Expect, UnsignedFlip, UnsignedRollback
from casstore.engine.targets import parse_target
from casstore.errors import InvalidInput, NotPermitted, PreconditionFailed, PreconditionRequired
from casstore.ids import PointerName, PrincipalName, SnapshotDigest
from casstore.wire import (
    HEADER_IDEMPOTENCY,
    IntentRequest,
    PutPointer,
    RollbackRequest,
    RollbackTo,
    parse_time,
)
from casstore_server.acts import look_ahead, submit, submit_signed
from casstore_server.auth import Identity, demand, demand_permission, identify, permits
from casstore_server.bodies import read_json
from casstore_server.conditional import is_not_modified, parse_tags
from casstore_server.context import context_of
from casstore_server.intents import authorise_intent
from casstore_server.params import Query, parse_number, pointer_of
from casstore_server.responses import CACHE_REVALIDATE, respond_json, respond_submitted

MEDIA_NDJSON: Final = "application/x-ndjson"
_ETAG = re.compile(r'"f(0|[1-9][0-9]{0,15})\.e(0|[1-9][0-9]{0,15})"\Z')


# --- reading ---------------------------------------------------------------------------------------------------------


async def list_pointers(request: web.Request) -> web.Response:
    """``GET /v1/pointers``: those that the token may read."""
    identity = await identify(request)
    if not any(permission.startswith("pointer:read:") for permission in identity.permissions):
        raise NotPermitted(f"the token of {identity.principal} reads no pointers", permission="pointer:read:<glob>")
    context = context_of(request)
    query = Query(request, "prefix", "after", "limit")
    found = await context.bridge.read(
        context.store.pointers.read.list, query.text("prefix") or "", query.text("after") or "", query.limit()
    )
    allowed = [pointer for pointer in found.pointers if permits(identity, "pointer:read", pointer.pointer)]
    return respond_json(msgspec.structs.replace(found, pointers=allowed))


async def get_pointer(request: web.Request) -> web.Response:
    """``GET /v1/pointers/{name}``: what it names now, or with ``at`` what it named then."""
    name = pointer_of(request)
    await demand(request, "pointer:read", name)
    context = context_of(request)
    query = Query(request, "proof", "at", "since")
    proof, at, since = query.flag("proof"), query.text("at"), query.number("since")
    read = context.store.pointers.read
    if at is not None:
        return respond_json(
            await context.bridge.read(read.at, name, at, proof=proof, since=since), cache=CACHE_REVALIDATE
        )
    pointer = await context.bridge.read(read.pointer, name, proof=proof, since=since)
    headers = {"ETag": pointer.etag, "Cache-Control": CACHE_REVALIDATE}
    # A proof is of the newest checkpoint: it is fresher than the pointer, so the pointer's tag does not speak for it.
    if not proof and is_not_modified(request.headers.get("If-None-Match"), pointer.etag):
        return web.Response(status=304, headers=headers)
    return respond_json(pointer, cache=CACHE_REVALIDATE, headers=headers)


async def get_history(request: web.Request) -> web.Response:
    """``GET /v1/pointers/{name}/history``: flips, newest first."""
    name = pointer_of(request)
    await demand(request, "pointer:read", name)
    context = context_of(request)
    query = Query(request, "limit", "before", "since", "until", "kind", "by")
    before, since, until = query.text("before"), query.text("since"), query.text("until")
    wanted = HistoryFilter(
        before=None if before is None else parse_flip(before),
        since=None if since is None else parse_time(since),
        until=None if until is None else parse_time(until),
        kind=query.text("kind"),
        by=query.text("by"),
    )
    history = await context.bridge.read(context.store.pointers.read.history, name, wanted, query.limit())
    if MEDIA_NDJSON not in request.headers.get("Accept", ""):
        return respond_json(history)
    lines = b"".join(msgspec.json.encode(item) + b"\n" for item in history.items)
    headers = {"Cache-Control": "no-store"}
    if history.next is not None:
        headers["Link"] = f'<{request.rel_url.update_query(before=history.next)}>; rel="next"'
    return web.Response(body=lines, content_type=MEDIA_NDJSON, headers=headers)


async def get_rollback_target(request: web.Request) -> web.Response:
    """``GET /v1/pointers/{name}/rollback-target?to=``: what to sign."""
    name = pointer_of(request)
    await demand(request, "pointer:read", name)
    context = context_of(request)
    to = parse_target(Query(request, "to").text("to") or "previous")
    return respond_json(await context.bridge.read(context.store.pointers.rollback_target, name, to))


async def get_rollback_candidates(request: web.Request) -> web.Response:
    """``GET /v1/pointers/{name}/rollback-candidates``"""
    name = pointer_of(request)
    await demand(request, "pointer:read", name)
    context = context_of(request)
    Query(request)
    return respond_json(await context.bridge.read(context.store.pointers.read.candidates, name))


async def get_flip(request: web.Request) -> web.Response:
    """``GET /v1/flips/{idx}``: a flip with its proof."""
    identity = await identify(request)
    context = context_of(request)
    Query(request)
    index = parse_number("the flip", request.match_info["idx"])
    flip = await context.bridge.read(context.store.pointers.read.flip, index)
    for pointer in flip.pointers:
        demand_permission(identity, "pointer:read", pointer.pointer)
    return respond_json(flip)


async def get_policy(request: web.Request) -> web.Response:
    """``GET /v1/policy``: it stands in the log, so any token reads it."""
    await identify(request)
    context = context_of(request)
    Query(request)
    return respond_json(await context.bridge.read(context.store.pointers.read.policy))


# --- signed acts -----------------------------------------------------------------------------------------------------


async def _submit_intent(request: web.Request, *acts: str, name: PointerName | None = None) -> web.Response:
    identity = await identify(request)
    body = await read_json(request, IntentRequest)
    args = authorise_intent(identity, body.intent, acts, pointer=name)
    return respond_submitted(await submit_signed(context_of(request), body.intent, args))


async def post_flip(request: web.Request) -> web.Response:
    """``POST /v1/flips``: 1 to 32 pointers, all or none."""
    return await _submit_intent(request, "flip")


async def post_hold(request: web.Request) -> web.Response:
    """``POST /v1/pointers/{name}/hold``"""
    return await _submit_intent(request, "hold", name=pointer_of(request))


async def post_release(request: web.Request) -> web.Response:
    """``POST /v1/pointers/{name}/release``"""
    return await _submit_intent(request, "release", name=pointer_of(request))


async def post_mark(request: web.Request) -> web.Response:
    """``POST /v1/pointers/{name}/marks``"""
    return await _submit_intent(request, "mark", name=pointer_of(request))


async def post_policy(request: web.Request) -> web.Response:
    """``POST /v1/policy``"""
    return await _submit_intent(request, "policy")


# --- unsigned acts, where the policy's rule takes a token's word -----------------------------------------------------


async def put_pointer(request: web.Request) -> web.Response:
    """``PUT /v1/pointers/{name}``: one flip, with ``If-Match`` or ``If-None-Match: *``."""
    name = pointer_of(request)
    identity = await demand(request, "flip", name)
    body = await read_json(request, PutPointer)
    snapshot = SnapshotDigest.parse(body.snapshot)
    expect = read_expect(request, name)
    context = context_of(request)
    await look_ahead(context, snapshot)
    caller = _caller_of(request, identity)
    return respond_submitted(await submit(context, UnsignedFlip(name, snapshot, expect, body.reason, caller)))


async def post_rollback(request: web.Request) -> web.Response:
    """``POST /v1/pointers/{name}/rollback``: a signed intent, or target and reason with ``If-Match``."""
    name = pointer_of(request)
    identity = await demand(request, "rollback", name)
    body = await read_json(request, RollbackRequest)
    context = context_of(request)
    if body.intent is not None:
        if body.to is not None:
            raise InvalidInput("a rollback is either signed (intent) or not (to), not both")
        args = authorise_intent(identity, body.intent, ("flip",), pointer=name)
        if getattr(args, "kind", None) != "rollback":
            raise InvalidInput("the intent is no rollback: POST /v1/flips takes it")
        return respond_submitted(await submit_signed(context, body.intent, args))
    if body.to is None:
        raise InvalidInput("a rollback says where to: an intent, or to")
    expect = read_expect(request, name)
    if expect.flip is None:
        raise InvalidInput("a pointer that does not exist cannot be rolled back")
    to = RollbackTo(previous=True) if body.to == "previous" else body.to
    rollback = UnsignedRollback(
        name, to, expect, body.reason, body.leave_bad, body.leave_hold, _caller_of(request, identity)
    )
    return respond_submitted(await submit(context, rollback))


def _caller_of(request: web.Request, identity: Identity) -> Caller:
    return Caller(identity.id, PrincipalName.parse(identity.principal), request.headers.get(HEADER_IDEMPOTENCY))


def read_expect(request: web.Request, name: PointerName) -> Expect:
    """Where the caller saw the pointer.

    Raises:
        PreconditionRequired: neither ``If-Match`` nor ``If-None-Match``.
        InvalidInput: both, ``If-Match: *``, several tags, or an ``If-None-Match`` that is not ``*``.
        PreconditionFailed: a tag that this pointer never had.
    """
    if_match, if_none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if if_match is not None and if_none_match is not None:
        raise InvalidInput("If-Match and If-None-Match together say nothing")
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise InvalidInput("If-None-Match is * here: the pointer must not exist yet")
        return Expect(None)
    if if_match is None:
        raise PreconditionRequired(
            f"a flip of {name} says where its sender saw it",
            hint="send If-Match with the ETag of GET /v1/pointers/…, or If-None-Match: * for a new pointer",
        )
    tags = parse_tags(if_match)
    if tags.any:
        raise InvalidInput("If-Match: * would flip whatever is there: read the pointer, and send its ETag")
    if len(tags.strong) + len(tags.weak) != 1:
        raise InvalidInput("If-Match has one entity tag here: the pointer is in one state")
    found = _ETAG.match(next(iter(tags.strong), ""))
    if found is None:
        raise PreconditionFailed(f"{name} never had the entity tag {if_match[:60]}", expected=if_match[:60])
    return Expect(int(found[1]), int(found[2]))


_POINTER: Final = "/v1/pointers/{name:[^{}]+}"
# ORDER: what follows a name comes before the name alone, which would swallow it.
ROUTES: Final = (
    web.get("/v1/pointers", list_pointers),
    web.get(_POINTER + "/history", get_history),
    web.get(_POINTER + "/rollback-target", get_rollback_target),
    web.get(_POINTER + "/rollback-candidates", get_rollback_candidates),
    web.post(_POINTER + "/rollback", post_rollback),
    web.post(_POINTER + "/hold", post_hold),
    web.post(_POINTER + "/release", post_release),
    web.post(_POINTER + "/marks", post_mark),
    web.get(_POINTER, get_pointer),
    web.put(_POINTER, put_pointer),
    web.post("/v1/flips", post_flip),
    web.get("/v1/flips/{idx}", get_flip),
    web.get("/v1/policy", get_policy),
    web.post("/v1/policy", post_policy),
)
