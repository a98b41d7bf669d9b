"""Leases, retries and restarts of pushes, and the crew of threads that proves them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.engine.proving import run_units
from casstore.engine.sessions import PENDING_LAYOUTS_EACH_MAX
from casstore.errors import DigestMismatch, LeaseLost, MalformedDocument, Overloaded, SnapshotIncomplete
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId, PushId
from casstore.limits import PACKS_PER_PUSH_IN_FLIGHT, PUSH_LEASE_MS, PUSH_SESSIONS_EACH_MAX, PUSH_SESSIONS_MAX
from casstore.storage.roles import Location
from casstore.wire import Artifact
from tests.support.treebuild import (
    Content,
    build_tree,
    commit_objects,
    encode_packs,
    missing,
    new_push,
    open_local,
    some_files,
)


@pytest.fixture(params=["memory", "local"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield Content()
        return
    opened, close = open_local(tmp_path / "store")
    yield opened
    close()


# --- leases, retries, restarts ---------------------------------------------------------------------------------------


def test_a_commit_without_a_session_is_refused(content: Content) -> None:
    """After a restart the server does not know what it told the push: begin again."""
    tree = build_tree(some_files(20))
    content.push(tree)
    with pytest.raises(LeaseLost):
        content.pushes.prove(new_push(), tree.request())


def test_a_lease_runs_out_and_is_renewed(content: Content) -> None:
    """An hour after the last request the claim is gone; every request renews it."""
    tree = build_tree(some_files(20))
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.clock.advance(PUSH_LEASE_MS - 1)
    content.send(push, encode_packs(tree.objects()))
    content.clock.advance(PUSH_LEASE_MS - 1)
    proof = content.pushes.prove(push, tree.request())
    assert not isinstance(proof, Artifact)
    content.clock.advance(PUSH_LEASE_MS)
    with pytest.raises(LeaseLost):
        content.pushes.prove(push, tree.request())


def test_setting_the_clock_does_not_end_a_lease(content: Content) -> None:
    """Somebody sets the wall clock while builds push."""
    tree = build_tree(some_files(20))
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.clock.jump(10 * PUSH_LEASE_MS)
    content.send(push, encode_packs(tree.objects()))
    assert content.pushes.commit(push, tree.request(), by="x").number == 1


def test_a_pack_on_its_way_keeps_the_lease(content: Content) -> None:
    """A slow upload may take longer than a lease."""
    tree = build_tree(some_files(20))
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    [(pack, data)] = encode_packs(tree.objects())
    ingest = content.pushes.begin_pack(push, pack)
    ingest.feed(data[:1000])
    content.clock.advance(2 * PUSH_LEASE_MS)
    ingest.feed(data[1000:])
    ingest.finish()
    assert content.pushes.commit(push, tree.request(), by="x").number == 1


def test_a_restart_in_the_middle_begins_again_without_sending_chunks_twice(content: Content) -> None:
    """The server dies between packs and commit: chunks are found, pages and layouts are sent again."""
    tree = build_tree(some_files())
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.send(push, encode_packs(tree.objects()))
    after = content.restart()
    with pytest.raises(LeaseLost):
        after.pushes.commit(push, tree.request(), by="x")
    # The client's packs of the first attempt are retried on a push that the server does not know: still not enough ...
    after.send(push, encode_packs([item for item in tree.objects() if item[0] is ObjectKind.ROOT]))
    with pytest.raises(LeaseLost):
        after.pushes.commit(push, tree.request(), by="x")
    # ... until it asks again.
    assert missing(after, ObjectKind.CHUNK, list(tree.chunks)) == [False] * len(tree.chunks)
    rest = [item for item in tree.objects() if item[0] is not ObjectKind.CHUNK]
    assert commit_objects(after, rest, tree.request()).number == 1


def test_a_repeated_pack_teaches_a_new_push_its_layouts(content: Content) -> None:
    """After a restart the client sends the same packs again: they are duplicates, and the commit still goes through."""
    tree = build_tree(some_files(20))
    packs = list(encode_packs(tree.objects()))
    content.send(new_push(), packs)
    after = content.restart()
    push = new_push()
    after.pushes.missing(push, ObjectKind.CHUNK, b"")
    assert all(stored.duplicate for stored in after.send(push, packs))
    assert after.pushes.commit(push, tree.request(), by="x").number == 1


@pytest.mark.parametrize("restart", [False, True])
def test_a_retried_commit_is_the_same_artifact(content: Content, restart: bool) -> None:
    """The answer was lost on the way: the retry must not make a second artifact, over a restart neither."""
    tree = build_tree(some_files(20))
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.send(push, encode_packs(tree.objects()))
    first = content.pushes.commit(push, tree.request("api", {"b": "2", "a": "1"}), by="x")
    again = content.restart() if restart else content
    assert again.pushes.commit(push, tree.request("api", {"a": "1", "b": "2"}), by="x") == first
    assert len(again.artifacts.list().artifacts) == 1


@pytest.mark.parametrize("stop_after", ["prove", "remember"])
def test_a_crash_inside_a_commit_loses_only_what_was_not_acknowledged(content: Content, stop_after: str) -> None:
    """Between the phases of a commit the process dies: the next push of the same tree succeeds."""
    tree = build_tree(some_files(40))
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.send(push, encode_packs(tree.objects()))
    proof = content.pushes.prove(push, tree.request())
    assert not isinstance(proof, Artifact)
    if stop_after == "remember":
        content.pushes.remember(proof)
    after = content.restart()
    assert after.artifacts.list().artifacts == []
    page: list[bytes] = [tree.pages[0].ref.digest]
    assert missing(after, ObjectKind.PAGE, page) == [stop_after == "prove"]
    assert after.push(tree).number == 1


def test_a_memo_without_its_layout_is_harmless(content: Content) -> None:
    """CRASH between memo and layouts: the page is still missing, and is recorded by the next push."""
    tree = build_tree(some_files(40))
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.send(push, encode_packs(tree.objects()))
    proof = content.pushes.prove(push, tree.request())
    assert not isinstance(proof, Artifact)
    content.index.memo_add(proof.keys)
    page: list[bytes] = [tree.pages[0].ref.digest]
    assert missing(content, ObjectKind.PAGE, page) == [True]
    content.push(tree)
    assert missing(content, ObjectKind.PAGE, page) == [False]


def test_sessions_are_bounded() -> None:
    """Somebody who invents push ids gets 503, and the others go on once leases run out."""
    content = Content()
    for number in range(PUSH_SESSIONS_MAX):
        by = f"agent-{number // PUSH_SESSIONS_EACH_MAX}"
        content.pushes.sessions.begin(PushId(number.to_bytes(16, "big")), asked=True, by=by)
    with pytest.raises(Overloaded):
        content.pushes.missing(new_push(), ObjectKind.CHUNK, b"")
    content.clock.advance(PUSH_LEASE_MS)
    content.pushes.missing(new_push(), ObjectKind.CHUNK, b"")
    assert len(content.pushes.sessions) == 1


def test_a_push_that_has_committed_gives_its_lease_back(content: Content) -> None:
    """Else a principal who pushes every few seconds is turned away for the rest of the hour."""
    tree = build_tree(some_files(20))
    content.push(tree)
    for _ in range(3):
        content.push(tree)
    assert len(content.pushes.sessions) == 0


def test_nobody_takes_all_sessions() -> None:
    """One build agent's token must not keep all others from pushing for an hour."""
    content = Content()
    for number in range(PUSH_SESSIONS_EACH_MAX):
        content.pushes.missing(PushId(number.to_bytes(16, "big")), ObjectKind.CHUNK, b"", by="mallory")
    with pytest.raises(Overloaded):
        content.pushes.missing(new_push(), ObjectKind.CHUNK, b"", by="mallory")
    content.pushes.missing(new_push(), ObjectKind.CHUNK, b"", by="alice")
    content.clock.advance(PUSH_LEASE_MS)
    content.pushes.missing(new_push(), ObjectKind.CHUNK, b"", by="mallory")
    assert len(content.pushes.sessions) == 1


