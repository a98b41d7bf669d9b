"""Fail every disk operation of a scrub that quarantines, of a rebuilt index's swap, and of a repair.

The promise under test: whatever fails, and whatever a power cut takes, the store opens without a repair step; nothing that was
whole is lost; and what was to be healed can still be healed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from casstore.admin import create_store, rebuild_index
from casstore.clock import ManualClock
from casstore.errors import CasstoreError, NotInitialised
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.store import Store
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, Picture, fingerprint, picture_of, restore
from tests.support.treebuild import BuiltTree, Content, build_tree, check, encode_packs, open_local

Objects = dict[tuple[ObjectKind, bytes], bytes]
Job = Callable[[str, Files], None]


class Start(NamedTuple):
    """A store with little in it, closed: as it is, and with one chunk and one page damaged."""

    tree: BuiltTree
    objects: Objects
    whole: Picture
    damaged: Picture
    lost: frozenset[tuple[ObjectKind, bytes]]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where the machine has such a place: the power cut is simulated."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path_factory.mktemp("scratch")
        return
    with tempfile.TemporaryDirectory(prefix="casstore-test-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def start(scratch: Path) -> Start:
    directory = scratch / "start"
    create_store(directory, clock=ManualClock())
    content, close = open_local(directory)
    tree = build_tree({b"a": b"some text " * 9, b"b": b"other"})
    content.push(tree, "app")
    objects = objects_of(content)
    chunk, page = next(iter(tree.chunks)), bytes(tree.pages[0].ref.digest)
    lost = frozenset({(ObjectKind.CHUNK, bytes(chunk)), (ObjectKind.PAGE, page)})
    places = [location for kind, id in lost for location in content.index.locate(kind, [id]) if location is not None]
    close()
    whole = picture_of(str(directory))
    for location in places:
        name = str(location.pack)
        path = directory / "packs" / name[:2] / f"{name}.pack"
        data = bytearray(path.read_bytes())
        data[location.offset + FRAME_HEADER_BYTES] ^= 1
        path.write_bytes(data)
    return Start(tree, objects, whole, picture_of(str(directory)), lost)


def objects_of(content: Content) -> Objects:
    found: Objects = {}
    for kind in ObjectKind:
        for id, _ in content.index.objects(kind, limit=1000):
            try:
                found[kind, id] = content.packs.read_object(kind, id)
            except CasstoreError:
                continue
    return found


def fail_everywhere(
    scratch: Path,
    picture: Picture,
    job: Job,
    judge: Callable[[str], None],
    *,
    opening: int,
    only: Set[str] = frozenset(),
) -> tuple[int, int]:
    """Run ``job`` with each of its operations failing in each way, and judge every state that it may leave.

    Args:
        scratch: where.
        picture: what each run begins with.
        job: the work; gets the directory and how bytes reach it.
        judge: raises if a state is not as promised.
        opening: operations that merely open the store, which other tests fail.
        only: fail operations of these names; all by default.
    """
    directory, left = str(scratch / "run"), str(scratch / "left")
    judged: set[bytes] = set()
    restore(picture, directory)
    counting = FaultyFiles(directory)
    job(directory, counting)
    runs = 0
    for at, name in enumerate(counting.calls):
        if at < opening or (only and name not in only):
            continue
        for effect in Effect:
            if effect is Effect.HALF and name != "write":
                continue
            for for_good in (False, True):
                restore(picture, directory)
                files = FaultyFiles(directory, Fault(at, effect, for_good))
                with suppress(CasstoreError):
                    job(directory, files)
                runs += 1
                for loss in Loss:
                    found = files.picture(loss)
                    mark = fingerprint(found)
                    if mark in judged:
                        continue
                    judged.add(mark)
                    restore(found, left)
                    try:
                        judge(left)
                    except (AssertionError, CasstoreError) as error:
                        raise AssertionError(
                            f"operation {at} ({name}) {effect} for good {for_good}, {loss}: {error!r}"
                        ) from error
    print(f"\n{runs} runs with a fault each, {len(judged)} distinct states opened and judged")
    return runs, len(judged)


def count_opening(scratch: Path, picture: Picture) -> int:
    directory = str(scratch / "run")
    restore(picture, directory)
    files = FaultyFiles(directory)
    Store.open(directory, files=files, clock=ManualClock()).close()
    return len(files.calls)


# --- quarantine ----------------------------------------------------------------------------------------------------------


def scrub(directory: str, files: Files) -> None:
    with Store.open(directory, files=files, clock=ManualClock()) as store:
        store.quarantine._pause = lambda seconds: None
        store.scrubber.begin(fresh=True)
        while store.scrubber.active:
            store.scrubber.record(store.scrubber.step())


def judge_scrubbed(start: Start) -> Callable[[str], None]:
    """What was damaged is damaged or out of use, nothing else is; a scrub finds it, and a push heals it."""

    def judge(directory: str) -> None:
        content, close = open_local(directory)
        try:
            out = {(row.kind, row.id) for row in content.index.quarantined(limit=100)}
            assert out <= start.lost
            assert objects_of(content).keys() == start.objects.keys() - start.lost
        finally:
            close()
        scrub(directory, Files())
        content, close = open_local(directory)
        try:
            assert {(row.kind, row.id) for row in content.index.quarantined(limit=100)} == start.lost
            content.push(start.tree, "app")
            assert objects_of(content) == start.objects
            assert content.index.quarantined(limit=1) == []
        finally:
            close()

    return judge


def test_any_operation_of_a_scrub_may_fail(scratch: Path, start: Start) -> None:
    """A disk that fails while its damage is looked at must not make more of it."""
    opening = count_opening(scratch, start.damaged)
    runs, states = fail_everywhere(scratch, start.damaged, scrub, judge_scrubbed(start), opening=opening)
    assert runs > 20
    assert states >= 3


def test_a_read_that_fails_once_takes_nothing_out_of_use(scratch: Path, start: Start) -> None:
    """EIO once is a hesitation, not damage: whatever read it is."""
    directory = str(scratch / "run")
    restore(start.whole, directory)
    counting = FaultyFiles(directory)
    scrub(directory, counting)
    reads = [at for at, name in enumerate(counting.calls) if name == "pread"]
    for at in reads:
        restore(start.whole, directory)
        try:
            scrub(directory, FaultyFiles(directory, Fault(at)))
        except CasstoreError:
            continue  # the store did not open
        content, close = open_local(directory)
        assert content.index.quarantined(limit=1) == []
        close()


# --- a new index -----------------------------------------------------------------------------------------------------------


def rebuild(directory: str, files: Files) -> None:
    rebuild_index(directory, files=files)


def judge_index(start: Start) -> Callable[[str], None]:
    """The store opens at once, with an index that knows everything, and nothing of the swap is left lying about."""

    def judge(directory: str) -> None:
        content, close = open_local(directory)
        try:
            assert objects_of(content) == start.objects
            assert check(content, full=True).ok
        finally:
            close()
        assert not [name for name in os.listdir(directory) if name.startswith("index.")]

    return judge


SWAP = frozenset({"rename", "unlink", "rmdir", "mkdir", "fsync_dir", "commit"})


@pytest.mark.parametrize("only", [SWAP, pytest.param(frozenset(), marks=pytest.mark.slow)], ids=["swap", "all"])
def test_any_operation_of_a_rebuild_may_fail(scratch: Path, start: Start, only: Set[str]) -> None:
    """The index that was in use is in use until the new one is, and never is there none."""
    runs, states = fail_everywhere(scratch, start.whole, rebuild, judge_index(start), opening=0, only=only)
    assert runs > 50
    assert states > 5


@pytest.mark.parametrize("only", [SWAP, pytest.param(frozenset(), marks=pytest.mark.slow)], ids=["swap", "all"])
def test_any_operation_of_a_rebuild_may_fail_when_there_was_no_index(
    scratch: Path, start: Start, only: Set[str]
) -> None:
    """Then the store opens once the new index is in its place, and says until then what to do."""
    lost = {name: content for name, content in start.whole.items() if not name.startswith("index")}
    judged = judge_index(start)

    def judge(directory: str) -> None:
        if not os.path.exists(f"{directory}/index") and not os.path.exists(f"{directory}/index.new"):
            with pytest.raises(NotInitialised, match="index") as told:
                Store.open(directory)
            assert "--rebuild-index" in str(told.value.hint)
            rebuild_index(directory)
        judged(directory)

    fail_everywhere(scratch, lost, rebuild, judge, opening=0, only=only)


# --- repair --------------------------------------------------------------------------------------------------------------


def test_any_operation_of_a_repair_may_fail(scratch: Path, start: Start) -> None:
    """What was healed stays healed, what was not is still wanted, and a second repair heals it."""
    directory = str(scratch / "run")
    restore(start.damaged, directory)
    scrub(directory, Files())
    quarantined = picture_of(directory)
    ((pack, data),) = encode_packs(
        [(kind, id, plain) for (kind, id), plain in start.objects.items() if (kind, id) in start.lost]
    )

    def heal(directory: str, files: Files) -> None:
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(directory, files=files, clock=ManualClock()))
            pool = stack.enter_context(ThreadPoolExecutor(1))
            store.repairs.heal(PackId(pack), data, pool=pool)

    def judge(directory: str) -> None:
        with Store.open(directory, clock=ManualClock()) as store:
            wanted = {(ObjectKind[one.kind.upper()], bytes.fromhex(one.id[7:])) for one in store.repairs.plan().wanted}
            assert wanted <= start.lost
            store.repairs.heal(PackId(pack), data)
            assert store.repairs.plan().wanted == []
        content, close = open_local(directory)
        try:
            assert objects_of(content) == start.objects
        finally:
            close()

    runs, states = fail_everywhere(scratch, quarantined, heal, judge, opening=count_opening(scratch, quarantined))
    assert runs > 20
    assert states > 3
    shutil.rmtree(directory)
