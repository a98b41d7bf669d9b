"""Blobs: single files that were pushed by themselves, read back verified.

Owns reading a run of a blob's bytes.  Every chunk is hashed before any of its bytes is handed out, and the layout is
held against the memo of what was proven, so a run from the middle is as trustworthy as the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from casstore.engine.packs import PackService, format_object
from casstore.engine.presence import Gaps
from casstore.engine.proving import page_proof_key
from casstore.engine.trees import chunk_places
from casstore.errors import BlobNotFound, DamagedObject, InvalidInput
from casstore.formats.layout import Extent, Layout, decode_layout
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest, ChunkId
from casstore.storage.roles import Location
from casstore.wire import PageRecord

# LIMIT: extents of one reader that are held at a time: half a gigabyte of an honest blob, and less than a MiB of memory.
_WINDOW_EXTENTS: Final = 2048
# The extents, each with its chunk and where that lies; how many bytes of the first are not wanted.
_Window = tuple[list[Extent], list[tuple[ChunkId, Location]], int]


class BlobService:
    """Blobs by digest.

    Args:
        packs: where objects are read.
    """

    def __init__(self, packs: PackService) -> None:
        self._packs = packs

    def record(self, digest: BlobDigest) -> PageRecord:
        """The blob as a pull receives it: layout and places of chunks, with an empty page.

        Raises:
            BlobNotFound: the store has no such blob.
            SnapshotIncomplete: a chunk of it is missing.
            DamagedObject: its layout cannot be read.
        """
        layout = self._layout(digest)
        return PageRecord(b"", layout, chunk_places(self._packs, layout))

    def size(self, digest: BlobDigest) -> int:
        """Size of the blob in bytes.

        Raises:
            BlobNotFound: the store has no such blob.
            DamagedObject: its layout cannot be read.
        """
        layout = self._layout(digest)
        with self._packs.rooms.hold(ObjectKind.LAYOUT, len(layout)):
            return sum(extent.length for extent in _row(decode_layout(layout)))

    def read(self, digest: BlobDigest, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A run of the blob's bytes, chunk by chunk.

        What can be checked without reading chunks is checked before this returns, so a server can still answer with an
        error; an error while iterating means that the answer must be cut off.

        Args:
            digest: which blob.
            offset: first byte.
            length: how many bytes; None reads to the end.  A run that ends behind the blob is an error.

        Raises:
            BlobNotFound: the store has no such blob.
            InvalidInput: a run outside the blob.
            SnapshotIncomplete: (also while iterating) a chunk is missing.
            DamagedObject: (also while iterating) a chunk cannot be read.
            Overloaded: (also while iterating) other large layouts are being taken apart.
        """
        size = self.size(digest)
        stop = size if length is None else offset + length
        if not 0 <= offset <= stop <= size:
            raise InvalidInput(f"bytes {offset} to {stop} are not inside a blob of {size} bytes")
        if offset == stop:
            return iter(())
        return self._pieces(digest, self._window(digest, offset, stop), offset, stop)

    def _pieces(self, digest: BlobDigest, window: _Window, at: int, stop: int) -> Iterator[bytes]:
        while True:
            extents, wanted, skip = window
            for plain, extent in zip(self._packs.read_located(ObjectKind.CHUNK, wanted), extents, strict=True):
                piece = plain[extent.offset + skip : extent.offset + min(extent.length, skip + stop - at)]
                skip = 0
                at += len(piece)
                yield piece
            if at == stop:
                return
            window = self._window(digest, at, stop)

    def _window(self, digest: BlobDigest, at: int, stop: int) -> _Window:
        """The extents from the byte ``at`` on, up to ``stop`` or ``_WINDOW_EXTENTS`` of them."""
        data = self._layout(digest)
        with self._packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
            layout = decode_layout(data)
            extents: list[Extent] = []
            skip = position = 0
            for extent in _row(layout):
                end = position + extent.length
                if end > at:
                    if not extents:
                        skip = at - position
                    extents.append(extent)
                    if end >= stop or len(extents) == _WINDOW_EXTENTS:
                        break
                position = end
            locations = self._locate(layout, extents)
            return extents, [(layout.chunks[extent.chunk][0], locations[extent.chunk]) for extent in extents], skip

    def _locate(self, layout: Layout, extents: list[Extent]) -> dict[int, Location]:
        ordinals = sorted({extent.chunk for extent in extents})
        ids = [layout.chunks[ordinal][0] for ordinal in ordinals]
        gaps = Gaps()
        found: dict[int, Location] = {}
        for ordinal, id, location in zip(ordinals, ids, self._packs.index.locate(ObjectKind.CHUNK, ids), strict=True):
            if location is None:
                gaps.add(id)
            else:
                found[ordinal] = location
        if gaps.count:
            self._packs.refuse_quarantined(ObjectKind.CHUNK, ids)
            raise gaps.error("the blob")
        return found

    def _layout(self, digest: BlobDigest) -> bytes:
        # A page's digest names a layout too: it is no blob.
        if self._packs.available(ObjectKind.PAGE, [digest])[0]:
            raise BlobNotFound(f"the store has no blob {digest}")
        try:
            layout = self._packs.read_object(ObjectKind.LAYOUT, digest)
        except BlobNotFound as error:
            raise BlobNotFound(f"the store has no blob {digest}") from error
        # TRUST: a layout has no hash of its own; that it is the proven one is what makes a run from the middle
        # trustworthy.
        if not self._packs.index.memo_has([page_proof_key(digest, layout)])[0]:
            name = format_object(ObjectKind.LAYOUT, digest)
            raise DamagedObject(
                f"{name} is not the one that was proven",
                object=name,
                expected="the proven layout",
                found="another layout",
            )
        return layout


def _row(layout: Layout) -> list[Extent]:
    return layout.files[0] if layout.files else []
