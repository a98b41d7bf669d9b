"""A store's life with collections in it, and what must be true of the store after any death.

:func:`make_story` makes a store in which a collection has everything to do: condemn, revive, drop, rewrite, merge, retire, delete,
adopt.  :func:`collect_until_dead` is one process that collects, over a disk with a fault in it; :func:`check_after` opens what is
left, and holds it against what was acknowledged.  The enumeration itself is the test's.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from casstore.clock import ManualClock
from casstore.engine.gc.retention import Retention
from casstore.engine.gc.run import GcTimes
from casstore.errors import CasstoreError
from casstore.formats.pack import ObjectKind
from casstore.storage.local.files import Files
from casstore.store import Store
from tests.support.gcworld import HOUR_MS, NOTICES, GcWorld
from tests.support.treebuild import BuiltTree, encode_packs, new_push

RETENTION: Final = Retention(history_days=0, snapshot_days=0, artifact_days=0, keep_artifacts=0)
RUNS: Final = 3
"""Collections of one life: condemned, dropped and rewritten, deleted."""


class Story(NamedTuple):
    """A store as it is before the fault, and what it must never lose."""

    directory: Path
    now_ms: int
    kept: list[BuiltTree]
    loose: list[BuiltTree]
    pointers: dict[str, str]


def make_story(directory: Path) -> Story:
    """Make the store in ``directory``."""
    with GcWorld(directory) as world:
        kept = [world.tree("kept", 60_000), world.push("live", size=3000)]
        loose = [world.tree("loose", 600_000)]
        push = new_push()
        world.store.pushes.missing(push, ObjectKind.CHUNK, b"")
        # One pack with a tree that stays and one that goes: it will be rewritten.
        world.send(push, [*kept[0].objects(), *loose[0].objects()])
        world.store.pushes.commit(push, kept[0].request("kept"), by="x")
        world.push_built(loose[0], "loose")
        loose.append(world.push("gone", size=5000))
        # Many small packs: they will be merged.
        small = [world.push(f"small{number}", size=500) for number in range(18)]
        kept += small
        pointers = {}
        for number, tree in enumerate(kept):
            snapshot = world.snapshot(tree)
            world.flip(f"prod/p{number}", snapshot)
            pointers[f"prod/p{number}"] = str(snapshot)
        # What a crash of long ago left behind.
        [(orphan, data)] = encode_packs(world.tree("orphan", 2000).objects())
        writer = world.store.packs.store.create(orphan)
        writer.write(data)
        writer.commit()
        world.clock.advance(2 * HOUR_MS)
        # Something that was condemned and is needed again: it will be revived.
        world.collect(RETENTION, GcTimes(rewrite_max_bytes=0))
        again = world.push("again", size=3000)
        kept.append(again)
        return Story(directory, world.clock.now_ms() + 26 * HOUR_MS, kept, loose, pointers)


def collect_until_dead(story: Story, directory: Path, files: Files) -> list[CasstoreError]:
    """One process that collects ``RUNS`` times, hours apart; what fails is asked again, as the schedule does."""
    errors: list[CasstoreError] = []
    clock = ManualClock(story.now_ms)
    try:
        store = Store.open(directory, clock=clock, files=files, randomness=random.Random(5).randbytes)
    except CasstoreError as error:
        return [error]
    try:
        for _ in range(RUNS):
            try:
                store.collect(RETENTION)
            except CasstoreError as error:
                errors.append(error)
            clock.advance(2 * HOUR_MS)
    finally:
        store.close()
    return errors


def check_after(story: Story, directory: Path) -> None:
    """What is left opens, is whole, has everything that was acknowledged, and collects on to its end."""
    clock = ManualClock(story.now_ms + RUNS * 3 * HOUR_MS)
    with Store.open(directory, clock=clock) as store:
        for _ in range(2):
            for tree in story.kept[:-1]:
                _check_tree(store, tree)
            report = store.fsck(full=True)
            wrong = [f for f in report.findings if f.severity == "error" or f.code not in NOTICES]
            assert wrong == [], wrong
            # The next runs finish what the dead one began.
            for _ in range(3):
                store.collect(RETENTION)
                clock.advance(26 * HOUR_MS)
        for tree in story.loose:
            assert not store.packs.available(ObjectKind.ROOT, [tree.digest])[0]
        left = store.packs.index.usage()
        assert all(use.rows for use in left.values()), "a pack without a row stayed"


def _check_tree(store: Store, tree: BuiltTree) -> None:
    for kind, id, plain in tree.objects():
        assert store.packs.read_objects(kind, [id]) == [plain]


def copy_story(story: Story, directory: Path) -> Path:
    """A copy of the store, to be damaged."""
    if directory.exists():
        shutil.rmtree(directory)
    shutil.copytree(story.directory, directory)
    for name in ("index", "ledger"):
        lock = directory / name / "lock.mdb"
        if os.path.exists(lock):
            os.unlink(lock)
    return directory
