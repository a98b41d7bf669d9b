"""Repair believes hashes and proofs, and nobody; affected walks every reference backwards."""

from __future__ import annotations

import base64
import os

import pytest

from casstore.engine.affected import AffectedSearch
from casstore.engine.quarantine import QuarantineService
from casstore.engine.rebuild import IndexRebuild
from casstore.engine.repair import RepairService, gather_objects
from casstore.engine.salvage import read_unlisted
from casstore.errors import DamagedObject, MalformedDocument, NotFound, TooLarge
from casstore.formats.layout import LayoutBuilder, decode_layout
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind, PackDecoder, open_frame
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId, ComponentName, PackId
from casstore.limits import MIB
from casstore.storage.memory import MemoryChunkIndex
from casstore.wire import RepairPlan
from tests.support.treebuild import (
    BuiltTree,
    Content,
    Object,
    build_blob,
    build_tree,
    check,
    encode_packs,
    flip_bit,
    some_files,
)


class Clinic:
    """Content, and what heals it."""

    def __init__(self) -> None:
        self.content = Content()
        self.quarantine = QuarantineService(
            self.content.packs, self.content.presence, self.content.clock, pause=lambda seconds: None
        )
        self.repairs = RepairService(self.content.packs, self.quarantine, self.content.artifacts, self.content.ledger)

    def lose(self, kind: ObjectKind, id: bytes) -> None:
        """Damage an object and take it out of use."""
        location = self.content.index.locate(kind, [id])[0]
        assert location is not None
        flip_bit(self.content.store, location.pack, location.offset + FRAME_HEADER_BYTES)
        damages, _ = self.quarantine.judge(kind, id)
        assert self.quarantine.take_out(damages)

    def heal(self, objects: list[Object]) -> tuple[set[str], set[str]]:
        """What was healed, and what was refused, by kind."""
        healed: set[str] = set()
        refused: set[str] = set()
        for pack, data in encode_packs(objects):
            answer = self.repairs.heal(pack, data)
            healed |= {str(one.kind) for one in answer.healed}
            refused |= {str(one.kind) for one in answer.refused}
        return healed, refused


@pytest.fixture
def clinic() -> Clinic:
    return Clinic()


@pytest.fixture
def tree(clinic: Clinic) -> BuiltTree:
    tree = build_tree(some_files())
    clinic.content.push(tree, "app")
    return tree


def wanted(plan: RepairPlan) -> set[tuple[str, str]]:
    return {(one.kind, one.id) for one in plan.wanted}


def test_a_whole_store_wants_nothing(clinic: Clinic, tree: BuiltTree) -> None:
    assert clinic.repairs.plan() == RepairPlan(wanted=[], truncated=False)


def test_what_is_wanted_is_taken_and_the_rest_refused(clinic: Clinic, tree: BuiltTree) -> None:
    """A repair must not fill a store with what nobody needs."""
    chunk = next(iter(tree.chunks))
    clinic.lose(ObjectKind.CHUNK, chunk)
    (one,) = clinic.repairs.plan().wanted
    assert (one.kind, one.id, one.plain_bytes) == ("chunk", f"blake3:{chunk.hex()}", len(tree.chunks[chunk]))
    before = len(clinic.content.store.list(limit=100))
    foreign = build_blob(b"nobody wants this" * 5000)
    healed, refused = clinic.heal([(ObjectKind.CHUNK, id, plain) for id, plain in foreign.chunks.items()])
    assert (healed, refused) == (set(), {"chunk"})
    assert len(clinic.content.store.list(limit=100)) == before
    healed, refused = clinic.heal(tree.objects())
    assert healed == {"chunk"}
    assert clinic.repairs.plan().wanted == []
    codes = {finding.code for finding in check(clinic.content, full=True).findings}
    assert codes == {"dead-frame"}


def test_the_pieces_of_a_chunk_are_where_its_bytes_lie(clinic: Clinic, tree: BuiltTree) -> None:
    """What `repair --from DIRECTORY` puts together."""
    files = {path: item for path, item in some_files().items() if isinstance(item, bytes)}
    for chunk in tree.chunks:
        clinic.lose(ObjectKind.CHUNK, chunk)
    checked = 0
    for one in clinic.repairs.plan().wanted:
        plain = bytearray(one.plain_bytes or 0)
        for piece in one.pieces:
            path = base64.b64decode(piece.path_b64)
            data = files.get(path, b"#!/bin/sh\n")
            plain[piece.at : piece.at + piece.length] = data[piece.offset : piece.offset + piece.length]
        assert blake3_256(bytes(plain)).hex() == one.id.removeprefix("blake3:")
        checked += 1
    assert checked == len(tree.chunks)


