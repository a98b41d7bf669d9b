"""The log: checkpoint and tiles as anyone's program reads them, proofs and entries as ours does.

Anonymous unless the server was started with ``--private-log``: what is public cannot be rewritten unnoticed.

Source: https://c2sp.org/tlog-tiles, https://c2sp.org/tlog-proof
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore.errors import EntryNotFound, InvalidInput, TooLarge
from casstore.limits import LIST_LIMIT_DEFAULT, NOTE_LINES_MAX, NOTE_SIZE_MAX_BYTES
from casstore_server.auth import demand_log_reader
from casstore_server.bodies import demand_media_type, read_body
from casstore_server.context import context_of
from casstore_server.params import Query, parse_number
from casstore_server.responses import CACHE_IMMUTABLE, CACHE_REVALIDATE, respond_bytes, respond_json

_TEXT: Final = "text/plain"
_TILE: Final = "application/octet-stream"
_PROOF_LINES_MAX: Final = NOTE_LINES_MAX


async def get_checkpoint(request: web.Request) -> web.Response:
    """``GET /log/checkpoint``: the newest one, a signed note."""
    await demand_log_reader(request)
    note = context_of(request).store.log.checkpoint
    response = web.Response(body=note, content_type=_TEXT, charset="utf-8")
    response.headers["Cache-Control"] = CACHE_REVALIDATE
    return response


async def get_tile(request: web.Request) -> web.Response:
    """``GET /log/tile/…``: hashes or entries, clipped at the published size."""
    await demand_log_reader(request)
    context = context_of(request)
    path = "tile/" + request.match_info["path"]
    try:
        tile = await context.bridge.read(context.store.log_reader.tile, path)
    except InvalidInput as error:
        # Another spelling of a tile's path names nothing: 404, as the specification says of what is not there.
        raise EntryNotFound(error.detail) from error
    return respond_bytes(request, tile.data, media=_TILE, etag=f'"{path}"', cache=CACHE_IMMUTABLE)


async def prove_inclusion(request: web.Request) -> web.Response:
    """``GET /v1/log/proof/inclusion?index&size``: a ``.tlog-proof`` file."""
    await demand_log_reader(request)
    context = context_of(request)
    query = Query(request, "index", "size")
    index = parse_number("index", query.require("index"))
    proof = await context.bridge.read(context.store.log_reader.inclusion, index, query.number("size"))
    response = web.Response(body=proof, content_type=_TEXT, charset="utf-8")
    response.headers["Cache-Control"] = CACHE_REVALIDATE
    return response


async def prove_consistency(request: web.Request) -> web.Response:
    """``GET /v1/log/proof/consistency?from&to``: as JSON, or as the body of a witness's ``add-checkpoint``."""
    await demand_log_reader(request)
    context = context_of(request)
    query = Query(request, "from", "to")
    first = parse_number("from", query.require("from"))
    answer = await context.bridge.read(context.store.log_reader.consistency, first, query.number("to"))
    if not _prefers_text(request):
        return respond_json(answer, cache=CACHE_REVALIDATE)
    if len(answer.proof) > _PROOF_LINES_MAX:
        raise TooLarge("the proof is longer than a witness takes", limit=_PROOF_LINES_MAX)
    note = await context.bridge.read(context.store.log.checkpoint_of, answer.to_size)
    lines = [f"old {answer.from_size}", *answer.proof, "", note.decode()]
    response = web.Response(text="\n".join(lines), content_type=_TEXT, charset="utf-8")
    response.headers["Cache-Control"] = CACHE_REVALIDATE
    return response


async def list_entries(request: web.Request) -> web.Response:
    """``GET /v1/log/entries?from=&limit=``: entries with their proofs at the newest checkpoint."""
    await demand_log_reader(request)
    context = context_of(request)
    query = Query(request, "from", "limit")
    first = query.number("from") or 0
    entries = await context.bridge.read(context.store.log_reader.entries, first, query.limit(LIST_LIMIT_DEFAULT))
    return respond_json(entries)


async def get_entry(request: web.Request) -> web.Response:
    """``GET /v1/log/entries/{idx}``: one entry with its proof and the checkpoint."""
    await demand_log_reader(request)
    context = context_of(request)
    index = parse_number("the index", request.match_info["idx"])
    return respond_json(await context.bridge.read(context.store.log_reader.entry, index))


async def list_policies(request: web.Request) -> web.Response:
    """``GET /v1/log/policies?after=``: genesis and policy entries, so that a client can walk from the one it pinned."""
    await demand_log_reader(request)
    context = context_of(request)
    after = Query(request, "after").number("after")
    return respond_json(await context.bridge.read(context.store.log_reader.policies, after))


async def show_head(request: web.Request) -> web.Response:
    """``POST /v1/log/heads``: a checkpoint that the sender holds; one that this log contradicts makes the store read-only.

    As public as the log: only what this log's key signed has any effect.
    """
    await demand_log_reader(request)
    context = context_of(request)
    Query(request)
    demand_media_type(request, _TEXT)
    note = await read_body(request, NOTE_SIZE_MAX_BYTES)
    head = await context.bridge.read(context.store.log.judge_note, note)
    if head is not None:
        context.log.error("a checkpoint of this log contradicts the store", size=head.size, root=head.root.hex())
        await context.bridge.write_ledger(context.store.log.fence_off, head)
    return web.Response(status=204)


def _prefers_text(request: web.Request) -> bool:
    return request.headers.get("Accept", "").split(",")[0].split(";")[0].strip().lower() == _TEXT


ROUTES: Final = (
    web.get("/log/checkpoint", get_checkpoint),
    web.get("/log/tile/{path:.+}", get_tile),
    web.get("/v1/log/proof/inclusion", prove_inclusion),
    web.get("/v1/log/proof/consistency", prove_consistency),
    web.get("/v1/log/entries", list_entries),
    web.get("/v1/log/entries/{idx}", get_entry),
    web.get("/v1/log/policies", list_policies),
    web.post("/v1/log/heads", show_head),
)
