"""Collection, as an operator asks a running server for it.

Source: docs/formats/wire.md, docs/operations/collection.md
"""

from __future__ import annotations

from typing import Final

from casstore.errors import DigestMismatch, InvalidDigest, NotFound
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, SnapshotDigest
from casstore.wire import MEDIA_SNAPSHOT, GcDropped, GcReport, GcRequest, GcUndone, Pin, PinCreate, PinList
from casstore.wire.collection import PinKind
from casstore_client import content_api
from casstore_client.transport import Transport

_TIMEOUT_S: Final = 24 * 3600.0  # a run over a large store says nothing until it is done
_WHOLE: Final = len(SnapshotDigest.PREFIX) + 2 * SnapshotDigest.SIZE


async def gc(transport: Transport, *, dry_run: bool) -> GcReport:
    """See :meth:`casstore_client.client.AsyncClient.gc`."""
    request = GcRequest(dry_run=dry_run)
    return await transport.send_json("POST", "/v1/gc", request, GcReport, step="gc", timeout_s=_TIMEOUT_S)


async def gc_undo(transport: Transport) -> GcUndone:
    """See :meth:`casstore_client.client.AsyncClient.gc_undo`."""
    return await transport.send_json("POST", "/v1/gc/undo", {}, GcUndone, step="gc", timeout_s=_TIMEOUT_S)


async def gc_dropped(transport: Transport, digest: str) -> GcDropped:
    """See :meth:`casstore_client.client.AsyncClient.gc_dropped`."""
    wanted = BlobDigest.parse(digest)
    found = await transport.get_json(f"/v1/gc/dropped/{wanted}", GcDropped, step="gc")
    text = "".join(f"{line}\n" for line in found.dropped)
    if blake3_256(text.encode()) != wanted:
        raise DigestMismatch("the server shows another list than the log names", expected=digest)
    return found


async def pin(transport: Transport, target: str, *, owner: str, reason: str, until: str | None) -> Pin:
    """See :meth:`casstore_client.client.AsyncClient.pin`."""
    kind, digest = await _resolve(transport, target)
    request = PinCreate(kind=kind, digest=digest, owner=owner, reason=reason, until=until)
    return await transport.send_json("POST", "/v1/pins", request, Pin, step="pin")


async def pins(transport: Transport) -> PinList:
    """See :meth:`casstore_client.client.AsyncClient.pins`."""
    return await transport.get_json("/v1/pins", PinList, step="pins")


async def unpin(transport: Transport, id: str) -> None:
    """See :meth:`casstore_client.client.AsyncClient.unpin`."""
    await transport.request("DELETE", f"/v1/pins/{id}", step="unpin")


async def _resolve(transport: Transport, target: str) -> tuple[PinKind, str]:
    """Kind and digest of what a person names: a snapshot, an artifact, a tree, a blob."""
    digests = [target] if len(target) == _WHOLE and target.startswith(SnapshotDigest.PREFIX) else []
    if not digests:
        try:
            digests = await content_api.find_digests(transport, target)
        except InvalidDigest:
            digests = []
    snapshots = [digest for digest in digests if await _is_snapshot(transport, digest)]
    if len(snapshots) == len(digests) == 1:
        return "snapshot", snapshots[0]
    if snapshots:
        raise InvalidDigest(f"{target} may mean {', '.join(digests[:5])}", hint="give more digits")
    return await content_api.resolve_artifact(transport, target)


async def _is_snapshot(transport: Transport, digest: str) -> bool:
    try:
        await transport.request("GET", f"/v1/snapshots/{digest}", step="snapshot", media=MEDIA_SNAPSHOT)
    except NotFound:
        return False
    return True
