"""Fail every disk operation of a collection: mark, condemn, drop, rewrite, retire, delete, and pins beside it.

The promise under test: a collection that fails, is killed or loses its power anywhere has taken nothing that somebody needs,
leaves nothing that misleads, and the next one comes to the same end.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from casstore.engine.gc.retention import Retention
from casstore.errors import OutcomeUnknown
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId, PushId
from casstore.store import Store
from tests.crash.enumeration import Enumeration
from tests.crash.lifetime import Sending, send_pack, sending_of
from tests.crash.scenarios import Scenario, Step, StepLife, StepWorld, check_artifacts
from tests.support.treebuild import encode_packs

SAMPLE: Final = 60
LIMIT: Final = 1000
ONE, TWO, THREE = (cache(sending_of)(name) for name in ("one", "two", "three"))
BOTH: Final = PackId(b"\x0b" * PackId.SIZE)
RETENTION: Final = Retention(artifact_days=9, keep_artifacts=0, snapshot_days=1)


def commit(store: Store, sending: Sending, name: str) -> None:
    store.pushes.commit(sending.push, sending.tree.request(name), by="builder")


def fill(store: Store) -> None:
    """One pack with the content of two trees, so that it is sparse when one of them has gone; and one tree alone."""
    objects = list(dict.fromkeys([*ONE.tree.objects(), *TWO.tree.objects()]))
    [(pack, data)] = encode_packs(objects, pack=BOTH)
    send_pack(store, ONE._replace(pack=pack, data=data))
    commit(store, ONE, "one")
    # The pack is there; sent again, its layouts are known to the second push too.
    send_pack(store, TWO._replace(pack=pack, data=data))
    commit(store, TWO, "two")
    send_pack(store, THREE)
    commit(store, THREE, "three")


def pin_one(store: Store) -> None:
    if not store.pins.list().pins:
        store.pins.pin("tree", ONE.tree.digest, owner="x", reason="kept", until_ms=None, by="operator")


def push_two(store: Store) -> None:
    """What is condemned is missing, is sent again, and lives."""
    push = PushId(TWO.push[::-1])
    send_pack(store, TWO, push)
    store.pushes.commit(push, TWO.tree.request("two"), by="builder")


def collect_once(store: Store) -> None:
    """A store whose log is sealed is left alone, and the report says so: for the step this is a refusal."""
    store.collect(RETENTION)
    if store.read_only is not None:
        raise OutcomeUnknown(store.read_only)


def collect(name: str, hours: float) -> Step:
    return Step(name, collect_once, is_atomic=False, hours=hours)


def observe(store: Store) -> Hashable:
    """What is live and what is condemned, what is listed, and how many packs there are; not where things lie."""
    index = store.packs.index
    return (
        frozenset((kind, id) for kind in ObjectKind for id, _ in index.objects(kind, limit=LIMIT)),
        frozenset((row.kind, row.id) for row in index.condemned(limit=LIMIT)),
        frozenset(artifact.name for artifact in store.artifacts.list().artifacts),
        len(store.pins.list().pins),
        bool(index.retired(limit=LIMIT)),
    )


def promise(store: Store) -> None:
    check_artifacts(store)
    if store.pins.list().pins:
        assert store.presence.pages([page.ref.digest for page in ONE.tree.pages]) == [True] * len(ONE.tree.pages)


STEPS: Final = [
    Step("pin one", pin_one),
    collect("condemn three and two", 230),
    Step("push two again", push_two, is_atomic=False),
    collect("drop three", 30),
    collect("delete packs", 3),
    collect("see what was cut off", 1),
    collect("take it in", 30),
    collect("retire it", 30),
    collect("and delete it", 30),
]
GC: Final = Scenario("collection with rewriting", fill, STEPS, observe, promise)


@pytest.fixture(scope="module")
def bench(scratch: Path) -> Enumeration[StepLife]:
    return Enumeration(scratch / "bench", StepWorld(GC))


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_any_operation_may_fail(bench: Enumeration[StepLife], sample: int | None) -> None:
    assert {"commit", "fsync_dir", "unlink", "link_new", "write", "fsync"} <= set(bench.calls)
    bench.run_all(bench.faults() if sample is None else bench.sample(sample))
