"""Packs in and objects out: whoever sends or stores wrong bytes is refused, and nothing of it stays."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.engine.ingest import PackIngest
from casstore.errors import (
    CasstoreError,
    Conflict,
    DamagedObject,
    DigestMismatch,
    InvalidInput,
    MalformedDocument,
    NotFound,
    RequestInProgress,
    SnapshotNotFound,
    TooLarge,
    TreeNotFound,
)
from casstore.formats.pack import FRAME_HEADER_BYTES, PACK_HEADER_BYTES, Codec, ObjectKind, PackEncoder
from casstore.formats.snapshot import Snapshot, encode_snapshot, snapshot_digest
from casstore.hashing import blake3_256
from casstore.ids import PackId
from casstore.limits import PACK_SIZE_MAX_BYTES
from tests.support.treebuild import Content, Object, encode_packs, flip_bit, new_push, open_local, rewrite_pack


@pytest.fixture(params=["memory", "local"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield Content()
        return
    opened, close = open_local(tmp_path / "store")
    yield opened
    close()


def chunk(data: bytes) -> Object:
    return ObjectKind.CHUNK, blake3_256(data), data


def one_pack(*objects: Object) -> tuple[PackId, bytes]:
    return next(encode_packs(objects))


def begin(content: Content, pack: PackId) -> PackIngest:
    return content.pushes.begin_pack(new_push(), pack)


def feed_all(ingest: PackIngest, data: bytes) -> None:
    ingest.feed(data)
    ingest.seal()


def assert_nothing_stored(content: Content) -> None:
    assert content.store.list(limit=10) == []
    assert content.index.packs(limit=10) == []
    assert content.index.count(ObjectKind.CHUNK) == 0


CHUNKS = [chunk(random.Random(n).randbytes(n)) for n in (1, 70, 5000)] + [chunk(b"text " * 4000)]


@pytest.mark.parametrize("piece", [1, 7, 56, 1 << 20])
def test_a_pack_is_taken_in_whatever_the_pieces(content: Content, piece: int) -> None:
    """A slow client sends crumbs: the same objects must come out."""
    pack, data = one_pack(*CHUNKS)
    [stored] = content.send(new_push(), [(pack, data)], piece=piece)
    assert (stored.frames, stored.stored_bytes, stored.duplicate) == (4, len(data), False)
    assert stored.plain_bytes == sum(len(plain) for _, _, plain in CHUNKS)
    for kind, id, plain in CHUNKS:
        assert content.packs.read_object(kind, id) == plain
    assert content.store.read(pack, 0, len(data)) == data


def test_nothing_can_be_found_before_the_pack_is_recorded(content: Content) -> None:
    """A reader must not find an object whose pack a power cut could still take."""
    pack, data = one_pack(*CHUNKS)
    ingest = begin(content, pack)
    ingest.feed(data)
    assert_nothing_stored(content)
    ingest.seal()
    assert content.index.count(ObjectKind.CHUNK) == 0
    ingest.record()
    assert content.index.count(ObjectKind.CHUNK) == 4


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 60, -1, -40, -100])
def test_a_truncated_pack_leaves_nothing(content: Content, cut: int) -> None:
    """A client that vanishes half-way: its pack must not exist in any form."""
    pack, data = one_pack(*CHUNKS)
    ingest = begin(content, pack)
    ingest.feed(data[:cut])
    with pytest.raises(MalformedDocument):
        ingest.seal()
    ingest.abort()
    assert_nothing_stored(content)


def test_every_mutated_byte_of_a_pack_is_refused() -> None:
    """Damage on the wire, or a sender that lies: whatever the byte, the pack is refused and nothing is stored."""
    pack, data = one_pack(chunk(b"hello world"), chunk(b"text " * 30))
    for at in range(len(data)):
        if at % 200 == 0:
            content = Content()  # a principal has only so many pushes under way
        mutated = bytearray(data)
        mutated[at] ^= 1 << at % 8
        ingest = begin(content, pack)
        with pytest.raises((InvalidInput, TooLarge)):
            feed_all(ingest, bytes(mutated))
        ingest.abort()
        assert_nothing_stored(content)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    """Somebody posts anything at all."""
    content = Content()
    ingest = begin(content, PackId(bytes(16)))
    with pytest.raises(InvalidInput):
        feed_all(ingest, data)
    ingest.abort()
    assert_nothing_stored(content)


def test_bytes_behind_the_trailer_are_refused(content: Content) -> None:
    """A body longer than the pack must not smuggle anything into the store."""
    pack, data = one_pack(*CHUNKS)
    ingest = begin(content, pack)
    ingest.feed(data)
    with pytest.raises(MalformedDocument):
        ingest.feed(b"x")
    ingest.abort()
    assert_nothing_stored(content)


def test_a_frame_that_lies_about_its_id_is_refused(content: Content) -> None:
    """Else one client could give another the wrong bytes under a known digest."""
    encoder = PackEncoder(PackId(os.urandom(16)))
    data = encoder.header() + encoder.add(ObjectKind.CHUNK, blake3_256(b"good"), Codec.RAW, b"evil", 4)
    ingest = begin(content, encoder.pack)
    with pytest.raises(DigestMismatch) as caught:
        ingest.feed(data + encoder.finish())
    assert caught.value.expected == blake3_256(b"good").hex()
    assert caught.value.found == blake3_256(b"evil").hex()
    assert_nothing_stored(content)


def test_a_bomb_is_refused_before_it_swells(content: Content) -> None:
    """A few KiB that decompress to a GiB must cost no memory."""
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(64 << 20))
    encoder = PackEncoder(PackId(os.urandom(16)))
    data = encoder.header() + encoder.add(ObjectKind.CHUNK, bytes(32), Codec.ZSTD, bomb, 1 << 20)
    ingest = begin(content, encoder.pack)
    with pytest.raises(MalformedDocument, match="1048576"):
        ingest.feed(data)
    assert_nothing_stored(content)


def test_a_layout_that_does_not_decode_is_refused(content: Content) -> None:
    """A layout has no hash of its own, so its form is all that can be checked when it comes in."""
    encoder = PackEncoder(PackId(os.urandom(16)))
    data = encoder.header() + encoder.add(ObjectKind.LAYOUT, bytes(32), Codec.RAW, b"CASL\x01 nonsense", 14)
    ingest = begin(content, encoder.pack)
    with pytest.raises(MalformedDocument):
        ingest.feed(data)
    assert_nothing_stored(content)


def test_a_snapshot_document_does_not_come_in_a_push(content: Content) -> None:
    """Publishing a snapshot needs another permission than pushing content."""
    document = encode_snapshot(Snapshot())
    pack, data = one_pack((ObjectKind.DOCUMENT, snapshot_digest(document), document))
    with pytest.raises(InvalidInput, match="document"):
        begin(content, pack).feed(data)
    assert_nothing_stored(content)


def test_a_pack_under_another_name_is_refused(content: Content) -> None:
    """Else a retry would not find what it had stored."""
    _, data = one_pack(*CHUNKS)
    with pytest.raises(MalformedDocument):
        begin(content, PackId(bytes(16))).feed(data)


def test_a_body_without_end_is_refused_when_the_pack_is_known(content: Content) -> None:
    """The bytes of a repeated pack are dropped, but not for ever."""
    pack, data = one_pack(*CHUNKS)
    content.send(new_push(), [(pack, data)])
    ingest = begin(content, pack)
    piece = bytes(8 << 20)
    for _ in range(PACK_SIZE_MAX_BYTES // len(piece)):
        ingest.feed(piece)
    with pytest.raises(TooLarge):
        ingest.feed(piece)


def test_a_retried_pack_is_a_duplicate(content: Content) -> None:
    """A client whose connection broke before the answer sends the pack again: same answer, nothing twice."""
    pack, data = one_pack(*CHUNKS)
    [first] = content.send(new_push(), [(pack, data)])
    [again] = content.send(new_push(), [(pack, data)])
    assert again.duplicate
    assert (again.frames, again.stored_bytes, again.plain_bytes) == (
        first.frames,
        first.stored_bytes,
        first.plain_bytes,
    )
    assert len(content.index.packs(limit=10)) == 1


def test_a_crash_between_name_and_index_is_healed_by_the_retry(content: Content) -> None:
    """The pack has its name, the process died: the client's retry must make it known."""
    pack, data = one_pack(*CHUNKS)
    ingest = begin(content, pack)
    ingest.feed(data)
    ingest.seal()
    after = content.restart()
    [stored] = after.send(new_push(), [(pack, data)])
    assert (stored.duplicate, stored.frames) == (False, 4)
    assert after.packs.read_object(*CHUNKS[0][:2]) == CHUNKS[0][2]


