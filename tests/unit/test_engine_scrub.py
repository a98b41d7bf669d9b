"""Scrub and quarantine: what the disk lost is found, is missing from then on, and comes back with the next push."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from casstore.engine.quarantine import READ_TRIES, QuarantineService
from casstore.engine.scrub import Scrubber, Step
from casstore.errors import DamagedObject, LeaseLost, NotFound
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot
from casstore.hashing import blake3_256
from casstore.ids import ComponentName, PackId
from casstore.storage.roles import Location
from tests.support.treebuild import (
    Content,
    build_blob,
    build_tree,
    check,
    encode_packs,
    flip_bit,
    missing,
    new_push,
    rewrite_pack,
    some_files,
)


class Health:
    """Content with the services that keep it healthy."""

    def __init__(self, content: Content | None = None) -> None:
        self.content = content or Content()
        self.pauses: list[float] = []
        self.quarantine = QuarantineService(
            self.content.packs, self.content.presence, self.content.clock, pause=self.pauses.append
        )
        self.scrubber = Scrubber(self.content.packs, self.quarantine, self.content.clock)

    def scrub(self, *, fresh: bool = True, step_bytes: int = 1 << 26, steps_max: int = 10_000) -> list[Step]:
        """Run a pass to its end."""
        steps: list[Step] = []
        self.scrubber.begin(fresh=fresh)
        while self.scrubber.active:
            assert len(steps) < steps_max
            steps.append(self.scrubber.step(step_bytes=step_bytes))
            self.scrubber.record(steps[-1])
        return steps

    def place(self, kind: ObjectKind, id: bytes) -> Location:
        location = self.content.index.locate(kind, [id])[0]
        assert location is not None
        return location

    def damage(self, kind: ObjectKind, id: bytes) -> Location:
        """Flip a bit in the middle of an object."""
        location = self.place(kind, id)
        at = location.offset + FRAME_HEADER_BYTES + (location.stored_length - FRAME_HEADER_BYTES) // 2
        flip_bit(self.content.store, location.pack, at)
        return location

    def out_of_use(self) -> list[tuple[ObjectKind, bytes]]:
        return [(row.kind, row.id) for row in self.content.index.quarantined(limit=1000)]


@pytest.fixture
def health() -> Health:
    return Health()


def stored_bytes(content: Content) -> int:
    return sum(record.size_bytes for record in content.index.packs(limit=1000))


def test_a_whole_store_is_verified_to_the_last_byte(health: Health) -> None:
    health.content.push(build_tree(some_files()), "app")
    health.scrub()
    status = health.scrubber.status(running=False)
    assert status.verified_bytes == status.total_bytes == stored_bytes(health.content) - 24 * 0
    assert (status.damaged, status.quarantined, status.findings) == (0, 0, [])
    assert status.last_full_pass_at == status.oldest_verified_at is not None


def test_several_threads_verify_the_same(health: Health) -> None:
    health.content.push(build_tree(some_files()), "app")
    chunk = next(iter(build_tree(some_files()).chunks))
    health.damage(ObjectKind.CHUNK, chunk)
    health.scrubber.begin(fresh=True)
    with ThreadPoolExecutor(3) as pool:
        step = health.scrubber.step(pool=pool, width=3)
    assert [(damage.kind, damage.id) for damage in step.damages] == [(ObjectKind.CHUNK, chunk)]


@pytest.mark.parametrize("kind", [ObjectKind.CHUNK, ObjectKind.PAGE, ObjectKind.LAYOUT, ObjectKind.ROOT])
def test_what_a_scrub_takes_out_of_use_the_next_push_heals(health: Health, kind: ObjectKind) -> None:
    """The promise of *heal on push*, for everything that a push brings."""
    tree = build_tree(some_files())
    health.content.push(tree, "app")
    id: bytes = {
        ObjectKind.CHUNK: next(iter(tree.chunks)),
        ObjectKind.PAGE: tree.pages[0].ref.digest,
        ObjectKind.LAYOUT: tree.pages[0].ref.digest,
        ObjectKind.ROOT: tree.digest,
    }[kind]
    assert not any(missing(health.content, ObjectKind.PAGE, [page.ref.digest for page in tree.pages]))
    health.damage(kind, id)
    health.scrub()
    assert health.out_of_use() == [(kind, id)]
    if kind is ObjectKind.CHUNK:
        assert missing(health.content, kind, [id]) == [True]
    if kind is not ObjectKind.ROOT:
        assert any(missing(health.content, ObjectKind.PAGE, [page.ref.digest for page in tree.pages]))
    with pytest.raises(DamagedObject, match="quarantine") as caught:
        list(
            health.content.trees.page_records(health.content.trees.select_pages(tree.digest, tree.pages[0].ref.digest))
        )
    assert id.hex() in str(caught.value.object)
    health.content.push(tree, "app")
    assert health.out_of_use() == []
    assert len(list(health.content.trees.page_records([page.ref.digest for page in tree.pages]))) == len(tree.pages)
    health.scrub()
    assert health.out_of_use() == []
    codes = {finding.code for finding in check(health.content, full=True).findings if finding.severity == "error"}
    assert codes <= {"damaged-object"}, "the dead frame in the old pack is all that is left"


def test_a_document_heals_when_it_is_published_again(health: Health) -> None:
    content = health.content
    tree = build_tree({b"a": b"x"})
    content.push(tree)
    document = encode_snapshot(Snapshot(components=(Component(ComponentName("app"), "tree", tree.digest),)))
    (digest,) = content.snapshots.put([document])
    assert content.snapshots.document(digest) == document
    health.damage(ObjectKind.DOCUMENT, digest)
    health.scrub()
    with pytest.raises(DamagedObject, match="quarantine"):
        content.snapshots.document(digest)
    content.snapshots.put([document])
    assert content.snapshots.document(digest) == document
    assert health.out_of_use() == []


def test_a_blob_says_that_its_chunk_is_in_quarantine(health: Health) -> None:
    blob = build_blob(b"x" * 200_000)
    health.content.push(blob)
    health.damage(ObjectKind.CHUNK, next(iter(blob.chunks)))
    health.scrub()
    with pytest.raises(DamagedObject, match="quarantine"):
        b"".join(health.content.blobs.read(blob.digest))
    with pytest.raises(DamagedObject, match="quarantine"):
        health.content.blobs.record(blob.digest)


def test_one_wrong_read_condemns_nothing(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cable that hesitates must not cost a store its content."""
    tree = build_tree(some_files())
    health.content.push(tree)
    read, failed = health.content.store.read, []

    def hesitate(pack: PackId, offset: int, length: int) -> bytes:
        data = read(pack, offset, length)
        if len(failed) < READ_TRIES - 1 and length > 100_000:
            failed.append(offset)
            return bytes(len(data))
        return data

    monkeypatch.setattr(health.content.store, "read", hesitate)
    health.scrub()
    assert failed
    assert health.out_of_use() == []


