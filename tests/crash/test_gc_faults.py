"""Collections over a disk that fails at any operation, once or for good, and over power cuts: nothing that is needed is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.crash.collecting import Story, check_after, collect_until_dead, copy_story, make_story
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, fingerprint, restore
from tests.support.tally import chance_of, count_states

SAMPLED = 8  # of each kind of fault in the usual run
# Of each kind in the long run; with CASSTORE_GC_FAULTS=all every operation is tried, which takes an hour.
SAMPLED_SLOW = None if os.environ.get("CASSTORE_GC_FAULTS") == "all" else 24


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return make_story(tmp_path_factory.mktemp("gc") / "store")


def run_with(story: Story, work: Path, fault: Fault | None) -> FaultyFiles:
    directory = copy_story(story, work / "store")
    files = FaultyFiles(str(directory), fault)
    collect_until_dead(story, directory, files)
    return files


def test_the_story_has_everything_in_it(story: Story, tmp_path: Path) -> None:
    """A life in which nothing is rewritten would prove nothing about rewriting."""
    files = run_with(story, tmp_path, None)
    assert files.calls.count("unlink") >= 20  # old packs, and names in tmp/
    assert files.calls.count("link_new") >= 1
    assert files.calls.count("commit") >= 20
    check_after(story, tmp_path / "store")


def points(story: Story, work: Path, sample: int | None) -> list[int]:
    calls = run_with(story, work, None).calls
    changing = [n for n, name in enumerate(calls) if name not in ("pread", "stat", "listdir", "close", "open_read")]
    if sample is None:
        return list(range(len(calls)))
    step = max(1, len(changing) // sample)
    return changing[chance_of("operations of a collection").randrange(step) :: step]


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("effect", [Effect.NOTHING, Effect.ALL])
def test_no_fault_loses_what_is_needed(story: Story, tmp_path: Path, for_good: bool, effect: Effect) -> None:
    """A bounded number of operations, each failing with and without effect, once and for good; after a kill and a power cut."""
    _enumerate(story, tmp_path, points(story, tmp_path, SAMPLED), for_good=for_good, effect=effect)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("effect", [Effect.NOTHING, Effect.HALF, Effect.ALL])
def test_no_fault_at_any_operation(story: Story, tmp_path: Path, for_good: bool, effect: Effect) -> None:
    """Many of them, and all where that is asked for."""
    _enumerate(story, tmp_path, points(story, tmp_path, SAMPLED_SLOW), for_good=for_good, effect=effect)


def _enumerate(story: Story, work: Path, at: list[int], *, for_good: bool, effect: Effect) -> None:
    tried: set[bytes] = set()
    for number in at:
        files = run_with(story, work, Fault(number, effect, for_good))
        for loss in (Loss.KEPT, Loss.LOST):
            picture = files.picture(loss)
            mark = fingerprint(picture)
            if mark in tried:
                continue
            tried.add(mark)
            left = work / "left"
            restore(picture, str(left))
            check_after(story, left)
    assert tried
    count_states("collection, rewriting and merging of packs", len(tried))
