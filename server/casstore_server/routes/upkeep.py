"""The store's health: scrub, reported damage, quarantine, repair.

Source: docs/operations/health.md
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final, ParamSpec, TypeVar

from aiohttp import web

from casstore.engine.affected import AFFECTED_MAX
from casstore.engine.packs import random_pack_id
from casstore.engine.quarantine import quarantined_rows
from casstore.engine.repair import gather_objects, name_all
from casstore.errors import InvalidInput, NotFound, RequestInProgress
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest, PackId
from casstore.limits import DAMAGE_REPORT_MAX, OBJECTS_REQUEST_MAX, REPAIR_PACK_MAX_BYTES, SCRUB_RATE_MIN_BYTES_S
from casstore.store import Store
from casstore.wire import (
    MEDIA_IDS,
    MEDIA_PACK,
    OBJECT_KEY_BYTES,
    AffectedRequest,
    DamageReport,
    DamageVerdicts,
    ObjectName,
    QuarantinedObject,
    QuarantineList,
    RepairAnswer,
    ScrubRequest,
    format_time,
)
from casstore_server.auth import demand
from casstore_server.bodies import demand_media_type, read_body, read_ids, read_json
from casstore_server.context import Context, context_of
from casstore_server.lookup import parse_kind, parse_object_name
from casstore_server.params import Query
from casstore_server.responses import CACHE_NEVER, respond_json

P = ParamSpec("P")
T = TypeVar("T")


async def start_scrub(request: web.Request) -> web.Response:
    """``POST /v1/scrub``: begin one, or change the pace of the one that runs; does not wait for its end."""
    await demand(request, "operate")
    context = context_of(request)
    body = await read_json(request, ScrubRequest)
    if body.rate_bytes_s and body.rate_bytes_s < SCRUB_RATE_MIN_BYTES_S:
        raise InvalidInput(f"rate_bytes_s is 0, or {SCRUB_RATE_MIN_BYTES_S} or more")
    context.upkeep.start_scrub(body.rate_bytes_s, fresh=body.full_pass)
    return respond_json(await context.bridge.scan(context.upkeep.scrub_status()))


async def show_scrub(request: web.Request) -> web.Response:
    """``GET /v1/scrub``: how far it came."""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    return respond_json(await context.bridge.scan(context.upkeep.scrub_status()))


async def report_damage(request: web.Request) -> web.Response:
    """``POST /v1/damage``: a reader met damage; the server looks itself."""
    await demand(request, "content:read")
    context = context_of(request)
    body = await read_json(request, DamageReport)
    # LIMIT: each of them is read, up to three times.
    if not 1 <= len(body.objects) <= DAMAGE_REPORT_MAX:
        raise InvalidInput(f"a report names 1 to {DAMAGE_REPORT_MAX} objects, this one {len(body.objects)}")
    return respond_json(DamageVerdicts(verdicts=await context.upkeep.judge(body.objects)))


async def list_quarantine(request: web.Request) -> web.Response:
    """``GET /v1/quarantine``: what is out of use, and why."""
    await demand(request, "operate")
    context = context_of(request)
    query = Query(request, "after", "limit")
    found = await context.bridge.read(_list, context.store, query.text("after"), query.limit())
    return respond_json(found)


def _list(store: Store, after: str | None, limit: int) -> QuarantineList:
    behind: tuple[ObjectKind, bytes] | None = None
    if after is not None:
        word, _, digest = after.partition(" ")
        kind = parse_kind(word)
        assert kind is not None, "a word was given"
        behind = kind, bytes(BlobDigest.parse(digest))
    rows = store.packs.index.quarantined(after=behind, limit=limit + 1)
    objects = [
        QuarantinedObject(
            kind=row.kind.name.lower(),
            id=f"blake3:{row.id.hex()}",
            where=f"pack {row.location.pack} offset {row.location.offset}",
            since=format_time(row.at_ms),
            reason=row.reason,
            plain_bytes=row.location.plain_length,
        )
        for row in rows[:limit]
    ]
    last = objects[-1] if len(rows) > limit else None
    return QuarantineList(objects=objects, next=f"{last.kind} {last.id}" if last is not None else None)


async def release(request: web.Request) -> web.Response:
    """``POST /v1/quarantine/undo``: put an object back into use that reads right again."""
    await demand(request, "operate")
    context = context_of(request)
    kind, id = parse_object_name(await read_json(request, ObjectName))
    kinds = [kind] if kind is not None else list(ObjectKind)
    found = [one for one in kinds if await context.bridge.read(context.store.packs.find_quarantined, one, id)]
    if not found:
        raise NotFound(f"blake3:{id.hex()} is not in quarantine")
    for one in found:
        await context.bridge.write_index(context.store.quarantine.release, one, id)
    return web.Response(status=204)


async def find_affected(request: web.Request) -> web.Response:
    """``POST /v1/affected``: which artifacts, snapshots and pointers need some objects; goes through the whole store."""
    await demand(request, "operate")
    context = context_of(request)
    body = await read_json(request, AffectedRequest)
    objects = [parse_object_name(name) for name in body.objects]
    if body.quarantined:
        objects += await context.bridge.scan(_all_quarantined, context.store)
    return respond_json(await _walk(context, context.store.affected, objects))


async def _walk(context: Context, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    # LIMIT: it goes through the whole store on one of two threads; with two at once no other long read would have one.
    if context.walking:
        raise RequestInProgress("another request goes through the whole store already: wait for it")
    context.walking = True
    try:
        return await context.bridge.scan(call, *args, **kwargs)
    finally:
        context.walking = False


def _all_quarantined(store: Store) -> list[tuple[ObjectKind | None, bytes]]:
    # LIMIT: a store with more damage than this has one cause.
    return [(row.kind, row.id) for row in islice(quarantined_rows(store.packs), AFFECTED_MAX)]


async def get_objects(request: web.Request) -> web.Response:
    """``POST /v1/objects``: objects by kind and id, as one pack; as many as fit."""
    await demand(request, "content:read")
    context = context_of(request)
    ids = await read_ids(request, MEDIA_IDS, count_max=OBJECTS_REQUEST_MAX, id_bytes=OBJECT_KEY_BYTES)
    try:
        wanted = [
            (ObjectKind(ids[at]), ids[at + 1 : at + OBJECT_KEY_BYTES]) for at in range(0, len(ids), OBJECT_KEY_BYTES)
        ]
    except ValueError as error:
        raise InvalidInput(f"an object's key begins with its kind: {error}") from error
    data = await context.bridge.scan(gather_objects, context.store.packs, wanted, random_pack_id())
    return web.Response(body=data, content_type=MEDIA_PACK, headers={"Cache-Control": CACHE_NEVER})


async def plan_repair(request: web.Request) -> web.Response:
    """``GET /v1/repair``: what the store needs and cannot read."""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    return respond_json(await _walk(context, context.store.repairs.plan))


async def repair(request: web.Request) -> web.Response:
    """``POST /v1/repair?pack=``: take what is wanted out of a pack that some holder had."""
    await demand(request, "operate")
    context = context_of(request)
    pack = PackId.parse(Query(request, "pack").require("pack"))
    demand_media_type(request, MEDIA_PACK)
    # LIMIT: it is held whole, and so are its objects: one at a time.
    if context.repairing:
        raise RequestInProgress("a repair's pack is being taken in already", hint="wait for it")
    context.repairing = True
    try:
        return respond_json(await _take_in(request, pack))
    finally:
        context.repairing = False


async def _take_in(request: web.Request, pack: PackId) -> RepairAnswer:
    context = context_of(request)
    bridge, repairs = context.bridge, context.store.repairs
    intake = await bridge.scan(repairs.take, pack, await read_body(request, REPAIR_PACK_MAX_BYTES))
    healed = await bridge.write_index(repairs.record, intake)
    proven = await bridge.prove(
        repairs.prove, intake, pool=bridge.provers.executor, width=context.bounds.worker_threads
    )
    healed += await bridge.write_index(repairs.remember, proven)
    return RepairAnswer(healed=name_all(healed), refused=name_all([*intake.refused, *proven.refused]))


ROUTES: Final = (
    web.post("/v1/affected", find_affected),
    web.post("/v1/objects", get_objects),
    web.get("/v1/repair", plan_repair),
    web.post("/v1/repair", repair),
    web.post("/v1/scrub", start_scrub),
    web.get("/v1/scrub", show_scrub),
    web.post("/v1/damage", report_damage),
    web.get("/v1/quarantine", list_quarantine),
    web.post("/v1/quarantine/undo", release),
)