def test_a_damaged_leftover_is_never_adopted(content: Content) -> None:
    """What lies under the name after a crash is verified like a stranger's."""
    pack, data = one_pack(*CHUNKS)
    ingest = begin(content, pack)
    ingest.feed(data)
    ingest.seal()
    rewrite_pack(content.store, pack, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(Conflict, match="damaged"):
        content.restart().send(new_push(), [(pack, data)])
    assert content.index.count(ObjectKind.CHUNK) == 0


def test_the_same_pack_is_received_once_at_a_time(content: Content) -> None:
    """Two connections of one push must not write the same name."""
    push = new_push()
    pack, data = one_pack(*CHUNKS)
    first = content.pushes.begin_pack(push, pack)
    with pytest.raises(RequestInProgress):
        content.pushes.begin_pack(push, pack)
    first.abort()
    content.send(push, [(pack, data)])


def test_two_pushes_that_race_with_one_pack_both_succeed(content: Content) -> None:
    """A retry on a new push while the old connection still drains."""
    pack, data = one_pack(*CHUNKS)
    a, b = begin(content, pack), begin(content, pack)
    a.feed(data)
    b.feed(data)
    assert not a.finish().duplicate
    assert b.finish().duplicate


def test_what_is_not_there_is_said_to_be_not_there(content: Content) -> None:
    """A reader learns which object is missing, in its own error."""
    with pytest.raises(TreeNotFound, match="00"):
        content.packs.read_object(ObjectKind.ROOT, bytes(32))
    with pytest.raises(SnapshotNotFound):
        content.packs.read_object(ObjectKind.DOCUMENT, bytes(32))
    with pytest.raises(NotFound):
        content.packs.read_object(ObjectKind.CHUNK, bytes(32))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 8, 12, 44, FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + 60])
