"""Files hashed on the way in: a commit reads nothing twice, whatever a client says."""

from __future__ import annotations

import pytest

from casstore.engine.file_runs import (
    FACTS_MAX_BYTES,
    GROWING_MAX,
    STASH_EACH_MAX_BYTES,
    STASH_MAX_BYTES,
    PackRuns,
    PushRuns,
    RunsRoom,
)
from casstore.engine.ingest import PackReader
from casstore.engine.room import Rooms
from casstore.errors import MalformedDocument, TooLarge
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind, encode_pack
from casstore.hashing import blake3_256
from casstore.ids import PackId
from casstore.limits import MIB, PACK_PLAIN_MAX_BYTES, RUNS_SIZE_MAX_BYTES
from casstore.wire import Artifact, BundleRun, FileRun, Runs, encode_runs
from tests.support.treebuild import BuiltTree, Content, build_tree, encode_packs, new_push, some_files


def runs_of(tree: BuiltTree) -> Runs:
    """What an honest client says about all of a tree's chunks."""
    bundles: dict[bytes, list[int]] = {}
    files: list[FileRun] = []
    for data in tree.layouts.values():
        layout = decode_layout(data)
        chunks = layout.chunks
        for row in layout.files:
            if len(row) == 1 and row[0].length < chunks[row[0].chunk][1]:
                bundles.setdefault(chunks[row[0].chunk][0], []).append(row[0].length)
            elif len(row) > 1:
                files.append(FileRun(len(files), 0, True, [chunks[extent.chunk][0] for extent in row]))
    return Runs([BundleRun(chunk, lengths) for chunk, lengths in bundles.items()], files)


def push(content: Content, tree: BuiltTree, runs: bytes, piece: int = 10_000) -> int:
    """Push a tree with ``runs`` in front of its packs; returns how many bytes the commit read."""
    id = new_push()
    content.pushes.missing(id, ObjectKind.CHUNK, b"".join(tree.chunks))
    for pack, data in encode_packs(tree.objects()):
        ingest = content.pushes.begin_pack(id, pack, runs_size=len(runs))
        body = runs + data
        try:
            for at in range(0, len(body), piece):
                ingest.feed(body[at : at + piece])
            ingest.finish()
        finally:
            ingest.abort()
    proof = content.pushes.prove(id, tree.request("a"))
    assert not isinstance(proof, Artifact)
    content.pushes.record(content.pushes.remember(proof), by="x")
    return proof.read_bytes


@pytest.mark.parametrize("piece", [7, 10_000])
def test_a_commit_reads_nothing_that_was_hashed_on_the_way_in(piece: int) -> None:
    """This is what makes a durable push as fast as one that is not proven."""
    tree = build_tree(some_files(200))
    runs = runs_of(tree)
    assert runs.bundles
    assert runs.files
    assert push(Content(), tree, encode_runs(runs), piece) == 0


def test_without_runs_all_of_it_is_read() -> None:
    """Older clients, and whatever was not said, are proven as before."""
    tree = build_tree(some_files(200))
    assert push(Content(), tree, b"") > 0


def test_a_lie_proves_nothing() -> None:
    """A client that names other bytes gets its files read, and refused if they are wrong."""
    tree = build_tree(some_files(200))
    honest = runs_of(tree)
    lies = Runs(
        [run._replace(lengths=[1, *run.lengths[1:], run.lengths[0] - 1]) for run in honest.bundles],
        [run._replace(chunks=run.chunks[:-1]) for run in honest.files],
    )
    assert push(Content(), tree, encode_runs(lies)) > 0


def test_runs_that_do_not_fit_are_refused() -> None:
    """They cost time; whoever sends them is broken."""
    tree = build_tree(some_files(20))
    honest = runs_of(tree)
    longer = Runs([run._replace(lengths=[*run.lengths, 1]) for run in honest.bundles], [])
    with pytest.raises(MalformedDocument, match="file runs fill"):
        push(Content(), tree, encode_runs(longer))
    with pytest.raises(MalformedDocument, match="CASU"):
        push(Content(), tree, b"no runs at all")
    with pytest.raises(TooLarge):
        push(Content(), tree, bytes(RUNS_SIZE_MAX_BYTES + 1))