def test_a_lying_layout_is_refused(clinic: Clinic, tree: BuiltTree) -> None:
    """A holder that gives another layout could make readers put files together wrongly: it is proven first."""
    small = build_tree({b"a": b"first", b"b": b"other"})
    clinic.content.push(small)
    page = small.pages[0].ref.digest
    clinic.lose(ObjectKind.LAYOUT, page)
    chunk, plain = next(iter(small.chunks.items()))
    builder = LayoutBuilder()
    builder.add_file([(ChunkId(chunk), len(plain), 5, 5)])
    builder.add_file([(ChunkId(chunk), len(plain), 0, 5)])
    assert clinic.heal([(ObjectKind.LAYOUT, page, builder.encode())]) == (set(), {"layout"})
    assert wanted(clinic.repairs.plan()) == {("layout", str(page))}
    assert clinic.heal([(ObjectKind.LAYOUT, page, small.layouts[page])]) == ({"layout"}, set())
    assert clinic.repairs.plan().wanted == []


def test_what_a_healed_layout_leads_to_is_live(clinic: Clinic, tree: BuiltTree) -> None:
    """A mark that walked another layout of the page has not met these chunks: they must not be dropped behind the repair."""
    index = clinic.content.index
    page, layout = next(iter(tree.layouts.items()))
    clinic.lose(ObjectKind.LAYOUT, page)
    clinic.repairs.plan()
    chunks = [bytes(chunk) for chunk, _ in decode_layout(layout).chunks]
    assert index.condemn(ObjectKind.CHUNK, chunks, at_ms=1, mark=1) == len(set(chunks))
    healed, refused = clinic.heal([(ObjectKind.LAYOUT, page, layout)])
    assert (healed, refused) == ({"layout"}, set())
    assert all(index.has(ObjectKind.CHUNK, chunks))


def test_a_pack_that_lies_is_refused_whole(clinic: Clinic, tree: BuiltTree) -> None:
    chunk = next(iter(tree.chunks))
    clinic.lose(ObjectKind.CHUNK, chunk)
    ((pack, data),) = encode_packs([(ObjectKind.CHUNK, chunk, b"other bytes")])
    with pytest.raises(MalformedDocument):
        clinic.repairs.heal(pack, data)
    with pytest.raises(MalformedDocument):
        clinic.repairs.heal(PackId(bytes(16)), data)
    with pytest.raises(MalformedDocument):
        clinic.repairs.heal(pack, data[:-1])
    zeros = [bytes(MIB)] * 65
    ((pack, data),) = encode_packs([(ObjectKind.CHUNK, blake3_256(plain), plain) for plain in zeros])
    with pytest.raises(TooLarge):
        clinic.repairs.heal(pack, data)
    assert len(clinic.repairs.plan().wanted) == 1


def test_everything_that_can_be_missing_is_wanted(clinic: Clinic) -> None:
    """Missing, not only quarantined: an index that lost rows, a pack that is gone and was taken out."""
    content = clinic.content
    tree, blob = build_tree(some_files()), build_blob(os.urandom(100_000))
    content.push(tree, "app")
    content.push(blob, "blob")
    page = bytes(tree.pages[0].ref.digest)
    lost = [
        (ObjectKind.ROOT, bytes(tree.digest)),
        (ObjectKind.LAYOUT, bytes(blob.digest)),
        (ObjectKind.PAGE, page),
        (ObjectKind.LAYOUT, page),
    ]
    for kind, id in lost:
        clinic.lose(kind, id)
    rows = content.index.quarantined(limit=100)
    assert wanted(clinic.repairs.plan()) == {(kind.name.lower(), f"blake3:{id.hex()}") for kind, id in lost}
    # Gone from the quarantine too: they are wanted for what refers to them.
    content.index.forget_quarantined(rows)
    assert wanted(clinic.repairs.plan()) == {
        ("root", str(tree.digest)),
        ("layout", str(blob.digest)),
    }
    clinic.heal([(ObjectKind.ROOT, tree.digest, tree.root), (ObjectKind.LAYOUT, blob.digest, blob.layout)])
    assert wanted(clinic.repairs.plan()) == {("page", f"blake3:{page.hex()}"), ("layout", f"blake3:{page.hex()}")}
    clinic.heal(tree.objects())
    assert clinic.repairs.plan().wanted == []
    assert check(content).ok


def test_objects_are_handed_out_in_one_pack(clinic: Clinic, tree: BuiltTree) -> None:
    """What another store asks for; what cannot be read is left out, and looked into."""
    keys: list[tuple[ObjectKind, bytes]] = [(kind, bytes(id)) for kind, id, _ in tree.objects()]
    pack = PackId(os.urandom(16))
    decoder = PackDecoder(pack)
    frames = decoder.feed(gather_objects(clinic.content.packs, keys, pack))
    decoder.finish()
    assert {(f.kind, f.id): open_frame(f) for f in frames} == {(k, bytes(i)): p for k, i, p in tree.objects()}
    chunk = bytes(next(iter(tree.chunks)))
    location = clinic.content.index.locate(ObjectKind.CHUNK, [chunk])[0]
    assert location is not None
    flip_bit(clinic.content.store, location.pack, location.offset + FRAME_HEADER_BYTES)
    with pytest.raises(NotFound):
        gather_objects(clinic.content.packs, [(ObjectKind.CHUNK, chunk)], pack)
    assert clinic.quarantine.take_suspects(10) == [(ObjectKind.CHUNK, chunk)]


