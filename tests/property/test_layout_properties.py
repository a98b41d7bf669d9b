"""Layouts under Hypothesis: round trips, rubbish, and every byte changed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import InvalidInput
from casstore.formats.layout import LayoutBuilder, decode_layout, encode_layout
from casstore.hashing import blake3_256
from casstore.ids import ChunkId
from casstore.limits import CHUNK_MAX_BYTES

CHUNKS = {ChunkId(blake3_256(bytes([number]))): 1 + number * (CHUNK_MAX_BYTES - 1) // 9 for number in range(10)}
Row = list[tuple[ChunkId, int, int, int]]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    chunks = draw(st.lists(st.sampled_from(sorted(CHUNKS)), min_size=1, max_size=4))
    if len(chunks) > 1 or draw(st.booleans()):
        return [(chunk, CHUNKS[chunk], 0, CHUNKS[chunk]) for chunk in chunks]
    size = CHUNKS[chunks[0]]
    offset = draw(st.integers(0, size - 1))
    return [(chunks[0], size, offset, draw(st.integers(1, size - offset)))]


@settings(max_examples=200, deadline=None)
@given(st.lists(rows(), max_size=20))
def test_any_layout_round_trips(files: list[Row]) -> None:
    builder = LayoutBuilder()
    for row in files:
        builder.add_file(row)
    data = builder.encode()
    layout = decode_layout(data)
    assert layout == builder.layout
    assert encode_layout(layout) == data
    read = [[(*layout.chunks[extent.chunk], extent.offset, extent.length) for extent in row] for row in layout.files]
    assert read == files


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: b"CASL\x01\0\0\0\1\0\0\0\1" + rest)))
def test_rubbish_is_refused_or_is_a_layout(data: bytes) -> None:
    try:
        layout = decode_layout(data)
    except InvalidInput:
        return
    assert encode_layout(layout) == data


def test_a_layout_with_any_byte_changed_is_refused_or_is_another_layout() -> None:
    builder = LayoutBuilder()
    (first, size), (second, other) = sorted(CHUNKS.items())[:2]
    builder.add_file([(first, size, 0, size), (second, other, 0, other)])
    builder.add_file([(second, other, 5, 6)])
    data = builder.encode()
    for at in range(len(data)):
        for value in range(256):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                layout = decode_layout(changed)
            except InvalidInput:
                continue
            assert encode_layout(layout) == changed