def test_what_reads_right_again_comes_back_by_itself(health: Health) -> None:
    """A disk that was not mounted is mounted."""
    tree = build_tree(some_files())
    health.content.push(tree)
    location = health.damage(ObjectKind.CHUNK, next(iter(tree.chunks)))
    health.scrub()
    assert len(health.out_of_use()) == 1
    at = location.offset + FRAME_HEADER_BYTES + (location.stored_length - FRAME_HEADER_BYTES) // 2
    flip_bit(health.content.store, location.pack, at)
    health.scrub()
    assert health.out_of_use() == []
    assert not any(missing(health.content, ObjectKind.CHUNK, list(tree.chunks)))


def test_release_believes_nobody(health: Health) -> None:
    tree = build_tree(some_files())
    health.content.push(tree)
    chunk = next(iter(tree.chunks))
    with pytest.raises(NotFound):
        health.quarantine.release(ObjectKind.CHUNK, chunk)
    health.damage(ObjectKind.CHUNK, chunk)
    health.scrub()
    with pytest.raises(DamagedObject, match="stays in quarantine"):
        health.quarantine.release(ObjectKind.CHUNK, chunk)
    assert len(health.out_of_use()) == 1


def test_a_missing_pack_takes_out_everything_that_lay_in_it(health: Health) -> None:
    tree = build_tree(some_files())
    health.content.push(tree, "app")
    pack = health.place(ObjectKind.ROOT, tree.digest).pack
    health.content.store.delete(pack)
    health.scrub()
    lost = {(kind, id) for kind, id, _ in tree.objects() if kind is not ObjectKind.LAYOUT}
    assert set(health.out_of_use()) == lost
    health.content.push(tree, "app")
    assert health.out_of_use() == []
    assert [finding.object for finding in health.scrubber.status(running=False).findings][-1:] != []


