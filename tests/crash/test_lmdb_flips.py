"""One bit turns over in the LMDB files of index or ledger, anywhere.

The promise under test: the flip is found, by an error that names the part, or it is without effect: the byte lies on a free
page, in a gap, or means nothing.  LMDB has no checksums, so this rests on what is said twice: pages
(:mod:`casstore.storage.local.lmdb_pages`), the log and all that follows from it, packs and index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.crash.lmdbflips import (
    FOUND,
    NAMES,
    NO_EFFECT,
    OPENED,
    PROVEN_AGAIN,
    REFUSED,
    Extent,
    Flip,
    data_of,
    judge_all,
    make_store,
    map_of,
    one_bit_of_each,
)
from tests.support.tally import chance_of, count_states, note

SOUND: Final = frozenset({FOUND, OPENED, REFUSED, NO_EFFECT, PROVEN_AGAIN})
TABLES_USED: Final = {
    "index": {"chunk", "page", "root", "layout", "document", "packs", "pack-numbers", "memo", "condemned", "notes"},
    "ledger": {"entries", "nodes", "state", "intents", "pointers", "history", "snapshots", "artifacts", "tokens"},
}
SAMPLE: Final = 150
"""Flips of bytes that mean something, in a bounded run, in each file."""
SAMPLE_FREE: Final = 20
SAMPLE_FREE_SLOW: Final = 500
"""Flips of bytes that mean nothing."""


class Small(NamedTuple):
    """A small store, closed, and what the bytes of its files mean."""

    directory: Path
    maps: dict[str, list[Extent]]


@pytest.fixture(scope="module")
def small(scratch: Path) -> Small:
    directory = scratch / "small" / "store"
    directory.parent.mkdir()
    make_store(directory)
    return Small(directory, {name: map_of(data_of(directory, name)) for name in NAMES})


def run(small: Small, scratch: Path, name: str, flips: Sequence[Flip], what: str) -> Counter[str]:
    """Judge the flips; tell how they ended, and what of it should not be."""
    ends = judge_all(small.directory, scratch, flips)
    assert len(ends) == len(flips)
    count_states(f"{what} of the {name}'s LMDB file with a flipped bit", len(ends))
    counts = Counter(ended.end for ended in ends)
    note(f"{what} of the {name}: {', '.join(f'{number} {end}' for end, number in counts.most_common())}")
    holes = [ended for ended in ends if ended.end not in SOUND]
    named = [(ended, [e for e in small.maps[name] if e.start <= ended.flip.at < e.stop]) for ended in holes[:20]]
    assert not holes, f"{len(holes)} of {len(ends)}: {named}"
    return counts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow, id="every-byte")])
def test_a_flipped_bit_is_found_or_without_effect(small: Small, scratch: Path, name: str, sample: int | None) -> None:
    """Nobody is handed a wrong answer, and nobody's bytes are given away at the next commit."""
    every = list(one_bit_of_each(small.maps[name], name))
    flips = every if sample is None else chance_of(f"flips of {name}").sample(every, sample)
    counts = run(small, scratch / f"flips-{name}-{sample}", name, flips, "bytes that mean something")
    assert counts[FOUND] > len(flips) * 3 // 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [SAMPLE_FREE, pytest.param(SAMPLE_FREE_SLOW, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_byte_that_means_nothing_is_without_effect(
    small: Small, scratch: Path, name: str, number: int
) -> None:
    """Free pages, gaps, padding: the map that says so is held against what really happens."""
    meaning = {at for extent in small.maps[name] for at in range(extent.start, extent.stop)}
    size = data_of(small.directory, name).stat().st_size
    chance = chance_of(f"free bytes of {name}")
    places = chance.sample(sorted(set(range(size)) - meaning), number)
    flips = [Flip(name, at, chance.randrange(8)) for at in places]
    counts = run(small, scratch / f"free-{name}-{number}", name, flips, "bytes that mean nothing")
    assert counts == {NO_EFFECT: number}


def test_the_map_covers_what_is_used(small: Small) -> None:
    """A map that missed pages would prove too much: all rows that are read lie in it."""
    for name in NAMES:
        extents = small.maps[name]
        data = data_of(small.directory, name).read_bytes()
        assert all(one.stop <= other.start for one, other in pairwise(sorted(extents)))
        tables = {extent.table for extent in extents}
        assert tables >= TABLES_USED[name]
        assert 0.01 < sum(extent.stop - extent.start for extent in extents) / len(data) < 0.5