def test_a_flipped_bit_is_named_with_its_place(content: Content, at: int) -> None:
    """Whoever repairs at night needs object, pack and offset; the wrong bytes must not come out."""
    pack, data = one_pack(*CHUNKS)
    content.send(new_push(), [(pack, data)])
    first = PACK_HEADER_BYTES + FRAME_HEADER_BYTES + 1
    flip_bit(content.store, pack, first + at)
    kind, id, _ = CHUNKS[1]
    with pytest.raises(DamagedObject) as caught:
        content.packs.read_object(kind, id)
    assert caught.value.where == f"pack {pack} offset {first}"
    assert caught.value.object == f"chunk blake3:{id.hex()}"


def test_a_frame_of_another_object_does_not_pass(content: Content) -> None:
    """An index that points at the wrong place can hide an object and can forge none."""
    pack, data = one_pack(*CHUNKS)
    content.send(new_push(), [(pack, data)])
    locations = content.index.locate(ObjectKind.CHUNK, [CHUNKS[2][1]])
    assert locations[0] is not None
    with pytest.raises(DamagedObject):
        list(content.packs.read_located(ObjectKind.CHUNK, [(CHUNKS[1][1], locations[0])]))


def test_a_lost_pack_is_damage(content: Content) -> None:
    """The index promises the object: that its pack is gone is no plain 404."""
    pack, data = one_pack(*CHUNKS)
    content.send(new_push(), [(pack, data)])
    content.store.delete(pack)
    with pytest.raises(DamagedObject, match=str(pack)):
        content.packs.read_object(*CHUNKS[0][:2])


def test_many_objects_are_read_in_the_order_asked(content: Content) -> None:
    """Neighbours are read together; the answers still belong to the questions."""
    source = random.Random(5)
    objects = [chunk(source.randbytes(source.randrange(1, 3000))) for _ in range(200)]
    content.send(new_push(), encode_packs(objects, target_bytes=100_000))
    source.shuffle(objects)
    found = content.packs.read_objects(ObjectKind.CHUNK, [id for _, id, _ in objects])
    assert found == [plain for _, _, plain in objects]


def test_objects_that_are_there_are_not_written_again(content: Content) -> None:
    """Publishing the same document twice must not leave a pack each time."""
    document = encode_snapshot(Snapshot())
    item = (ObjectKind.DOCUMENT, bytes(snapshot_digest(document)), document)
    content.packs.put_objects([item])
    content.packs.put_objects([item])
    assert len(content.store.list(limit=10)) == 1
    assert content.packs.read_object(*item[:2]) == document


def test_an_error_while_writing_leaves_no_name(content: Content) -> None:
    """A pack of objects of which one is too large: none of them is stored."""
    with pytest.raises(CasstoreError):
        content.packs.put_objects([CHUNKS[0], (ObjectKind.CHUNK, bytes(32), bytes(2 << 20))])
    assert_nothing_stored(content)
