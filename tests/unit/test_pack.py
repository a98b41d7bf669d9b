"""Packs: whatever arrives as one is either what it says it is, byte for byte, or refused before it is used."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable

import pytest

from casstore.errors import DamagedObject, DigestMismatch, MalformedDocument, TooLarge
from casstore.formats.frame import encode_frame
from casstore.formats.layout import LayoutBuilder
from casstore.formats.pack import (
    FOOTER_OVERHEAD_BYTES,
    FOOTER_ROW_BYTES,
    FRAME_HEADER_BYTES,
    PACK_HEADER_BYTES,
    PLAIN_MAX_BYTES,
    TRAILER_BYTES,
    Codec,
    Frame,
    ObjectKind,
    PackDecoder,
    PackEncoder,
    PackSummary,
    decode_footer,
    decode_frame,
    decode_trailer,
    encode_pack,
    open_frame,
    seal_frame,
    verify_object,
)
from casstore.formats.snapshot import Snapshot, encode_snapshot, snapshot_digest
from casstore.formats.tree import EntryType, PageCutter, TreeEntry, encode_root, tree_digest
from casstore.hashing import Buffer, blake3_256
from casstore.ids import ChunkId, PackId
from casstore.limits import CHUNK_MAX_BYTES, PACK_FRAMES_MAX, PACK_SIZE_MAX_BYTES

PACK = PackId(b"pack-id-16-bytes")
TEXT = b"every byte is hashed again on the way in and on the way out. " * 100


def chunk(plain: bytes) -> tuple[ObjectKind, bytes, bytes]:
    return ObjectKind.CHUNK, ChunkId(blake3_256(plain)), plain


def one_of_each() -> list[tuple[ObjectKind, bytes, bytes]]:
    cutter = PageCutter()
    cutter.add(TreeEntry(b"", EntryType.DIRECTORY, 0o755))
    (page,) = cutter.finish()
    root = encode_root([page.ref])
    snapshot = encode_snapshot(Snapshot())
    return [
        chunk(TEXT),
        chunk(b"short"),
        chunk(b""),
        (ObjectKind.PAGE, page.ref.digest, page.data),
        (ObjectKind.ROOT, tree_digest(root), root),
        (ObjectKind.LAYOUT, page.ref.digest, LayoutBuilder().encode()),
        (ObjectKind.DOCUMENT, snapshot_digest(snapshot), snapshot),
    ]


OBJECTS = one_of_each()
DATA = encode_pack(PACK, OBJECTS)


def read(data: bytes, piece: int = 1 << 30, expected: PackId | None = None) -> tuple[list[Frame], PackSummary]:
    decoder = PackDecoder(expected)
    frames = [frame for at in range(0, len(data), piece) for frame in decoder.feed(data[at : at + piece])]
    return frames, decoder.finish()


@pytest.mark.parametrize("piece", [1, 7, 55, 56, 57, 1000, 1 << 20])
def test_a_pack_comes_back_whatever_the_pieces(piece: int) -> None:
    frames, summary = read(DATA, piece, PACK)
    assert [(frame.kind, frame.id, open_frame(frame)) for frame in frames] == OBJECTS
    assert (summary.pack, summary.size) == (PACK, len(DATA))
    assert [row.offset for row in summary.rows] == [frame.offset for frame in frames]
    for frame, row in zip(frames, summary.rows, strict=True):
        assert row[:5] == (
            frame.kind,
            frame.id,
            frame.offset,
            FRAME_HEADER_BYTES + len(frame.stored),
            frame.plain_length,
        )
        fetched = decode_frame(DATA[row.offset : row.offset + row.stored_length], row.offset)
        assert fetched == frame


def test_frames_come_out_before_the_pack_is_whole() -> None:
    """The server proves files while later frames are still on their way."""
    decoder = PackDecoder()
    first = PACK_HEADER_BYTES + FRAME_HEADER_BYTES + len(seal_frame(*chunk(TEXT))[1])
    assert decoder.feed(DATA[: first - 1]) == []
    assert [open_frame(frame) for frame in decoder.feed(DATA[first - 1 : first])] == [TEXT]


def test_the_footer_says_where_everything_lies() -> None:
    _, summary = read(DATA)
    offset = decode_trailer(DATA[-TRAILER_BYTES:], len(DATA))
    assert len(DATA) - offset == FOOTER_OVERHEAD_BYTES + len(OBJECTS) * FOOTER_ROW_BYTES
    assert decode_footer(DATA[offset:], len(DATA)) == summary
    assert decode_footer(DATA, len(DATA)) == summary
    assert decode_footer(memoryview(DATA)[offset - 1 :], len(DATA)) == summary
    with pytest.raises(MalformedDocument):
        decode_footer(DATA[offset + 1 :], len(DATA))


def test_a_pack_of_nothing_is_a_pack() -> None:
    data = encode_pack(PACK, [])
    assert len(data) == PACK_HEADER_BYTES + FOOTER_OVERHEAD_BYTES
    assert read(data) == ([], PackSummary(PACK, len(data), []))


def test_the_same_object_twice_is_harmless() -> None:
    frames, _ = read(encode_pack(PACK, [chunk(TEXT)] * 2))
    assert [open_frame(frame) for frame in frames] == [TEXT, TEXT]


def test_views_are_not_copied() -> None:
    """A push of gigabytes must not be copied frame by frame."""
    (frame, *_), _ = read(DATA)
    assert isinstance(frame.stored, memoryview)
    assert isinstance(frame.stored.obj, bytes)
    assert len(frame.stored.obj) == len(DATA)


def test_every_truncation_is_noticed() -> None:
    for length in range(len(DATA)):
        decoder = PackDecoder()
        decoder.feed(DATA[:length])
        with pytest.raises(MalformedDocument):
            decoder.finish()


def test_nothing_may_follow_the_trailer() -> None:
    for extra in (b"\0", DATA):
        with pytest.raises(MalformedDocument):
            read(DATA + extra)
        decoder = PackDecoder()
        decoder.feed(DATA)
        assert decoder.feed(b"") == []
        with pytest.raises(MalformedDocument):
            decoder.feed(extra)


def test_another_pack_than_announced_is_refused_at_its_header() -> None:
    with pytest.raises(MalformedDocument):
        PackDecoder(PackId(bytes(16))).feed(DATA[:PACK_HEADER_BYTES])


def test_what_is_no_pack_is_refused_at_its_first_bytes() -> None:
    with pytest.raises(MalformedDocument):
        PackDecoder().feed(b"PK\x03\x04" + bytes(20))
    with pytest.raises(MalformedDocument):
        PackDecoder().feed(DATA[:PACK_HEADER_BYTES] + bytes(FRAME_HEADER_BYTES))


def reseal(data: bytes, change: Callable[[bytearray], None]) -> bytes:
    """Change the footer and give it a right checksum: not damage, but a lie."""
    offset = decode_trailer(data[-TRAILER_BYTES:], len(data))
    footer = bytearray(data[offset : len(data) - TRAILER_BYTES + 8])
    change(footer)
    return data[:offset] + bytes(footer) + blake3_256(footer) + data[-8:]


def put(at: int, value: bytes) -> Callable[[bytearray], None]:
    def change(footer: bytearray) -> None:
        footer[at : at + len(value)] = value

    return change


ROW = 28
LAST = ROW + (len(OBJECTS) - 1) * FOOTER_ROW_BYTES
LAST_STORED = decode_footer(DATA, len(DATA)).rows[-1].stored_length - FRAME_HEADER_BYTES
assert len(OBJECTS[-1][2]) > LAST_STORED, "the last frame is compressed, so its stored length may vary"
LIES = {
    "magic": put(0, b"CASPIDX\x02"),
    "pack": put(8, bytes(16)),
    "count": put(24, struct.pack(">I", len(OBJECTS) - 1)),
    "kind": put(ROW, b"\x02"),
    "kind that does not exist": put(ROW, b"\x09"),
    "codec": put(ROW + 1, b"\x00"),
    "offset": put(ROW + 2, struct.pack(">I", 25)),
    "stored length": put(ROW + 6, struct.pack(">I", 1)),
    "plain length": put(ROW + 10, struct.pack(">I", len(TEXT) + 1)),
    "id": put(ROW + 14, bytes(32)),
    "last stored length": put(LAST + 6, struct.pack(">I", LAST_STORED - 1)),
    "footer's offset": put(ROW + len(OBJECTS) * FOOTER_ROW_BYTES, struct.pack(">Q", 24)),
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES.keys())
def test_a_footer_that_lies_is_refused(change: Callable[[bytearray], None]) -> None:
    """Else a rebuilt index would point elsewhere than the one that was recorded when the pack came."""
    changed = reseal(DATA, change)
    with pytest.raises(MalformedDocument):
        read(changed)
    try:
        rows = decode_footer(changed, len(changed)).rows
    except MalformedDocument:
        pass  # the footer contradicts itself, which shows without the frames
    else:
        assert rows[0].offset == PACK_HEADER_BYTES
        assert rows[-1].offset + rows[-1].stored_length == decode_trailer(changed[-TRAILER_BYTES:], len(changed))
    assert read(reseal(DATA, lambda _: None))[1].size == len(DATA)


@pytest.mark.parametrize(
    ("kind", "codec", "stored", "plain_length"),
    [
        (0, 0, b"x", 1),
        (6, 0, b"x", 1),
        (1, 2, b"x", 1),
        (1, 0, b"x", 2),
        (1, 0, b"xy", 1),
        (1, 1, b"xy", 2),
        (1, 1, b"", 2),
        (1, 1, b"x", CHUNK_MAX_BYTES + 1),
        (1, 0, bytes(CHUNK_MAX_BYTES + 1), CHUNK_MAX_BYTES + 1),
    ],
)
def test_numbers_that_no_frame_has_are_refused(kind: int, codec: int, stored: bytes, plain_length: int) -> None:
    """The checksum is right: whoever made this meant it."""
    covered = struct.pack(">BBII", kind, codec, len(stored), plain_length) + bytes(32)
    frame = b"CF" + covered + blake3_256(covered + stored)[:12] + stored
    with pytest.raises(MalformedDocument):
        PackDecoder().feed(DATA[:PACK_HEADER_BYTES] + frame)
    with pytest.raises(DamagedObject):
        decode_frame(frame, 24)
    if kind in list(ObjectKind) and codec in list(Codec):
        with pytest.raises(MalformedDocument):
            encode_frame(ObjectKind(kind), bytes(32), Codec(codec), stored, plain_length)


@pytest.mark.parametrize("kind", list(ObjectKind))
def test_an_object_under_another_id_is_refused(kind: ObjectKind) -> None:
    """A client that sends one chunk under the name of another would poison everyone's next pull."""
    plain = next(plain for of, _, plain in OBJECTS if of is kind)
    if kind is ObjectKind.LAYOUT:
        plain = b"CASL\x01" + bytes(7)
    frame = decode_frame(encode_frame(kind, bytes(32), Codec.RAW, plain, len(plain)), 24)
    with pytest.raises(DamagedObject) as caught:
        open_frame(frame)
    assert caught.value.object == bytes(32).hex()
    assert caught.value.where == "offset 24"
    with pytest.raises(MalformedDocument if kind is ObjectKind.LAYOUT else DigestMismatch):
        verify_object(kind, bytes(32), plain)


