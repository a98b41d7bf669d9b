"""Fail every disk operation of what takes objects out of use and puts them elsewhere.

The promise under test: condemn, revive, drop, quarantine, release, move, retire and delete are transactions each: after any
failure, crash or power cut an object is as it was before or as it was asked to be, what an artifact needs is there, and the
work goes on from where it stands.  If it breaks, a collection that was cut off has taken what someone relies on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from casstore.engine.pack_life import delete_retired
from casstore.errors import LeaseLost
from casstore.formats.pack import ObjectKind
from casstore.ids import PushId
from casstore.storage.roles import Move
from casstore.store import Store
from casstore.wire import Finding
from tests.crash.enumeration import Enumeration
from tests.crash.lifetime import Sending, send_pack, sending_of
from tests.crash.scenarios import Scenario, Step, StepLife, StepWorld, check_artifacts

SAMPLE: Final = 150
LIMIT: Final = 1000
ONE, TWO, THREE = (cache(sending_of)(name) for name in ("one", "two", "three"))
NAMES: Final = {ONE.pack: "pack one", TWO.pack: "pack two", THREE.pack: "pack three"}
DEAD: Final = b"\xdd" * 16


def objects_of(sending: Sending, *, but: Sending | None = None) -> list[tuple[ObjectKind, bytes]]:
    """Objects of a release that the index knows before its commit, without those of another release."""
    others = {(kind, bytes(id)) for kind, id, _ in but.tree.objects()} if but else set()
    found = [(kind, bytes(id)) for kind, id, _ in sending.tree.objects()]
    return [item for item in found if item[0] is not ObjectKind.LAYOUT and item not in others]


OWN_OF_TWO: Final = objects_of(TWO, but=ONE)
OWN_OF_THREE: Final = objects_of(THREE, but=ONE)
[*CHUNKS, (_, PAGE), (_, ROOT)] = OWN_OF_THREE
CHUNK: Final = CHUNKS[0][1]
BACK: Final = CHUNKS[-1][1]


def fill(store: Store) -> None:
    send_pack(store, ONE)
    store.pushes.commit(ONE.push, ONE.tree.request("one"), by="builder")
    # Sent and never committed: nobody needs it.
    send_pack(store, THREE)


def condemn(objects: list[tuple[ObjectKind, bytes]], mark: int) -> Iterator[Step]:
    for kind in ObjectKind:
        ids = [id for of, id in objects if of is kind]
        if ids:

            def do(store: Store, kind: ObjectKind = kind, ids: list[bytes] = ids) -> None:
                store.packs.index.condemn(kind, ids, at_ms=1000 * mark, mark=mark)

            yield Step(f"condemn {len(ids)} of kind {kind.name} in mark {mark}", do)


def quarantine(kind: ObjectKind, id: bytes, reason: str) -> Step:
    def do(store: Store) -> None:
        [location] = store.packs.index.locate(kind, [id])
        if location is not None:  # else it is in quarantine already
            store.packs.index.quarantine(kind, id, location, at_ms=5000, reason=reason)

    return Step(f"quarantine {reason}", do)


def move_one(store: Store) -> None:
    """Copy everything that lies in pack one into a new pack, and point there."""
    index = store.packs.index
    wanted = [
        (kind, id, location)
        for kind in ObjectKind
        for id, location in index.objects(kind, limit=LIMIT)
        if location.pack == ONE.pack
    ]
    if wanted:
        sealed = store.packs.seal_objects([(kind, id, store.packs.read_object(kind, id)) for kind, id, _ in wanted])
        places = sealed.frames
        index.move(
            sealed.record,
            [
                Move(kind, id, old, old._replace(pack=sealed.record.pack, offset=place.offset))
                for (kind, id, old), place in zip(wanted, places, strict=True)
            ],
        )


def delete(sending: Sending) -> list[Step]:
    return [
        Step(f"retire {NAMES[sending.pack]}", lambda store: store.packs.index.retire_pack(sending.pack, at_ms=7000)),
        Step(f"delete {NAMES[sending.pack]}", lambda store: delete_retired(store.packs, sending.pack)),
    ]


def commit_two(store: Store) -> None:
    """Commit what was condemned meanwhile: the commit revives it.  A push that died with its process begins again."""
    try:
        store.pushes.commit(TWO.push, TWO.tree.request("two"), by="builder")
    except LeaseLost:
        push_again(store, TWO, "two")


def push_again(store: Store, sending: Sending, name: str) -> None:
    push = PushId(sending.push[::-1])
    send_pack(store, sending, push)
    store.pushes.commit(push, sending.tree.request(name), by="builder")


def observe(store: Store) -> Hashable:
    index = store.packs.index
    return (
        frozenset(
            (kind, id, NAMES.get(location.pack, "made here"))
            for kind in ObjectKind
            for id, location in index.objects(kind, limit=LIMIT)
        ),
        frozenset((row.kind, row.id, row.at_ms, row.mark) for row in index.condemned(limit=LIMIT)),
        frozenset((row.kind, row.id, row.at_ms, row.reason) for row in index.quarantined(limit=LIMIT)),
        frozenset(NAMES.get(record.pack) for record, _ in index.retired(limit=LIMIT)),
        frozenset(NAMES[record.pack] for record in index.packs(limit=LIMIT) if record.pack in NAMES),
        frozenset(artifact.name for artifact in store.artifacts.list().artifacts),
        index.read_note("far"),
    )


def promise(store: Store) -> None:
    check_artifacts(store)
    assert "one" in {artifact.name for artifact in store.artifacts.list().artifacts}
    index = store.packs.index
    for row in index.condemned(limit=LIMIT):
        assert store.packs.read_object(row.kind, row.id), "what is condemned can be read"
        assert not index.has(row.kind, [row.id])[0], "and is missing for pushes"
    for row in index.quarantined(limit=LIMIT):
        assert index.locate(row.kind, [row.id]) == [None]
    for record, _ in index.retired(limit=LIMIT):
        assert index.pack(record.pack) is None


def excuse(finding: Finding) -> bool:
    """What was put into quarantine here is told.  A frame that nothing needs any more stays in its pack until that goes; that
    something was dropped is known to collections, and here it was dropped by hand.
    """
    return finding.code == "quarantined" or (finding.code == "index-row" and finding.found == "not in the index")


STEPS: Final = [
    *condemn(OWN_OF_THREE, 1),
    Step("restart grace", lambda store: store.packs.index.restart_grace(3000)),
    Step("revive a chunk", lambda store: store.packs.index.revive([(ObjectKind.CHUNK, [BACK])])),
    *condemn([(ObjectKind.CHUNK, BACK)], 2),
    quarantine(ObjectKind.PAGE, PAGE, "a page"),
    Step("release the page", lambda store: store.packs.index.release(ObjectKind.PAGE, PAGE)),
    quarantine(ObjectKind.ROOT, ROOT, "a root"),
    Step(
        "forget the root",
        lambda store: store.packs.index.forget_quarantined(store.packs.index.quarantined(limit=LIMIT)),
    ),
    *condemn([(ObjectKind.PAGE, PAGE)], 3),
    Step("drop", lambda store: store.packs.index.drop(store.packs.index.condemned(limit=LIMIT))),
    *delete(THREE),
    Step("note how far it came", lambda store: store.packs.index.write_note("far", b"here")),
    Step("send two", lambda store: send_pack(store, TWO), is_atomic=False),
    *condemn(OWN_OF_TWO, 4),
    Step("commit two", commit_two, is_atomic=False),
    Step("move what lies in pack one", move_one),
    *delete(ONE),
    Step("push three again", lambda store: push_again(store, THREE, "three"), is_atomic=False),
    Step("remove the note", lambda store: store.packs.index.write_note("far", None)),
]
INDEX: Final = Scenario("index transactions of collection and healing", fill, STEPS, observe, promise, excuse)


@pytest.fixture(scope="module")
def bench(scratch: Path) -> Enumeration[StepLife]:
    return Enumeration(scratch / "bench", StepWorld(INDEX))


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_any_operation_may_fail(bench: Enumeration[StepLife], sample: int | None) -> None:
    assert {"commit", "fsync_dir", "unlink", "link_new", "write", "fsync"} <= set(bench.calls)
    bench.run_all(bench.faults() if sample is None else bench.sample(sample))
