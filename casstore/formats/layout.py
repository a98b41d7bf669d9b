"""Layouts: where the bytes of a page's files lie.

A layout is a chunk table and, for each FILE entry of the page with a size above zero, in page order, one row of
extents. A blob has a layout of one row (none if it is empty).  A layout is a hint and no part of identity: whoever
reads a file through it trusts the file's digest alone, so a wrong layout can make reading fail but can make nothing
false.

Invariants of every layout that decodes: chunks are distinct and stand in the order of their first use; each is used;
every extent lies inside its chunk; a row has either exactly one extent (a small file, a slice of a bundle) or whole
chunks only, so that reading a file never costs more than its size plus one chunk.

Source: docs/formats/layout.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

from casstore.errors import MalformedDocument, TooLarge
from casstore.formats.tree import EntryType, TreeEntry
from casstore.ids import ChunkId
from casstore.limits import CHUNK_MAX_BYTES, LAYOUT_SIZE_MAX_BYTES, PAGE_ENTRIES_MAX

LAYOUT_MAGIC: Final = b"CASL\x01"
_HEAD: Final = struct.Struct(">5sII")
_CHUNK: Final = struct.Struct(">32sI")


class Extent(NamedTuple):
    """A run of a file's bytes: ``length`` bytes at ``offset`` of the plain bytes of chunk number ``chunk`` of the
    table."""

    chunk: int
    offset: int
    length: int


class Layout(NamedTuple):
    """``chunks``: (id, plain length in bytes), distinct, in order of first use.  ``files``: one row of extents a
    file."""

    chunks: list[tuple[ChunkId, int]]
    files: list[list[Extent]]


_new_extent: Final = tuple.__new__  # the constructor of a NamedTuple costs three times as much


class LayoutBuilder:
    """Gathers the rows of one layout; numbers the chunks as they are first used."""

    def __init__(self) -> None:
        self._ordinals: dict[ChunkId, int] = {}
        self._layout = Layout([], [])

    def add_file(self, extents: Sequence[tuple[ChunkId, int, int, int]]) -> None:
        """Append the row of the next file.

        Args:
            extents: at least one (chunk, plain length of that chunk, offset in it, length), in file order, in bytes.
        """
        ordinals = self._ordinals
        chunks, files = self._layout
        if len(extents) == 1:  # by far the most rows
            chunk, plain_length, offset, length = extents[0]
            if chunk in ordinals:
                files.append([_new_extent(Extent, (ordinals[chunk], offset, length))])
                return
        row: list[Extent] = []
        for chunk, plain_length, offset, length in extents:
            ordinal = ordinals.get(chunk)
            if ordinal is None:
                ordinal = ordinals[chunk] = len(chunks)
                chunks.append((chunk, plain_length))
            row.append(Extent(ordinal, offset, length))
        files.append(row)

    @property
    def layout(self) -> Layout:
        """What was gathered so far (the builder's own lists: do not change them)."""
        return self._layout

    def encode(self) -> bytes:
        """The layout's bytes.

        Raises:
            MalformedDocument: a row breaks a rule of the format.
            TooLarge: above ``LAYOUT_SIZE_MAX_BYTES``.
        """
        return encode_layout(self._layout)


def _verify_rows(chunks: Sequence[tuple[ChunkId, int]], rows: Sequence[Sequence[Extent]]) -> None:
    """The rules that hold between extents and the chunk table."""
    if len(rows) > PAGE_ENTRIES_MAX:
        raise MalformedDocument(f"a layout has at most {PAGE_ENTRIES_MAX} files, this one {len(rows)}")
    for _, plain_length in chunks:
        if not 0 < plain_length <= CHUNK_MAX_BYTES:
            raise MalformedDocument(f"a chunk has 1 to {CHUNK_MAX_BYTES} bytes, one of the layout's has {plain_length}")
    if len({chunk for chunk, _ in chunks}) != len(chunks):
        raise MalformedDocument("a layout names a chunk twice in its table")
    used = 0
    for row in rows:
        for chunk, offset, length in row:
            if chunk >= used:
                if chunk != used or chunk >= len(chunks):
                    raise MalformedDocument(f"a layout uses chunk {chunk} where chunk {used} would be the next new one")
                used += 1
            plain_length = chunks[chunk][1]
            # LIMIT: slices only where a file has one extent: else 12 bytes of layout could make a reader fetch 1 MiB.
            if length != plain_length and (len(row) > 1 or not 0 < length <= plain_length - offset):
                raise MalformedDocument(
                    f"an extent of {length} bytes at {offset} is not allowed in a chunk of {plain_length}"
                )
            if offset and length == plain_length:
                raise MalformedDocument(
                    f"an extent of {length} bytes at {offset} ends behind its chunk of {plain_length}"
                )
        if not row:
            raise MalformedDocument("a row of a layout has no extent")
    if used != len(chunks):
        raise MalformedDocument(f"a layout's table names {len(chunks)} chunks, its files use {used}")


def encode_layout(layout: Layout) -> bytes:
    """``"CASL" 0x01 ‖ u32be chunks ‖ u32be files ‖ (id32 ‖ u32be plain length)* ‖ (u32be extents ‖ (3 × u32be)*)*``

    Raises:
        MalformedDocument: the layout breaks a rule of the format.
        TooLarge: above ``LAYOUT_SIZE_MAX_BYTES``.
    """
    chunks, files = layout
    _verify_rows(chunks, files)
    numbers: list[int] = []
    for row in files:
        numbers.append(len(row))
        numbers.extend(chain.from_iterable(row))
    pack = _CHUNK.pack
    data = b"".join(
        (
            _HEAD.pack(LAYOUT_MAGIC, len(chunks), len(files)),
            *(pack(chunk, length) for chunk, length in chunks),
            struct.pack(f">{len(numbers)}I", *numbers),
        )
    )
    if len(data) > LAYOUT_SIZE_MAX_BYTES:
        raise TooLarge(
            f"a layout has at most {LAYOUT_SIZE_MAX_BYTES} bytes, this one {len(data)}", limit=LAYOUT_SIZE_MAX_BYTES
        )
    return data


def decode_layout(data: bytes | memoryview) -> Layout:
    """Undo :func:`encode_layout`; nothing that it returns encodes to other bytes.

    Raises:
        MalformedDocument: any other bytes; the message says which rule is broken.
        TooLarge: above ``LAYOUT_SIZE_MAX_BYTES``.
    """
    size = len(data)
    if size > LAYOUT_SIZE_MAX_BYTES:
        raise TooLarge(
            f"a layout has at most {LAYOUT_SIZE_MAX_BYTES} bytes, this one {size}", limit=LAYOUT_SIZE_MAX_BYTES
        )
    if size < _HEAD.size:
        raise MalformedDocument("a layout ends inside its head")
    magic, chunk_count, file_count = _HEAD.unpack_from(data)
    if magic != LAYOUT_MAGIC:
        raise MalformedDocument("not a layout: it does not begin with CASL 01")
    table_end = _HEAD.size + chunk_count * _CHUNK.size
    # LIMIT: counts are held against the bytes that are there before anything is allocated for them.
    if table_end > size or (size - table_end) % 4 or (size - table_end) // 4 < file_count:
        raise MalformedDocument("a layout ends inside its chunk table or its rows")
    new = bytes.__new__
    chunks = [
        (new(ChunkId, chunk), plain_length) for chunk, plain_length in _CHUNK.iter_unpack(data[_HEAD.size : table_end])
    ]
    numbers = struct.unpack_from(f">{(size - table_end) // 4}I", data, table_end)
    files: list[list[Extent]] = []
    build = tuple.__new__
    position = 0
    for _ in range(file_count):
        if position >= len(numbers):
            raise MalformedDocument("a layout ends inside its rows")
        first = position + 1
        position = first + 3 * numbers[position]
        if position > len(numbers):
            raise MalformedDocument("a layout ends inside a row")
        if position == first + 3:  # by far the most rows
            files.append([build(Extent, numbers[first:position])])
        else:
            files.append([build(Extent, numbers[at : at + 3]) for at in range(first, position, 3)])
    if position != len(numbers):
        raise MalformedDocument("a layout goes on behind its last row")
    _verify_rows(chunks, files)
    return Layout(chunks, files)


def verify_layout_fits(layout: Layout, entries: Sequence[TreeEntry]) -> None:
    """Hold a layout against the page that it belongs to.

    Args:
        layout: as decoded.
        entries: the entries of the page (for a blob: one FILE entry with the blob's size).

    Raises:
        MalformedDocument: another number of rows than files with content, or a row that does not add up to its file's
            size.
    """
    file_type = EntryType.FILE
    sized = [entry for entry in entries if entry.type == file_type and entry.size]
    if len(sized) != len(layout.files):
        raise MalformedDocument(
            f"a layout has {len(layout.files)} rows for a page with {len(sized)} files that have content"
        )
    for entry, row in zip(sized, layout.files, strict=True):
        length = row[0].length if len(row) == 1 else sum(extent.length for extent in row)
        if length != entry.size:
            raise MalformedDocument(
                f"the layout of {entry.path!r} adds up to {length} bytes, the file has {entry.size}"
            )
