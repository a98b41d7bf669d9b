"""The store's health over the wire: scrub, quarantine, and the report of damage that a reader met.

Source: docs/operations/health.md
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

from casstore.errors import CasstoreError, DamagedObject, InvalidDigest
from casstore.formats.pack import ObjectKind, PackDecoder, open_frame
from casstore.ids import BlobDigest, PackId
from casstore.limits import OBJECTS_REQUEST_MAX, REPAIR_PACK_MAX_BYTES
from casstore.wire import (
    MEDIA_IDS,
    MEDIA_JSON,
    MEDIA_PACK,
    AffectedReport,
    AffectedRequest,
    DamageReport,
    DamageVerdict,
    DamageVerdicts,
    ObjectName,
    QuarantinedObject,
    QuarantineList,
    RepairAnswer,
    RepairPlan,
    ScrubRequest,
    ScrubStatus,
    encode_json,
)
from casstore_client.errors import ProtocolError
from casstore_client.transport import Transport, decode_answer

REPORT_TIMEOUT_S: Final = 30.0
WALK_TIMEOUT_S: Final = 24 * 3600.0  # going through a large store says nothing until it is done


class HealthApi:
    """The part of :class:`casstore_client.client.AsyncClient` that concerns the store's health."""

    transport: Transport

    async def scrub(self, *, rate_bytes_s: int | None = None, full_pass: bool = False) -> ScrubStatus:
        """Have the server verify its whole store, beside its other work; returns at once.

        Args:
            rate_bytes_s: bytes of packs a second; 0 for as fast as it can, None for the server's setting.
            full_pass: begin from the beginning, even if a pass is unfinished.
        """
        request = ScrubRequest(rate_bytes_s=rate_bytes_s, full_pass=full_pass)
        return await self.transport.send_json("POST", "/v1/scrub", request, ScrubStatus, step="scrub")

    async def scrub_status(self) -> ScrubStatus:
        """How far the scrub came."""
        return await self.transport.get_json("/v1/scrub", ScrubStatus, step="scrub")

    async def quarantine(self) -> AsyncGenerator[QuarantinedObject, None]:
        """Damaged objects that are out of use."""
        params: dict[str, str] = {}
        while True:
            page = await self.transport.get_json("/v1/quarantine", QuarantineList, step="quarantine", params=params)
            for found in page.objects:
                yield found
            if page.next is None:
                return
            params = {"after": page.next}

    async def release_object(
        self, id: str, kind: Literal["chunk", "page", "root", "layout", "document"] | None = None
    ) -> None:
        """Put an object back into use, if it reads right again.

        Raises:
            NotFound: it is not in quarantine.
            DamagedObject: it still reads wrong.
        """
        await self.transport.request(
            "POST",
            "/v1/quarantine/undo",
            step="release",
            body=encode_json(ObjectName(id=id, kind=kind)),
            body_media=MEDIA_JSON,
        )

    async def affected(self, objects: Sequence[ObjectName] = (), *, quarantined: bool = False) -> AffectedReport:
        """Which trees, artifacts, snapshots and pointers need some objects; the server goes through its whole store.

        Args:
            objects: which.
            quarantined: and everything that is in quarantine.
        """
        request = AffectedRequest(objects=list(objects), quarantined=quarantined)
        return await self.transport.send_json(
            "POST", "/v1/affected", request, AffectedReport, step="affected", timeout_s=WALK_TIMEOUT_S
        )

    async def repair_plan(self) -> RepairPlan:
        """What the store needs and cannot read."""
        reply = await self.transport.request("GET", "/v1/repair", step="repair", timeout_s=WALK_TIMEOUT_S)
        return decode_answer(reply, RepairPlan)

    async def repair_send(self, pack: PackId, data: bytes) -> RepairAnswer:
        """Hand in a pack with what is wanted.

        Raises:
            MalformedDocument, DigestMismatch: it is not what it says.
        """
        reply = await self.transport.request(
            "POST",
            "/v1/repair",
            step="repair",
            params={"pack": str(pack)},
            body=data,
            body_media=MEDIA_PACK,
            timeout_s=WALK_TIMEOUT_S,
        )
        return decode_answer(reply, RepairAnswer)

    async def objects(self, wanted: Sequence[tuple[ObjectKind, bytes]]) -> list[tuple[ObjectKind, bytes, bytes]]:
        """Objects by kind and id, each held against its id (a layout has no hash: it decodes); as many as the server sends at a
        time, at least one of those that it has.

        Raises:
            NotFound: it has none of them.
            ProtocolError: what it sends is not what was asked for.
        """
        reply = await self.transport.request(
            "POST",
            "/v1/objects",
            step="objects",
            media=MEDIA_PACK,
            body=b"".join(bytes((kind,)) + id for kind, id in wanted[:OBJECTS_REQUEST_MAX]),
            body_media=MEDIA_IDS,
            repeatable=True,
            max_bytes=REPAIR_PACK_MAX_BYTES,
        )
        asked = set(wanted)
        decoder = PackDecoder()
        found = [(frame.kind, frame.id, open_frame(frame)) for frame in decoder.feed(reply.body)]
        decoder.finish()
        if any((kind, id) not in asked for kind, id, _ in found):
            raise ProtocolError("the server sent an object that was not asked for")
        return found


async def report(transport: Transport, objects: list[ObjectName]) -> list[DamageVerdict]:
    """Tell the server that objects arrived damaged; it looks itself."""
    answer = await transport.send_json(
        "POST",
        "/v1/damage",
        DamageReport(objects=objects),
        DamageVerdicts,
        step="damage",
        repeatable=True,
        timeout_s=REPORT_TIMEOUT_S,
    )
    return answer.verdicts


@asynccontextmanager
async def reporting(transport: Transport) -> AsyncIterator[None]:
    """Report the damaged chunk that the block fails on; the error goes on its way in any case.

    The server hands out ranges of packs without reading them, so only whoever takes them apart meets a flipped bit.
    """
    try:
        yield
    except DamagedObject as error:
        # What no pack is named for is not on the server's disk.
        if error.object is not None and (error.where or "").startswith("pack "):
            with suppress(CasstoreError, InvalidDigest):
                chunk = str(BlobDigest.parse(error.object))
                await report(transport, [ObjectName(id=chunk, kind="chunk")])
        raise
