"""Frames of a pack that has lost its footer.

Owns finding them: they follow each other from the header on, each with a checksum over itself.  Behind a frame whose header is
damaged the next one is looked for byte by byte; what its checksum does not hold is no frame.

Memory: the pack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from casstore.errors import DamagedObject, MalformedDocument
from casstore.formats.frame import FRAME_MAGIC, read_frame, read_frame_head
from casstore.formats.pack import FRAME_HEADER_BYTES, PACK_HEADER_BYTES
from casstore.ids import PackId
from casstore.limits import MIB, PACK_SIZE_MAX_BYTES
from casstore.storage.roles import FrameRow, PackStore

_PIECE_BYTES: Final = MIB
_BLOCK_BYTES: Final = 4096


def read_unlisted(store: PackStore, pack: PackId, size: int) -> Iterator[FrameRow]:
    """The frames that a pack holds, in order, whatever its header and footer say.

    Args:
        store: where it lies.
        pack: which one.
        size: of it, in bytes.

    Raises:
        PackNotFound: no such pack.
    """
    # LIMIT: no pack is larger; what is behind is not the store's.
    data = _read_whole(store, pack, min(size, PACK_SIZE_MAX_BYTES))
    view = memoryview(data)
    at = PACK_HEADER_BYTES
    while (at := data.find(FRAME_MAGIC, at)) >= 0 and at + FRAME_HEADER_BYTES <= len(data):
        try:
            head = read_frame_head(view, at)
            whole = FRAME_HEADER_BYTES + head.stored_length
            if at + whole > len(data):
                raise MalformedDocument("a frame ends behind its pack")
            read_frame(head, view, at, at)
        except MalformedDocument:
            at += 1
            continue
        yield FrameRow(head.kind, head.id, at, whole, head.plain_length)
        at += whole


def _read_whole(store: PackStore, pack: PackId, size: int) -> bytearray:
    """All of a pack that can be read; what the disk refuses is zeros."""
    data = bytearray(size)
    for start in range(0, size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, size - start)
        try:
            data[start : start + length] = store.read(pack, start, length)
        except DamagedObject:
            for block in range(start, start + length, _BLOCK_BYTES):
                short = min(_BLOCK_BYTES, start + length - block)
                try:
                    data[block : block + short] = store.read(pack, block, short)
                except DamagedObject:
                    continue
    return data
