"""The push of an import: objects that are at hand as frames go to the server as they are stored, if it lacks them.

Owns the asking, the packs and the commits.  The frames were verified by whoever hands them in; the server verifies them again.

Memory: ``ASK_BYTES`` of frames whose absence is asked about, one pack that is filled and one that is on its way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final, Literal

from casstore.formats.pack import Frame, ObjectKind, PackEncoder
from casstore.ids import PackId, PushId
from casstore.limits import MIB, PACK_TARGET_BYTES
from casstore.wire import Artifact, CommitRequest
from casstore_client.push_api import commit, find_missing, send_pack
from casstore_client.transport import Transport

ASK_IDS: Final = 4096
ASK_BYTES: Final = 8 * MIB


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
        """Chunks and pages that the server lacked."""
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

    async def _missing(self, kind: Literal["chunk", "page"], frames: Sequence[Frame]) -> Sequence[Frame]:
        if not frames:
            return ()
        flags = await find_missing(self._transport, self._push, kind, [frame.id for frame in frames])
        missing = [frame for frame, flag in zip(frames, flags, strict=True) if flag]
        self.new_objects += len(missing)
        return missing

    async def _put(self, frame: Frame) -> None:
        if self._encoder is not None and not self._encoder.fits(len(frame.stored)):
            await self._seal()
        if self._encoder is None:
            self._encoder = PackEncoder(PackId(os.urandom(PackId.SIZE)))
            self._parts = [self._encoder.header()]
        self._parts.append(self._encoder.add(frame.kind, frame.id, frame.codec, frame.stored, frame.plain_length))
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
        await send_pack(self._transport, self._push, encoder.pack, parts, frames=len(encoder.frames))
        self.sent_bytes += encoder.size

    async def close(self) -> None:
        """Let a pack that is on its way go."""
        if self._upload is not None:
            self._upload.cancel()
            await asyncio.wait([self._upload])

    async def commit(self, request: CommitRequest) -> Artifact:
        """Have the server prove what was sent and found present, and record it."""
        return await commit(self._transport, self._push, request)