def test_an_object_of_one_kind_does_not_pass_for_another() -> None:
    for kind, object_id, plain in OBJECTS:
        verify_object(kind, object_id, plain)
        for other in ObjectKind:
            if other is not kind and ObjectKind.LAYOUT not in (kind, other):
                with pytest.raises(DigestMismatch):
                    verify_object(other, object_id, plain)


def test_a_zstd_frame_that_swells_to_another_length_is_refused() -> None:
    codec, stored = seal_frame(*chunk(TEXT))
    assert codec is Codec.ZSTD
    for length in (len(TEXT) - 1, len(TEXT) + 1, CHUNK_MAX_BYTES):
        frame = decode_frame(encode_frame(ObjectKind.CHUNK, blake3_256(TEXT), codec, stored, length), 24)
        with pytest.raises(DamagedObject):
            open_frame(frame)
    rubbish = encode_frame(ObjectKind.CHUNK, blake3_256(TEXT), codec, b"not zstd", len(TEXT))
    with pytest.raises(DamagedObject):
        open_frame(decode_frame(rubbish, 24))


def test_a_fetched_frame_must_be_exactly_that_frame() -> None:
    """A range that a proxy cut short, or a location that is a byte off, is damage and not a shorter file."""
    row = read(DATA)[1].rows[0]
    frame = DATA[row.offset : row.offset + row.stored_length]
    for wrong in (
        b"",
        frame[:55],
        frame[:-1],
        frame + b"\0",
        DATA[row.offset + 1 : row.offset + 1 + row.stored_length],
    ):
        with pytest.raises(DamagedObject):
            decode_frame(wrong, row.offset)