def test_affected_walks_backwards(clinic: Clinic, tree: BuiltTree) -> None:
    content = clinic.content
    other = build_tree({b"x": os.urandom(100_000)})
    content.push(other, "other")
    document = encode_snapshot(
        Snapshot(
            components=(
                Component(ComponentName("app"), "tree", tree.digest),
                Component(ComponentName("other"), "tree", other.digest),
            )
        )
    )
    content.snapshots.put([document])
    search = AffectedSearch(content.packs, content.artifacts, content.ledger)
    found = search.run([(None, next(iter(other.chunks)))])
    assert found.trees == [str(other.digest)]
    assert [one.name for one in found.artifacts] == ["other"]
    assert [one.components for one in found.snapshots] == [["other"]]
    assert [one.path for one in found.files] == ["x"]
    assert (found.pages, found.unreadable, found.truncated, found.pointers) == (1, 0, False, [])
    nothing = AffectedSearch(content.packs, content.artifacts, content.ledger).run([(None, bytes(32))])
    assert (nothing.trees, nothing.artifacts, nothing.snapshots) == ([], [], [])


@pytest.mark.parametrize("kind", [ObjectKind.PAGE, ObjectKind.LAYOUT, ObjectKind.ROOT])
def test_what_is_out_of_use_is_affected_itself(clinic: Clinic, tree: BuiltTree, kind: ObjectKind) -> None:
    id = bytes(tree.digest if kind is ObjectKind.ROOT else tree.pages[0].ref.digest)
    clinic.lose(kind, id)
    found = AffectedSearch(clinic.content.packs, clinic.content.artifacts, clinic.content.ledger).run([(kind, id)])
    assert found.trees == [str(tree.digest)]
    assert [one.name for one in found.artifacts] == ["app"]


def test_a_layout_that_cannot_be_read_is_counted_as_affected(clinic: Clinic, tree: BuiltTree) -> None:
    """Better one name too many than one too few."""
    page = bytes(tree.pages[0].ref.digest)
    location = clinic.content.index.locate(ObjectKind.LAYOUT, [page])[0]
    assert location is not None
    flip_bit(clinic.content.store, location.pack, location.offset + FRAME_HEADER_BYTES)
    chunk = next(iter(tree.chunks))
    found = AffectedSearch(clinic.content.packs, clinic.content.artifacts, clinic.content.ledger).run(
        [(ObjectKind.CHUNK, chunk)]
    )
    assert (found.unreadable, found.trees) == (1, [str(tree.digest)])


def test_salvage_reads_past_what_the_disk_refuses(
    clinic: Clinic, tree: BuiltTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = clinic.content.store
    pack = store.list(limit=1)[0]
    size = store.size(pack)
    whole = list(read_unlisted(store, pack, size))
    read = store.read

    def refuse(pack: PackId, offset: int, length: int) -> bytes:
        if offset <= 5000 < offset + length:
            raise DamagedObject("the disk cannot read it")
        return read(pack, offset, length)

    monkeypatch.setattr(store, "read", refuse)
    found = list(read_unlisted(store, pack, size))
    assert set(found) <= set(whole)
    missed = set(whole) - set(found)
    assert all(row.offset <= 8191 and row.offset + row.stored_length > 4096 for row in missed)


@pytest.mark.parametrize("kind", ["tree", "blob"])
def test_what_a_rebuilt_index_could_not_prove_is_healed(clinic: Clinic, kind: str) -> None:
    """A disk is lost, the index is built anew without the packs on it, and a holder has them: no layout says which chunks those are."""
    whole = build_tree(some_files()) if kind == "tree" else build_blob(os.urandom(3 * MIB))
    clinic.content.push(whole, "app")
    lost = set(list(whole.chunks)[:2])
    objects = {(one, bytes(id)): plain for one, id, plain in whole.objects()}
    index = MemoryChunkIndex()
    for chunk in lost:
        location = clinic.content.index.locate(ObjectKind.CHUNK, [chunk])[0]
        assert location is not None
        flip_bit(clinic.content.store, location.pack, location.offset + FRAME_HEADER_BYTES)
    IndexRebuild(clinic.content.store, index).run()
    content = Content(clinic.content.store, index, clinic.content.ledger, clinic.content.clock)
    quarantine = QuarantineService(content.packs, content.presence, content.clock, pause=lambda seconds: None)
    repairs = RepairService(content.packs, quarantine, content.artifacts, content.ledger)
    assert not check(content, full=True).ok
    for _ in range(4):
        wanted = {(ObjectKind[one.kind.upper()], bytes(BlobDigest.parse(one.id))) for one in repairs.plan().wanted}
        sent = [(one, id, objects[one, id]) for one, id in sorted(wanted)]
        for pack, data in encode_packs([item for item in sent if item[0] is not ObjectKind.LAYOUT]):
            repairs.heal(pack, data)
        for pack, data in encode_packs([item for item in sent if item[0] is ObjectKind.LAYOUT]):
            repairs.heal(pack, data)
    assert repairs.plan().wanted == []
    assert check(content, full=True).ok
