"""The page stream of pull step 2."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from casstore.errors import MalformedDocument, TooLarge
from casstore.ids import PackId
from casstore.limits import LAYOUT_SIZE_MAX_BYTES, PAGE_SIZE_MAX_BYTES

_RECORD = struct.Struct(">BIII")
_CHUNK_AT = struct.Struct(">16sII")
_RECORD_MAGIC: Final = 0xC5
LOCATIONS_MAX_BYTES: Final = LAYOUT_SIZE_MAX_BYTES


class ChunkAt(NamedTuple):
    """Where a chunk's frame lies: pack, offset of the frame header, length of the whole frame, in bytes."""

    pack: PackId
    offset: int
    stored_length: int


class PageRecord(NamedTuple):
    """One page on the wire: its bytes, its layout's bytes, and where each chunk of the layout's table lies, in order.

    A blob travels the same way with empty ``page`` bytes.
    """

    page: bytes
    layout: bytes
    chunks: list[ChunkAt]


def encode_page_record(record: PageRecord) -> bytes:
    """``u8 0xC5 ‖ u32be page bytes ‖ u32be layout bytes ‖ u32be chunks ‖ page ‖ layout ‖ (pack16 ‖ u32be ‖ u32be)*``"""
    head = _RECORD.pack(_RECORD_MAGIC, len(record.page), len(record.layout), len(record.chunks))
    return b"".join((head, record.page, record.layout, *(_CHUNK_AT.pack(*chunk) for chunk in record.chunks)))


class PageRecordDecoder:
    """Cuts a stream into page records, whatever the pieces in which it arrives.

    Memory: one record, at most ``PAGE_SIZE_MAX_BYTES + LAYOUT_SIZE_MAX_BYTES + LOCATIONS_MAX_BYTES``.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[PageRecord]:
        """Take more bytes, return the records that are complete.

        Raises:
            MalformedDocument: not such a stream.
            TooLarge: a record beyond the bound.
        """
        self._buffer += data
        records: list[PageRecord] = []
        start = 0
        while len(self._buffer) - start >= _RECORD.size:
            magic, page_size, layout_size, chunks = _RECORD.unpack_from(self._buffer, start)
            if magic != _RECORD_MAGIC:
                raise MalformedDocument(f"a page record begins with 0x{_RECORD_MAGIC:02x}, this with 0x{magic:02x}")
            if (
                page_size > PAGE_SIZE_MAX_BYTES
                or layout_size > LAYOUT_SIZE_MAX_BYTES
                or chunks * _CHUNK_AT.size > LOCATIONS_MAX_BYTES
            ):
                raise TooLarge("a page record is larger than any page can be", limit=PAGE_SIZE_MAX_BYTES)
            end = start + _RECORD.size + page_size + layout_size + chunks * _CHUNK_AT.size
            if len(self._buffer) < end:
                break
            records.append(self._decode(start + _RECORD.size, page_size, layout_size, end))
            start = end
        del self._buffer[:start]
        return records

    def _decode(self, at: int, page_size: int, layout_size: int, end: int) -> PageRecord:
        page = bytes(self._buffer[at : at + page_size])
        layout = bytes(self._buffer[at + page_size : at + page_size + layout_size])
        table = bytes(self._buffer[at + page_size + layout_size : end])
        chunks = [ChunkAt(PackId(pack), offset, length) for pack, offset, length in _CHUNK_AT.iter_unpack(table)]
        return PageRecord(page, layout, chunks)

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            MalformedDocument: in the middle of a record.
        """
        if self._buffer:
            raise MalformedDocument(f"the page stream ended inside a record ({len(self._buffer)} bytes were left)")
