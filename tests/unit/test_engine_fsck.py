"""fsck is the judge of the other tests: it must name all damage, and must not accuse a healthy store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.engine.findings import FINDINGS_MAX, Findings
from casstore.formats.pack import PACK_HEADER_BYTES, ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot
from casstore.ids import ComponentName, PackId
from casstore.storage.memory import MemoryChunkIndex
from casstore.storage.roles import FrameRow, PackRecord, Table
from casstore.wire import FsckReport
from tests.support.treebuild import (
    Content,
    build_blob,
    build_tree,
    check,
    encode_packs,
    flip_bit,
    new_push,
    open_local,
    rewrite_pack,
)


@pytest.fixture(params=["memory", "local"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield fill(Content())
        return
    opened, close = open_local(tmp_path / "store")
    yield fill(opened)
    close()


TREE = build_tree({b"d/f%d" % n: b"%d" % n * n for n in range(80)} | {b"large": random.Random(1).randbytes(300_000)})
BLOB = build_blob(b"config")


def fill(content: Content) -> Content:
    content.push(TREE, "api")
    content.push(BLOB, "conf")
    component = Component(ComponentName("api"), "tree", TREE.digest)
    [digest] = content.snapshots.put([encode_snapshot(Snapshot(components=(component,)))])
    with content.ledger.write() as transaction:
        transaction.put(Table.SNAPSHOTS, digest, b"{}")
    return content


def errors(report: FsckReport) -> list[tuple[str, str, str]]:
    return [(f.code, f.object, f.where) for f in report.findings if f.severity == "error"]


@pytest.mark.parametrize("full", [False, True])
def test_a_healthy_store_is_clean(content: Content, full: bool) -> None:
    """False alarms would teach people to ignore the judge."""
    report = check(content, full=full)
    assert (report.ok, report.findings) == (True, [])
    assert report.checked["artifacts"] == 2
    assert report.checked["snapshots"] == 1
    assert report.checked["trees"] == 1
    assert report.checked.get("files") == (81 + 1 if full else None)


def test_an_empty_store_is_clean() -> None:
    """Right after it was made."""
    assert check(Content(), full=True).ok


def test_several_threads_find_the_same(content: Content) -> None:
    """The proof runs on a pool."""
    with ThreadPoolExecutor(2) as pool:
        assert check(content, full=True, pool=pool, width=3).ok


def test_every_flipped_bit_of_a_pack_is_found() -> None:
    """Whatever byte a disk loses: header, frame header, content, footer or trailer."""
    content = Content()
    tree = build_tree({b"a": b"some text " * 9, b"b": b"other"})
    content.push(tree)
    packs = content.store.list(limit=10)
    assert len(packs) == 2  # what was pushed, and the proven layout
    for pack in packs:
        data = content.store.read(pack, 0, content.store.size(pack))
        for offset in range(len(data)):
            flip_bit(content.store, pack, offset, offset % 8)
            report = check(content, full=True)
            assert report.findings, f"byte {offset} of {len(data)}"
            # The layout as the push brought it is one that nothing names any more.
            assert not report.ok or {finding.code for finding in report.findings} == {"dead-frame"}
            assert any(str(pack) in f.where for f in report.findings)
            rewrite_pack(content.store, pack, data)
    assert check(content, full=True).ok


def test_a_damaged_chunk_is_named_with_its_place(content: Content) -> None:
    """Which object, where, what was expected, what was found."""
    [pack] = [p for p in content.store.list(limit=10) if content.store.size(p) > 100_000]
    row = content.packs.read_footer(pack).rows[0]
    assert row.offset == PACK_HEADER_BYTES
    flip_bit(content.store, pack, row.offset + row.stored_length - 1)
    assert check(content).ok, "without --full the content of chunks is not read"
    report = check(content, full=True)
    found = (report.findings[0].code, report.findings[0].object, report.findings[0].where)
    assert found == ("damaged-object", f"chunk blake3:{row.id.hex()}", f"pack {pack} offset {row.offset}")
    assert report.findings[0].expected == f"blake3:{row.id.hex()}"
    assert report.findings[0].found


@pytest.mark.parametrize("kind", [ObjectKind.PAGE, ObjectKind.LAYOUT, ObjectKind.ROOT, ObjectKind.DOCUMENT])
def test_damaged_metadata_shows_without_full(content: Content, kind: ObjectKind) -> None:
    """The quick check reads all that is not content, and past every cache."""
    [(id, location), *_] = content.index.objects(kind, limit=1)
    content.packs.read_object(kind, id)
    flip_bit(content.store, location.pack, location.offset + location.stored_length - 1)
    assert (
        "damaged-object",
        f"{kind.name.lower()} blake3:{id.hex()}",
        f"pack {location.pack} offset {location.offset}",
    ) in (errors(check(content)))


def test_damage_does_not_hide_other_damage(content: Content) -> None:
    """One footer is gone and a frame of another pack is damaged: both are named."""
    big, other = sorted(content.store.list(limit=10), key=content.store.size)[::-1][:2]
    flip_bit(content.store, big, content.store.size(big) - 1)
    row = content.packs.read_footer(other).rows[0]
    flip_bit(content.store, other, row.offset + 60)
    found = errors(check(content, full=True))
    assert any(object == f"pack {big}" for _, object, _ in found)
    assert any(where == f"pack {other} offset {row.offset}" for _, _, where in found)


def test_behind_a_damaged_footer_frames_are_still_read(content: Content) -> None:
    """A second damage in the same pack must show too."""
    pack = max(content.store.list(limit=10), key=content.store.size)
    row = content.packs.read_footer(pack).rows[0]
    flip_bit(content.store, pack, content.store.size(pack) - 1)
    flip_bit(content.store, pack, row.offset + row.stored_length - 1)
    assert f"chunk blake3:{row.id.hex()}" in [object for _, object, _ in errors(check(content, full=True))]


def test_a_lost_pack_is_named_once_as_such(content: Content) -> None:
    """The file is gone; the index still promises it."""
    pack = max(content.store.list(limit=10), key=content.store.size)
    content.store.delete(pack)
    assert ("missing-pack", f"pack {pack}", f"pack {pack}") in errors(check(content))


def test_a_truncated_pack_is_named(content: Content) -> None:
    """A copy that was cut short."""
    pack = max(content.store.list(limit=10), key=content.store.size)
    data = content.store.read(pack, 0, content.store.size(pack))
    rewrite_pack(content.store, pack, data[:-5])
    assert ("pack-size", f"pack {pack}", f"pack {pack}") in errors(check(content))


def test_a_leftover_pack_is_a_notice(content: Content) -> None:
    """CRASH between a pack's name and the index: nothing is wrong."""
    push = new_push()
    [(pack, data)] = encode_packs(build_tree({b"x": b"y"}).objects())
    ingest = content.pushes.begin_pack(push, pack)
    ingest.feed(data)
    ingest.seal()
    report = check(content, full=True)
    assert report.ok
    assert [(f.severity, f.code, f.object) for f in report.findings] == [("notice", "orphan-pack", f"pack {pack}")]