def test_more_damage_than_a_step_takes_is_taken_in_several(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore.engine.scrub.DAMAGES_MAX", 3)
    tree = build_tree(some_files())
    health.content.push(tree, "app")
    for id in tree.chunks:
        health.damage(ObjectKind.CHUNK, id)
    health.scrub(steps_max=200)
    assert len(health.out_of_use()) == len(tree.chunks) > 3


@pytest.mark.parametrize("end", ["header", "footer"])
def test_behind_a_damaged_end_everything_is_still_read(health: Health, end: str) -> None:
    tree = build_tree(some_files())
    health.content.push(tree, "app")
    pack = health.place(ObjectKind.ROOT, tree.digest).pack
    size = health.content.store.size(pack)
    flip_bit(health.content.store, pack, 3 if end == "header" else size - 60)
    chunk = next(iter(tree.chunks))
    health.damage(ObjectKind.CHUNK, chunk)
    health.scrub()
    assert health.out_of_use() == [(ObjectKind.CHUNK, chunk)]
    assert any(finding.object == f"pack {pack}" for finding in health.scrubber.status(running=False).findings)


def test_a_pass_goes_on_after_a_restart(health: Health) -> None:
    content = health.content
    for seed in range(6):
        content.push(build_tree(some_files(5, seed=seed)))
    health.scrubber.begin(fresh=True)
    step = health.scrubber.step(step_bytes=1)
    health.scrubber.record(step)
    health.scrubber.save()
    done = health.scrubber.status(running=False).verified_bytes
    after = Health(content)
    assert after.scrubber.active
    after.scrub(fresh=False, step_bytes=1)
    status = after.scrubber.status(running=False)
    assert (status.pass_number, status.verified_bytes) == (1, stored_bytes(content))
    assert 0 < done < status.verified_bytes


def test_how_old_the_oldest_verified_byte_is(health: Health) -> None:
    content = health.content
    for seed in range(20):
        content.push(build_tree({b"a": b"%d" % seed}))
    first_began = content.clock.now_ms()
    health.scrub()
    content.clock.advance(1000)
    assert health.scrubber.due(1000)
    assert not health.scrubber.due(1001)
    health.scrubber.begin(fresh=True)
    health.scrubber.record(health.scrubber.step(step_bytes=1))
    half = health.scrubber.status(running=False)
    assert half.oldest_verified_at == half.last_full_pass_at
    health.scrub(fresh=False)
    whole = health.scrubber.status(running=False)
    assert whole.oldest_verified_at == whole.last_full_pass_at != half.oldest_verified_at
    assert first_began == content.clock.now_ms() - 1000


def test_a_commit_does_not_believe_what_was_taken_out_under_it(health: Health) -> None:
    """A push was told that a chunk is there; before it commits the chunk turns out to be damaged."""
    content = health.content
    tree = build_tree(some_files())
    content.push(tree)
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"".join(tree.chunks))
    proof = content.pushes.prove(push, tree.request())
    health.damage(ObjectKind.CHUNK, next(iter(tree.chunks)))
    health.scrub()
    with pytest.raises(LeaseLost):
        content.pushes.remember(proof)  # type: ignore[arg-type]


def test_a_read_that_fails_is_looked_into(health: Health) -> None:
    tree = build_tree(some_files())
    health.content.push(tree)
    chunk = next(iter(tree.chunks))
    health.damage(ObjectKind.CHUNK, chunk)
    with pytest.raises(DamagedObject):
        health.content.packs.read_object(ObjectKind.CHUNK, chunk)
    assert health.quarantine.take_suspects(10) == [(ObjectKind.CHUNK, chunk)]
    damages, verdict = health.quarantine.judge(None, chunk)
    assert (verdict, len(damages)) == ("quarantined", 1)
    health.quarantine.take_out(damages)
    assert health.quarantine.judge(ObjectKind.CHUNK, chunk) == ([], "quarantined")
    assert health.quarantine.judge(ObjectKind.CHUNK, blake3_256(b"unknown")) == ([], "missing")
    assert health.quarantine.judge(None, tree.digest) == ([], "sound")


def test_a_damaged_frame_that_nobody_names_is_a_notice(health: Health) -> None:
    content = health.content
    tree = build_tree({b"a": b"some text"})
    content.push(tree)
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    ((pack, data),) = encode_packs(tree.objects())
    content.send(push, [(pack, data)])
    bad = bytearray(data)
    bad[24 + FRAME_HEADER_BYTES] ^= 1
    rewrite_pack(content.store, pack, bytes(bad))
    health.scrub()
    assert health.out_of_use() == []
    assert [(f.severity, f.code) for f in health.scrubber.status(running=False).findings] == [("notice", "dead-frame")]
