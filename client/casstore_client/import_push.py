"""The push of an import: objects that are at hand as frames go to the server as they are stored, if it lacks them.

Owns the asking, the packs and the commits.  The frames were verified by whoever hands them in; the server verifies them again.

Memory: ``ASK_BYTES`` of frames whose absence is asked about, one pack that is filled and one that is on its way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final

from casstore.formats.pack import Frame, ObjectKind, PackEncoder
from casstore.ids import PackId, PushId
from casstore.limits import MIB, PACK_TARGET_BYTES
from casstore.wire import MEDIA_IDS, MEDIA_JSON, MEDIA_PACK, Artifact, CommitRequest, PackStored, decode_bitmap
from casstore_client.errors import ProtocolError
from casstore_client.transport import Transport, decode_answer

ASK_IDS: Final = 4096
ASK_BYTES: Final = 8 * MIB
COMMIT_TIMEOUT_S: Final = 3600.0  # the server puts every file together
UPLOAD_TIMEOUT_S: Final = 300.0


class ImportPush:
    """One push.

    Args:
        transport: the server.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._push = PushId(os.urandom(PushId.SIZE))
        self._chunks: list[Frame] = []
        self._pages: list[Frame] = []
        self._bytes = 0
        self._layouts: dict[bytes, Frame] = {}
        self._encoder: PackEncoder | None = None
        self._parts: list[bytes] = []
        self._upload: asyncio.Task[None] | None = None
        self.new_objects = 0
        self.sent_bytes = 0

    async def offer(self, frame: Frame) -> None:
        """Take an object, to send it if it is missing."""
        if frame.kind is ObjectKind.CHUNK:
            self._chunks.append(frame)
        elif frame.kind is ObjectKind.PAGE:
            self._pages.append(frame)
        elif frame.kind is ObjectKind.LAYOUT:
            self._layouts[frame.id] = frame
        else:
            await self._put(frame)
            return
        self._bytes += len(frame.stored)
        if self._bytes >= ASK_BYTES or len(self._chunks) + len(self._pages) + len(self._layouts) >= ASK_IDS:
            # The layout of a page comes right behind it, so the newest page waits for the next turn.
            await self._ask(keep=frame.kind is ObjectKind.PAGE)

    async def finish(self) -> None:
        """Send what is left, and wait until the server has it."""
        await self._ask(keep=False)
        await self._seal()
        await self._settle()

    async def _ask(self, *, keep: bool) -> None:
        kept = [self._pages.pop()] if keep and self._pages else []
        chunks, self._chunks = self._chunks, []
        pages, self._pages = self._pages, kept
        layouts, self._layouts = self._layouts, {}
        self._bytes = sum(len(frame.stored) for frame in kept)
        for frame in await self._missing("chunk", chunks):
            await self._put(frame)
        wanted = {frame.id for frame in await self._missing("page", pages)}
        present = {frame.id for frame in pages} - wanted
        for frame in pages:
            if frame.id in wanted:
                await self._put(frame)
        for id, frame in layouts.items():
            # What has no page here is a blob's.
            if id not in present:
                await self._put(frame)

    async def _missing(self, kind: str, frames: Sequence[Frame]) -> Sequence[Frame]:
        if not frames:
            return ()
        reply = await self._transport.request(
            "POST",
            f"/v1/pushes/{self._push}/missing",
            step="missing",
            media=MEDIA_IDS,
            params={"kind": kind},
            body=b"".join(frame.id for frame in frames),
            body_media=MEDIA_IDS,
            repeatable=True,
        )
        flags = decode_bitmap(reply.body, len(frames))
        return [frame for frame, flag in zip(frames, flags, strict=True) if flag]

    async def _put(self, frame: Frame) -> None:
        if self._encoder is not None and not self._encoder.fits(len(frame.stored)):
            await self._seal()
        if self._encoder is None:
            self._encoder = PackEncoder(PackId(os.urandom(PackId.SIZE)))
            self._parts = [self._encoder.header()]
        self._parts.append(self._encoder.add(frame.kind, frame.id, frame.codec, frame.stored, frame.plain_length))
        self.new_objects += 1
        if self._encoder.size >= PACK_TARGET_BYTES:
            await self._seal()

    async def _seal(self) -> None:
        if self._encoder is None:
            return
        encoder, parts = self._encoder, self._parts
        self._encoder, self._parts = None, []
        parts.append(encoder.finish())
        # LIMIT: one pack is on its way while the next is filled.
        await self._settle()
        self._upload = asyncio.create_task(self._send(encoder, parts))

    async def _settle(self) -> None:
        if self._upload is not None:
            upload, self._upload = self._upload, None
            await upload

    async def _send(self, encoder: PackEncoder, parts: list[bytes]) -> None:
        reply = await self._transport.request(
            "POST",
            f"/v1/pushes/{self._push}/packs",
            step="packs",
            media=MEDIA_JSON,
            params={"pack": str(encoder.pack)},
            body=parts,
            body_media=MEDIA_PACK,
            repeatable=True,
            timeout_s=UPLOAD_TIMEOUT_S,
        )
        stored = decode_answer(reply, PackStored)
        if stored.pack != str(encoder.pack) or stored.frames != len(encoder.frames):
            raise ProtocolError(f"sent pack {encoder.pack}, the server stored {stored}")
        self.sent_bytes += encoder.size

    async def close(self) -> None:
        """Let a pack that is on its way go."""
        if self._upload is not None:
            self._upload.cancel()
            await asyncio.wait([self._upload])

    async def commit(self, request: CommitRequest) -> Artifact:
        """Have the server prove what was sent and found present, and record it."""
        artifact = await self._transport.send_json(
            "POST",
            f"/v1/pushes/{self._push}/commit",
            request,
            Artifact,
            step="commit",
            repeatable=True,
            timeout_s=COMMIT_TIMEOUT_S,
        )
        if artifact.digest != request.digest:
            raise ProtocolError(f"committed {request.digest}, the server recorded {artifact.digest[:100]}")
        return artifact