def test_an_unfinished_push_is_a_notice(content: Content) -> None:
    """A push is under way, or was given up: nothing is wrong."""
    tree = build_tree({b"x": b"y"})
    content.send(new_push(), encode_packs([item for item in tree.objects() if item[0] is not ObjectKind.PAGE]))
    report = check(content, full=True)
    assert report.ok
    assert {f.code for f in report.findings} == {"unfinished-push"}


class Forgetful(MemoryChunkIndex):
    """An index that loses a row."""

    lost: tuple[ObjectKind, bytes] | None = None

    def add_pack(self, pack: PackRecord, frames: object) -> None:
        rows: list[FrameRow] = list(frames)  # type: ignore[call-overload]
        super().add_pack(pack, [row for row in rows if (row.kind, row.id) != self.lost])


@pytest.mark.parametrize(
    ("lost", "code"),
    [
        ((ObjectKind.CHUNK, next(iter(TREE.chunks))), "missing-chunk"),
        ((ObjectKind.PAGE, bytes(TREE.pages[0].ref.digest)), "missing-page"),
        ((ObjectKind.ROOT, bytes(TREE.digest)), "missing-tree"),
        ((ObjectKind.LAYOUT, bytes(BLOB.digest)), "missing-blob"),
    ],
)
def test_a_row_that_the_index_lost_is_found(lost: tuple[ObjectKind, bytes], code: str) -> None:
    """Structure is followed from artifacts down, so a hole shows wherever it is."""
    whole = fill(Content())
    index = Forgetful()
    index.lost = lost
    for record in whole.index.packs(limit=100):
        rows = [FrameRow(*row[:5]) for row in whole.packs.read_footer(record.pack).rows]
        proven = [row for row in rows if row.kind is not ObjectKind.LAYOUT or len({r.kind for r in rows}) == 1]
        index.add_pack(record, proven)
    index.memo_add(list(whole.index._memo))  # type: ignore[attr-defined]
    broken = Content(whole.store, index, whole.ledger)
    codes = {found for found, _, _ in errors(check(broken))}
    assert code in codes
    if lost[0] is not ObjectKind.LAYOUT:
        assert "index-row" in codes


