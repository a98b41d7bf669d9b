"""Packs under Hypothesis: any objects in any pieces, rubbish, and every bit flipped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.compression import zstd_compress
from casstore.errors import DamagedObject, InvalidInput, MalformedDocument
from casstore.formats.pack import (
    TRAILER_BYTES,
    Codec,
    Frame,
    ObjectKind,
    PackDecoder,
    PackEncoder,
    decode_footer,
    decode_frame,
    decode_trailer,
    encode_pack,
    open_frame,
)
from casstore.hashing import blake3_256
from casstore.ids import PackId

PACK = PackId(bytes(range(16)))
PLAIN = st.one_of(st.binary(max_size=300), st.binary(min_size=1, max_size=20).map(lambda part: part * 400))


def encode(plains: list[bytes]) -> bytes:
    return encode_pack(PACK, [(ObjectKind.CHUNK, blake3_256(plain), plain) for plain in plains])


def read_all(data: bytes) -> list[Frame]:
    decoder = PackDecoder()
    frames = decoder.feed(data)
    decoder.finish()
    return frames


@settings(max_examples=150, deadline=None)
@given(st.lists(PLAIN, max_size=8), st.lists(st.integers(1, 6000), min_size=1, max_size=10))
def test_any_pack_comes_back_in_any_pieces(plains: list[bytes], pieces: list[int]) -> None:
    data = encode(plains)
    decoder = PackDecoder(PACK)
    frames: list[Frame] = []
    position = turn = 0
    while position < len(data):
        size = pieces[turn % len(pieces)]
        frames += decoder.feed(data[position : position + size])
        position, turn = position + size, turn + 1
    summary = decoder.finish()
    assert [open_frame(frame) for frame in frames] == plains
    assert decode_footer(data, len(data)) == summary
    encoder = PackEncoder(PACK)
    parts = [encoder.header()]
    parts += [encoder.add(frame.kind, frame.id, frame.codec, frame.stored, frame.plain_length) for frame in frames]
    assert b"".join([*parts, encoder.finish()]) == data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_rubbish_is_refused(rest: bytes, begins_well: bool) -> None:
    data = (b"CASPACK\x01" + PACK if begins_well else b"") + rest
    with pytest.raises(InvalidInput):
        read_all(data)
    with pytest.raises(DamagedObject):
        decode_frame(rest, 0)
    with pytest.raises(MalformedDocument):
        decode_footer(data, len(data))


def flipped(data: bytes) -> list[bytes]:
    return [data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]


def test_every_flipped_bit_of_a_pack_is_noticed() -> None:
    """Bit rot under the store, or on the wire, never reaches a file."""
    data = encode([b"short", b"long enough to be compressed. " * 20])
    assert len(read_all(data)) == 2
    for changed in flipped(data):
        with pytest.raises(InvalidInput):
            read_all(changed)


def test_every_flipped_bit_of_a_fetched_frame_is_noticed() -> None:
    data = encode([b"long enough to be compressed. " * 20])
    row = decode_footer(data, len(data)).rows[0]
    frame = data[row.offset : row.offset + row.stored_length]
    assert decode_frame(frame, row.offset).codec is Codec.ZSTD
    for changed in flipped(frame):
        with pytest.raises(DamagedObject):
            decode_frame(changed, row.offset)


def test_every_flipped_bit_of_a_footer_is_noticed() -> None:
    data = encode([b"a", b"b"])
    tail = data[decode_trailer(data[-TRAILER_BYTES:], len(data)) :]
    assert len(decode_footer(tail, len(data)).rows) == 2
    for changed in flipped(tail):
        with pytest.raises(MalformedDocument):
            decode_footer(changed, len(data))


def test_every_flipped_bit_behind_a_right_checksum_is_noticed() -> None:
    """A sender that computes checksums of what it damaged still cannot pass one chunk for another."""
    plain = b"long enough to be compressed. " * 20
    for codec, stored in ((Codec.RAW, plain), (Codec.ZSTD, zstd_compress(plain))):
        for changed in flipped(stored):
            frame = Frame(ObjectKind.CHUNK, codec, blake3_256(plain), changed, len(plain), 24)
            try:
                assert open_frame(frame) == plain  # zstd has bits without effect: the content is right, so it may pass
                assert codec is Codec.ZSTD
            except DamagedObject:
                continue