def test_layouts_that_are_refused_are_not_kept() -> None:
    """The bound holds however often it is run against, and nobody reaches it for all."""
    sessions = Content().pushes.sessions
    mallory, alice = new_push(), new_push()
    sessions.begin(mallory, asked=True, by="mallory")
    sessions.begin(alice, asked=True, by="alice")

    def layouts(first: int, count: int) -> list[tuple[bytes, Location]]:
        return [
            (number.to_bytes(32, "big"), Location(PackId(bytes(16)), 0, 0, 0)) for number in range(first, first + count)
        ]

    sessions.learn_layouts(mallory, layouts(0, PENDING_LAYOUTS_EACH_MAX))
    sessions.learn_layouts(mallory, layouts(0, 10))  # the same again count once
    for _ in range(3):
        with pytest.raises(Overloaded):
            sessions.learn_layouts(mallory, layouts(PENDING_LAYOUTS_EACH_MAX, 10))
    assert len(sessions.layouts(mallory)) == PENDING_LAYOUTS_EACH_MAX
    sessions.learn_layouts(alice, layouts(0, 10))
    sessions.forget_layouts(mallory, [digest for digest, _ in layouts(0, 10)])
    sessions.learn_layouts(mallory, layouts(PENDING_LAYOUTS_EACH_MAX, 10))