def test_a_published_snapshot_without_its_document_is_an_error(content: Content) -> None:
    """The log promises it."""
    with content.ledger.write() as transaction:
        transaction.put(Table.SNAPSHOTS, bytes(32), b"{}")
    assert ("missing-document", "snapshot blake3:" + "00" * 32, "the ledger's snapshots") in errors(check(content))


def test_a_damaged_artifact_row_is_an_error(content: Content) -> None:
    """The ledger's unlogged tables have no hashes: at least their form is checked."""
    with content.ledger.write() as transaction:
        transaction.put(Table.ARTIFACTS, (1).to_bytes(8, "big"), b"{")
    assert [object for _, object, _ in errors(check(content))] == ["artifact 1"]


def test_a_layout_without_proof_is_an_error(content: Content) -> None:
    """Only proven layouts belong in the index."""
    other = build_blob(b"never proven")
    content.packs.put_objects([(kind, id, plain) for kind, id, plain in other.objects()])
    assert ("unproven-layout", f"layout {other.digest}") in [(c, o) for c, o, _ in errors(check(content))]


def test_a_proven_page_that_no_longer_reassembles_is_found_by_full(content: Content) -> None:
    """The memo says proven, the layout says otherwise: full puts every file together."""
    good = build_blob(b"good!")
    bad = build_blob(b"other")
    content.packs.put_objects(
        [(ObjectKind.LAYOUT, good.digest, bad.layout), *[item for item in bad.objects() if item[0] is ObjectKind.CHUNK]]
    )
    found = [f for f in check(content, full=True).findings if f.code == "digest-mismatch"]
    assert [f.object for f in found] == [f"blob {good.digest}"]


def test_findings_are_bounded() -> None:
    """A store that is all damage still gets a report of a size that can be sent."""
    findings = Findings()
    for number in range(FINDINGS_MAX + 5):
        findings.error("x", str(number), where="", expected="", found="")
    report = findings.report()
    assert (len(report.findings), report.truncated, report.ok) == (FINDINGS_MAX, True, False)


def test_a_pack_under_another_name_is_found(content: Content) -> None:
    """Somebody copied a pack onto another."""
    pack = max(content.store.list(limit=10), key=content.store.size)
    [(_, other)] = encode_packs(BLOB.objects(), pack=PackId(bytes(16)))
    rewrite_pack(content.store, pack, other)
    assert any(object == f"pack {pack}" for _, object, _ in errors(check(content)))
