"""One bit turns over in the LMDB files of index or ledger, anywhere.

The promise under test: the flip is found, by an error that names the part, or it is without effect: the byte lies on a free
page, in a gap, or means nothing.  LMDB has no checksums, so this rests on what is said twice: pages
(:mod:`casstore.storage.local.lmdb_pages`), the log and all that follows from it, packs and index.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.crash.lmdbflips import (
    FOUND,
    NAMES,
    NO_EFFECT,
    Extent,
    data_of,
    judge_all,
    make_store,
    map_of,
    one_bit_of_each,
)
from tests.support.tally import chance_of, count_states, note

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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow, id="every-byte")])
def test_a_flipped_bit_is_found_or_without_effect(small: Small, scratch: Path, name: str, is_whole: bool) -> None:
    chance = chance_of(f"flips of {name}")
    every = list(one_bit_of_each(small.maps[name], name))
    flips = every if is_whole else chance.sample(every, SAMPLE)
    ends = judge_all(small.directory, scratch / f"flips-{name}-{is_whole}", flips)
    count_states(f"bits of the {name}'s LMDB file", len(ends))
    counts = Counter(ended.end for ended in ends)
    note(f"bits of the {name}: {dict(counts)}, of {len(every)} bytes that mean something")
    import json

    json.dump(
        [
            (
                e.flip.at,
                e.flip.bit,
                e.end,
                e.detail,
                [(x.what, x.table) for x in small.maps[name] if x.start <= e.flip.at < x.stop],
            )
            for e in ends
        ],
        open(f"/tmp/f_ends_{name}.json", "w"),
    )
    assert not (counts.keys() - {FOUND, NO_EFFECT, "refused with a sentence", "found when opened"}), counts
