"""Layouts: whoever restores a file follows one, so it must not point outside of its chunks or cost more than the
file."""

from __future__ import annotations

import struct

import pytest

from casstore.errors import MalformedDocument, TooLarge
from casstore.formats.layout import (
    Extent,
    Layout,
    LayoutBuilder,
    decode_layout,
    encode_layout,
    verify_layout_fits,
)
from casstore.formats.tree import EMPTY_DIGEST, EntryType, TreeEntry
from casstore.ids import BlobDigest, ChunkId
from casstore.limits import CHUNK_MAX_BYTES, LAYOUT_SIZE_MAX_BYTES, PAGE_ENTRIES_MAX

A, B, C = (ChunkId(bytes([n]) * 32) for n in (1, 2, 3))
GOOD = Layout(
    [(B, 300), (A, CHUNK_MAX_BYTES), (C, 5)],
    [
        [Extent(0, 0, 100)],
        [Extent(1, 0, CHUNK_MAX_BYTES), Extent(2, 0, 5), Extent(1, 0, CHUNK_MAX_BYTES)],
        [Extent(0, 100, 200)],
        [Extent(2, 0, 5)],
        [Extent(2, 4, 1)],
    ],
)


def raw(layout: Layout) -> bytes:
    """A layout as its document spells it, without the code under test and without its checks."""
    data = b"CASL\x01" + struct.pack(">II", len(layout.chunks), len(layout.files))
    for chunk, length in layout.chunks:
        data += chunk + struct.pack(">I", length)
    for row in layout.files:
        data += struct.pack(">I", len(row))
        for extent in row:
            data += struct.pack(">III", *extent)
    return data


def test_a_layout_comes_back_as_it_was() -> None:
    data = encode_layout(GOOD)
    assert data == raw(GOOD)
    assert decode_layout(data) == GOOD
    assert decode_layout(memoryview(data)) == GOOD
    assert type(decode_layout(data).chunks[0][0]) is ChunkId


def test_the_builder_numbers_chunks_as_they_are_first_used() -> None:
    builder = LayoutBuilder()
    builder.add_file([(B, 300, 0, 100)])
    builder.add_file([(A, CHUNK_MAX_BYTES, 0, CHUNK_MAX_BYTES), (C, 5, 0, 5), (A, CHUNK_MAX_BYTES, 0, CHUNK_MAX_BYTES)])
    builder.add_file([(B, 300, 100, 200)])
    builder.add_file([(C, 5, 0, 5)])
    builder.add_file([(C, 5, 4, 1)])
    assert builder.layout == GOOD
    assert builder.encode() == raw(GOOD)


def test_the_layout_of_nothing_is_its_head() -> None:
    assert LayoutBuilder().encode() == b"CASL\x01" + bytes(8)
    assert decode_layout(b"CASL\x01" + bytes(8)) == Layout([], [])


BAD = {
    "extent beyond its chunk": Layout([(A, 10)], [[Extent(0, 5, 6)]]),
    "offset beyond its chunk": Layout([(A, 10)], [[Extent(0, 11, 1)]]),
    "whole length at an offset": Layout([(A, 10)], [[Extent(0, 1, 10)]]),
    "extent of nothing": Layout([(A, 10)], [[Extent(0, 5, 0)]]),
    "file without extents": Layout([], [[]]),
    "chunk not in the table": Layout([(A, 10)], [[Extent(0, 0, 10)], [Extent(1, 0, 10)]]),
    "chunk not used": Layout([(A, 10), (B, 10)], [[Extent(0, 0, 10)]]),
    "not in order of first use": Layout([(A, 10), (B, 10)], [[Extent(1, 0, 10)], [Extent(0, 0, 10)]]),
    "chunk twice": Layout([(A, 10), (A, 10)], [[Extent(0, 0, 10)], [Extent(1, 0, 10)]]),
    "chunk twice with another length": Layout([(A, 10), (A, 9)], [[Extent(0, 0, 10)], [Extent(1, 0, 9)]]),
    "chunk of nothing": Layout([(A, 0)], [[Extent(0, 0, 0)]]),
    "chunk too large": Layout([(A, CHUNK_MAX_BYTES + 1)], [[Extent(0, 0, 1)]]),
    "slices of chunks in one file": Layout([(A, 10), (B, 10)], [[Extent(0, 0, 10), Extent(1, 0, 5)]]),
    "many bytes fetched for few": Layout([(A, CHUNK_MAX_BYTES)], [[Extent(0, 0, 1), Extent(0, 1, 1)]]),
    "more files than a page has": Layout([(A, 10)], [[Extent(0, 0, 10)]] * (PAGE_ENTRIES_MAX + 1)),
}