def test_a_refused_pack_leaves_nothing() -> None:
    """Neither a file nor a slot of the push."""
    content = Content()
    data = encode_pack(PackId(bytes(16)), [(ObjectKind.CHUNK, blake3_256(b"x"), b"x")])
    id = new_push()
    for _ in range(20):
        ingest = content.pushes.begin_pack(id, PackId(bytes(16)), runs_size=5)
        with pytest.raises(MalformedDocument):
            ingest.feed(b"nope!" + data)
    assert content.packs.store.list(limit=9) == []


def test_what_comes_too_early_is_bounded() -> None:
    """Three packs at once of a thousand pushes must not fill the memory."""
    room = RunsRoom()
    pushes = [PushRuns(room) for _ in range(4)]
    chunk = bytes(MIB)
    for number, runs in enumerate(pushes):
        for ordinal in range(1, 200):
            runs.take_file(0, ordinal, False, b"%031d" % ordinal + bytes([number]), chunk)
    assert room.take_stash(STASH_MAX_BYTES)
    room.give_back(stash=STASH_MAX_BYTES)
    one = PushRuns(room)
    for ordinal in range(1, STASH_EACH_MAX_BYTES // MIB + 1):
        one.take_file(0, ordinal, False, blake3_256(b"%d" % ordinal), chunk)
    assert not room.take_stash(STASH_MAX_BYTES)
    one.close()
    one.take_file(0, 1, False, bytes(32), chunk)
    assert room.take_stash(STASH_MAX_BYTES)


def test_facts_are_bounded_and_given_back() -> None:
    """A push that never commits must not keep others from being fast for ever, nor fill the memory."""
    room = RunsRoom()
    one = PushRuns(room)
    for number in range(300):
        one.take_bundle(b"%032d" % number, [1] * 4096, bytes(4096))
    assert not room.take_facts(FACTS_MAX_BYTES)
    one.close()
    one.close()
    assert room.take_facts(FACTS_MAX_BYTES)
    two = PushRuns(RunsRoom())
    for number in range(GROWING_MAX + 5):
        two.take_file(number, 0, False, bytes(32), b"x")
    assert len(two._growing) == GROWING_MAX


class Counting(PushRuns):
    """Counts what it is made to hash."""

    uses = 0
    hashed_bytes = 0

    def take_file(self, file: int, ordinal: int, last: bool, chunk: bytes, plain: bytes) -> None:
        self.uses += 1
        self.hashed_bytes += len(plain)
        super().take_file(file, ordinal, last, chunk, plain)


@pytest.mark.parametrize("size", [1, MIB])
def test_a_small_pack_cannot_ask_for_hours_of_hashing(size: int) -> None:
    """Ten thousand files of one chunk each, and that chunk a hundred times in the pack: a few hundred kilobytes in all."""
    plain = bytes(size)
    chunk = blake3_256(plain)
    pack = PackId(bytes(16))
    files = [FileRun(number, 0, True, [chunk]) for number in range(10_000)]
    assert len(encode_runs(Runs([], files))) > 0
    proven = Counting(RunsRoom())
    reader = PackReader(pack, Rooms())
    reader.runs = PackRuns(proven, Runs([], files))
    reader.feed(encode_pack(pack, [(ObjectKind.CHUNK, chunk, plain)] * 100))
    reader.finish()
    assert proven.uses <= 10_000
    assert proven.hashed_bytes <= PACK_PLAIN_MAX_BYTES


def test_a_chunk_behind_the_last_one_holds_nothing() -> None:
    """One thread has found the file while another one ends it: what comes behind its end is not stashed for ever."""
    room = RunsRoom()
    runs = PushRuns(room)
    runs.take_file(1, 0, False, bytes(32), b"a")
    growing = runs._growing[1]
    runs.take_file(1, 1, True, bytes(32), b"b")
    runs._growing[1] = growing  # what the other thread has in its hands
    runs.take_file(1, 5, False, bytes(32), bytes(MIB))
    del runs._growing[1]
    runs.close()
    assert room.take_stash(STASH_MAX_BYTES)