def test_incompressible_objects_are_stored_raw() -> None:
    noise = os.urandom(1000)
    assert seal_frame(*chunk(noise)) == (Codec.RAW, noise)
    assert seal_frame(*chunk(b"")) == (Codec.RAW, b"")
    codec, stored = seal_frame(*chunk(bytes(CHUNK_MAX_BYTES)))
    assert codec is Codec.ZSTD
    assert len(stored) < 100


@pytest.mark.parametrize("kind", list(ObjectKind))
def test_an_object_above_the_bound_of_its_kind_is_not_sealed(kind: ObjectKind) -> None:
    with pytest.raises(TooLarge):
        seal_frame(kind, bytes(32), bytes(PLAIN_MAX_BYTES[kind] + 1))


def test_a_full_pack_takes_no_more() -> None:
    encoder = PackEncoder(PACK)
    encoder.header()
    size = CHUNK_MAX_BYTES
    stored: Buffer = bytes(size)
    count = 0
    while encoder.fits(size):
        encoder.add(ObjectKind.CHUNK, bytes(32), Codec.RAW, stored, size)
        count += 1
    with pytest.raises(TooLarge):
        encoder.add(ObjectKind.CHUNK, bytes(32), Codec.RAW, stored, size)
    encoder.finish()
    assert PACK_SIZE_MAX_BYTES - size < encoder.size <= PACK_SIZE_MAX_BYTES
    assert count == len(encoder.frames)