@pytest.mark.parametrize("layout", BAD.values(), ids=BAD.keys())
def test_a_layout_that_breaks_a_rule_is_refused_both_ways(layout: Layout) -> None:
    with pytest.raises(MalformedDocument):
        encode_layout(layout)
    with pytest.raises(MalformedDocument):
        decode_layout(raw(layout))


def test_a_layout_must_be_whole() -> None:
    data = raw(GOOD)
    for length in range(len(data)):
        with pytest.raises(MalformedDocument):
            decode_layout(data[:length])
    for extra in (b"\0", b"\0\0\0\0", data):
        with pytest.raises(MalformedDocument):
            decode_layout(data + extra)


@pytest.mark.parametrize("head", [b"CASL\x02", b"CASP\x01"])
def test_what_is_no_layout_is_refused(head: bytes) -> None:
    with pytest.raises(MalformedDocument):
        decode_layout(head + bytes(8))


def test_counts_that_promise_more_than_is_there_cost_nothing() -> None:
    """Thirteen bytes must not make the server allocate gigabytes."""
    for counts in ((2**32 - 1, 0), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(MalformedDocument):
            decode_layout(b"CASL\x01" + struct.pack(">II", *counts))
    with pytest.raises(MalformedDocument):
        decode_layout(b"CASL\x01" + struct.pack(">III", 0, 1, 2**32 - 1))


def test_a_layout_is_bounded() -> None:
    with pytest.raises(TooLarge):
        decode_layout(bytes(LAYOUT_SIZE_MAX_BYTES + 1))
    with pytest.raises(TooLarge):
        encode_layout(Layout([(A, 10)], [[Extent(0, 0, 10)] * (LAYOUT_SIZE_MAX_BYTES // 12)]))


def entry(path: bytes, size: int) -> TreeEntry:
    return TreeEntry(path, EntryType.FILE, 0o644, size, BlobDigest(bytes(32)) if size else EMPTY_DIGEST)


ENTRIES = [
    TreeEntry(b"", EntryType.DIRECTORY, 0o755),
    entry(b"a", 100),
    entry(b"b", 2 * CHUNK_MAX_BYTES + 5),
    entry(b"c", 0),
    entry(b"d", 200),
    TreeEntry(b"e", EntryType.LINK, 0, target=b"a"),
    entry(b"f", 5),
    entry(b"g", 1),
]


def test_a_layout_fits_the_page_whose_files_with_content_it_lists() -> None:
    verify_layout_fits(GOOD, ENTRIES)


@pytest.mark.parametrize("change", [(1, 101), (2, 2 * CHUNK_MAX_BYTES), (3, 1), (6, 0), (7, 2)])
def test_a_layout_of_another_page_is_refused(change: tuple[int, int]) -> None:
    """Else one file's bytes would be taken for the next one's, and a push be acknowledged that cannot be restored."""
    at, size = change
    entries = list(ENTRIES)
    entries[at] = entry(entries[at].path, size)
    with pytest.raises(MalformedDocument):
        verify_layout_fits(GOOD, entries)
    with pytest.raises(MalformedDocument):
        verify_layout_fits(GOOD, ENTRIES[:-1])