def test_what_a_push_brought_is_remembered_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collection spares it; where there is too much to remember, collection is told so and not the push."""
    monkeypatch.setattr("casstore.engine.sessions.BROUGHT_PACKS_MAX", 3)
    content = Content()
    sessions = content.pushes.sessions
    push, other = new_push(), new_push()
    packs = [PackId(bytes([number]) * 16) for number in range(5)]
    for pack in packs[:3]:
        sessions.begin_pack(push, pack)
        sessions.end_pack(push, pack)
    assert sessions.brought() == frozenset(packs[:3])
    assert sessions.brings(packs[0])
    assert not sessions.brings(packs[4])
    sessions.begin_pack(other, packs[3])
    sessions.end_pack(other, packs[3])
    assert sessions.brought() is None
    assert sessions.brings(packs[4])
    content.clock.advance(PUSH_LEASE_MS)
    assert sessions.brought() == frozenset()
    sessions.begin_pack(push, packs[4])
    assert sessions.brought() == frozenset({packs[4]})


def test_packs_in_flight_are_bounded() -> None:
    """One push cannot take all of the server's hands."""
    content = Content()
    push = new_push()
    ingests = [content.pushes.begin_pack(push, PackId(os.urandom(16))) for _ in range(PACKS_PER_PUSH_IN_FLIGHT)]
    with pytest.raises(Overloaded):
        content.pushes.begin_pack(push, PackId(os.urandom(16)))
    for ingest in ingests:
        ingest.abort()
    content.pushes.begin_pack(push, PackId(os.urandom(16))).abort()


def test_two_pushes_of_the_same_tree_both_succeed(content: Content) -> None:
    """Two builders, one result, at the same time: two artifacts of one tree."""
    tree = build_tree(some_files(40))
    proofs = []
    for _ in range(2):
        push = new_push()
        content.pushes.missing(push, ObjectKind.CHUNK, b"")
        content.send(push, encode_packs(tree.objects()))
        proofs.append(content.pushes.prove(push, tree.request()))
    numbers = []
    for proof in proofs:
        assert not isinstance(proof, Artifact)
        numbers.append(content.pushes.record(content.pushes.remember(proof), by="x").number)
    assert numbers == [1, 2]