def test_a_pack_of_too_many_frames_is_refused() -> None:
    encoder = PackEncoder(PACK)
    parts = [encoder.header()]
    while encoder.fits(0):
        parts.append(encoder.add(ObjectKind.CHUNK, blake3_256(b""), Codec.RAW, b"", 0))
    assert len(encoder.frames) == PACK_FRAMES_MAX
    with pytest.raises(TooLarge):
        encoder.add(ObjectKind.CHUNK, blake3_256(b""), Codec.RAW, b"", 0)
    whole = b"".join([*parts, encoder.finish()])
    assert len(read(whole)[1].rows) == PACK_FRAMES_MAX
    decoder = PackDecoder()
    decoder.feed(b"".join(parts))
    with pytest.raises(TooLarge):
        decoder.feed(parts[-1])


def test_a_writer_of_single_bytes_costs_no_more_memory_than_the_frame() -> None:
    plain = os.urandom(100_000)
    data = encode_pack(PACK, [chunk(plain)])
    decoder = PackDecoder()
    frames: list[Frame] = []
    tracemalloc.start()
    try:
        for at in range(len(data)):
            frames += decoder.feed(data[at : at + 1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    decoder.finish()
    assert open_frame(frames[0]) == plain
    assert peak < 5 * len(plain)


def test_the_encoder_keeps_its_order() -> None:
    encoder = PackEncoder(PACK)
    with pytest.raises(AssertionError):
        encoder.finish()
    with pytest.raises(AssertionError):
        encoder.add(ObjectKind.CHUNK, bytes(32), Codec.RAW, b"", 0)
    encoder.header()
    with pytest.raises(AssertionError):
        encoder.header()
    encoder.finish()
    with pytest.raises(AssertionError):
        encoder.add(ObjectKind.CHUNK, bytes(32), Codec.RAW, b"", 0)
    with pytest.raises(AssertionError):
        encoder.finish()
