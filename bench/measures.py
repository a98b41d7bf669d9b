"""The goals of the store's speed, and how far a run is from each."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from bench.results import CorpusRun, Run, middle, ratio, times_faster
from bench.steps import (
    PULL_1,
    PULL_1_NO_SYNC,
    PULL_2,
    PULL_2_LINK,
    PUSH_1,
    PUSH_2,
    PUSH_SAME,
    PUSHES,
    TITLES,
    VERIFY,
)

CASSTORE = "casstore"
NO_FSYNC = "casstore-no-fsync"

# At least so many times as fast as the fastest peer.
_FASTER = {PUSH_1: 3.0, PUSH_2: 4.0, VERIFY: 1.0, PULL_1: 1.0, PULL_2: 1.0, PULL_2_LINK: 4.0}
_PUSH_OF_LIMIT = 0.6
_VERIFY_OF_LIMIT = 0.6
_UNCHANGED = 0.1
_PULL_OVER_WRITE = 1.3
_WIRE_OVER_PEER = 1.05
_STORED_OVER_PEER = 1.05
_DURABLE = 1.15


class Measure(NamedTuple):
    """One goal and what was found."""

    what: str
    goal: str
    found: float
    reached: bool


def measures(run: Run, corpus: CorpusRun) -> list[Measure]:
    """All goals of the peers' bench for which the run has what it takes."""
    return [
        *_against_peers(run, corpus),
        *_against_limits(corpus),
        *_of_bytes(run, corpus),
        *_against_itself(corpus),
    ]


def _against_peers(run: Run, corpus: CorpusRun) -> Iterator[Measure]:
    for step, goal in _FASTER.items():
        times = times_faster(run, corpus, CASSTORE, step)
        if times is not None:
            yield Measure(f"{TITLES[step]}: times as fast as the fastest peer", f"≥ {goal:g}", times, times >= goal)


def _against_limits(corpus: CorpusRun) -> Iterator[Measure]:
    for step, goal in ((PUSH_1, _PUSH_OF_LIMIT), (VERIFY, _VERIFY_OF_LIMIT)):
        share = ratio(corpus.limit_s(step), corpus.seconds(CASSTORE, step))
        if share is not None:
            yield Measure(f"{TITLES[step]}: share of the limit", f"≥ {goal:g}", share, share >= goal)
    if seconds := corpus.seconds(CASSTORE, VERIFY):
        rate = corpus.size_bytes / 1e9 / median(seconds.values())
        yield Measure("verify everything: GB/s of release 1's plain bytes", "≥ 1", rate, rate >= 1)
    for step in (PULL_1, PULL_1_NO_SYNC):
        over = ratio(corpus.seconds(CASSTORE, step), corpus.limit_s(step))
        if over is not None:
            what = f"{TITLES[step]}: times a plain parallel write"
            yield Measure(what, f"≤ {_PULL_OVER_WRITE:g}", over, over <= _PULL_OVER_WRITE)


def _of_bytes(run: Run, corpus: CorpusRun) -> Iterator[Measure]:
    own = corpus.of(CASSTORE, PUSH_2)
    peers = [found for name in corpus.competitors() if run.is_peer(name) and (found := corpus.of(name, PUSH_2))]
    if not own or not peers:
        return
    wire = middle(own, lambda m: m.wire_bytes) / min(middle(found, lambda m: m.wire_bytes) for found in peers)
    what = "push release 2: bytes on the wire, over the least growth of a peer"
    yield Measure(what, f"≤ {_WIRE_OVER_PEER:g}", wire, wire <= _WIRE_OVER_PEER)
    stored = middle(own, lambda m: m.stored_bytes) / min(middle(found, lambda m: m.stored_bytes) for found in peers)
    yield Measure(
        "stored for both releases, over the smallest peer",
        f"≤ {_STORED_OVER_PEER:g}",
        stored,
        stored <= _STORED_OVER_PEER,
    )


def _against_itself(corpus: CorpusRun) -> Iterator[Measure]:
    again = ratio(corpus.seconds(CASSTORE, PUSH_SAME), corpus.seconds(CASSTORE, PUSH_1))
    if again is not None:
        yield Measure("push release 1 again, over the first push", f"≤ {_UNCHANGED:g}", again, again <= _UNCHANGED)
    for step in PUSHES:
        cost = ratio(corpus.seconds(CASSTORE, step), corpus.seconds(NO_FSYNC, step))
        if cost is not None:
            yield Measure(f"{TITLES[step]}: durable over not durable", f"≤ {_DURABLE:g}", cost, cost <= _DURABLE)