# --- the crew that proves --------------------------------------------------------------------------------------------


def test_a_crew_does_every_unit_once_and_on_several_threads() -> None:
    """Two threads meet at a barrier, so both worked; every unit was done exactly once."""
    barrier = threading.Barrier(2, timeout=30)
    done: list[int] = []
    lock = threading.Lock()

    def work(unit: int) -> None:
        if unit < 2:
            barrier.wait()
        with lock:
            done.append(unit)

    with ThreadPoolExecutor(1) as pool:
        run_units(iter(range(50)), work, pool=pool, width=2)
    assert sorted(done) == list(range(50))


def test_a_crew_on_its_own_full_pool_does_not_deadlock() -> None:
    """A commit that runs on the very pool that helps it."""
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_units, iter(range(5)), done.append, pool=pool, width=4).result(timeout=30)
    assert sorted(done) == list(range(5))


@pytest.mark.parametrize("width", [1, 2])
def test_a_crew_reports_the_error_of_any_thread(width: int) -> None:
    """A wrong file fails the commit whichever thread meets it."""

    def work(unit: int) -> None:
        if unit == 7:
            raise DigestMismatch("wrong")

    with ThreadPoolExecutor(1) as pool, pytest.raises(DigestMismatch):
        run_units(iter(range(100)), work, pool=pool, width=width)


def test_an_unchanged_tree_is_not_taken_apart_again(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that pushes every minute what did not change must not cost a walk through all its pages."""
    tree = build_tree(some_files(40))
    content.push(tree, "a")
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("nothing is read")

    with monkeypatch.context() as patch:
        patch.setattr(type(content.packs), "read_objects", read)
        proof = content.pushes.prove(push, tree.request("a"))
    assert not isinstance(proof, Artifact)
    again = content.pushes.record(content.pushes.remember(proof), by="x")
    first = content.artifacts.get(1)
    assert (again.size_bytes, again.files, again.digest) == (first.size_bytes, first.files, first.digest)


@pytest.mark.parametrize("when", ["before the proof", "after the proof"])
def test_what_was_condemned_since_is_revived_all_the_same(content: Content, when: str) -> None:
    """A tree that was whole yesterday may be half collected today: its commit must not believe yesterday."""
    tree = build_tree(some_files(40))
    content.push(tree)
    chunks: list[bytes] = list(tree.chunks)
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    if when == "before the proof":
        content.index.condemn(ObjectKind.CHUNK, chunks[:2], at_ms=1, mark=1)
    proof = content.pushes.prove(push, tree.request())
    assert not isinstance(proof, Artifact)
    if when == "after the proof":
        content.index.condemn(ObjectKind.CHUNK, chunks[:2], at_ms=1, mark=1)
    content.pushes.remember(proof)
    assert all(content.index.has(ObjectKind.CHUNK, chunks))
    assert content.index.condemned(limit=9) == []
    content.index.condemn(ObjectKind.CHUNK, chunks[:2], at_ms=1, mark=1)
    content.index.drop(content.index.condemned(limit=9))
    with pytest.raises(SnapshotIncomplete):
        content.pushes.prove(push, tree.request("again"))


def test_packs_that_fail_are_not_remembered(content: Content) -> None:
    """Whoever sends rubbish for an hour must not keep collections from removing anything."""
    push = new_push()
    pack = PackId(bytes(16))
    for _ in range(3):
        ingest = content.pushes.begin_pack(push, pack)
        with pytest.raises(MalformedDocument):
            ingest.feed(bytes(200))
        ingest.abort()
    assert content.pushes.sessions.brought() == frozenset()
    tree = build_tree(some_files(5))
    content.send(push, encode_packs(tree.objects(), pack=pack))
    assert content.pushes.sessions.brought() == {pack}
    again = content.pushes.begin_pack(push, pack)
    again.abort()
    assert content.pushes.sessions.brought() == {pack}
