"""The bridge: if it breaks, one slow disk stops every request, or a flip is lost with the client that asked for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from casstore.errors import CasstoreError, OutcomeUnknown, Overloaded, PreconditionFailed
from casstore_server.bridge import Bridge, Lane


class Gate:
    """A job that says that it began and ends when it is told to."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.release = threading.Event()
        self.runs = 0

    def __call__(self) -> int:
        self.runs += 1
        self.began.set()
        assert self.release.wait(10)
        return self.runs


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


async def test_a_full_lane_refuses_at_once_and_takes_again_when_there_is_room() -> None:
    lane, gate = Lane("readers", threads=1, queue_max=1), Gate()
    running = asyncio.create_task(lane.run(gate))
    await wait_for(gate.began)
    waiting = lane.start(lambda: "second")
    with pytest.raises(Overloaded) as refused:
        await lane.run(lambda: "third")
    assert refused.value.retry_after_s == 1
    assert lane.depth == 2
    gate.release.set()
    assert await running == 1
    assert await waiting == "second"
    assert lane.depth == 0
    assert await lane.run(lambda: "fourth") == "fourth"
    await lane.close()


async def test_a_job_whose_caller_went_away_runs_all_the_same() -> None:
    """A flip whose client vanished is a flip that happened: taking it out of the queue would make it half a flip."""
    lane, gate, done = Lane("writer", threads=1, queue_max=5), Gate(), threading.Event()
    first = asyncio.create_task(lane.run(gate))
    await wait_for(gate.began)
    second = asyncio.create_task(lane.run(done.set))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.cancelled()
    assert lane.depth == 2
    gate.release.set()
    await wait_for(done)
    await lane.close()
    await asyncio.sleep(0)
    assert lane.depth == 0


async def test_an_error_in_a_thread_reaches_the_one_who_waits() -> None:
    lane = Lane("readers", threads=1, queue_max=1)

    def fail() -> None:
        raise PreconditionFailed("prod/api is at f7")

    with pytest.raises(PreconditionFailed, match="f7"):
        await lane.run(fail)
    await lane.close()


def no_documents(documents: Sequence[bytes]) -> Sequence[None]:
    raise AssertionError("nobody stores a document here")


class Ledger:
    """Takes batches; the first one waits at a gate, so that others gather behind it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = Gate()

    def commit(self, batch: Sequence[int]) -> Sequence[str | CasstoreError]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(batch))
        if len(self.batches) == 1:
            self.gate()
        return [PreconditionFailed(f"{number} lost") if number % 2 else f"{number} won" for number in batch]


async def test_an_idle_ledger_commits_at_once_and_gathers_while_it_is_busy() -> None:
    """Without the first, one engineer's flip would wait for company; without the second, each would pay its own fsync."""
    ledger = Ledger()
    bridge: Bridge[int, str] = Bridge(ledger.commit, no_documents, group_commit_max=4)
    tasks = [asyncio.create_task(bridge.submit(0))]
    await wait_for(ledger.gate.began)
    tasks += [asyncio.create_task(bridge.submit(number)) for number in range(1, 7)]
    await asyncio.sleep(0)
    assert bridge.depths["submissions"] == 6
    ledger.gate.release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert ledger.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert len(ledger.threads) == 1
    assert [str(result) for result in results] == [f"{n} lost" if n % 2 else f"{n} won" for n in range(7)]
    assert [isinstance(result, PreconditionFailed) for result in results] == [bool(n % 2) for n in range(7)]
    await bridge.close()


async def test_submissions_are_bounded_too() -> None:
    ledger = Ledger()
    bridge: Bridge[int, str] = Bridge(ledger.commit, no_documents, writer_queue_max=2)
    tasks = [asyncio.create_task(bridge.submit(0))]
    await wait_for(ledger.gate.began)
    tasks += [asyncio.create_task(bridge.submit(number)) for number in (2, 4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await bridge.submit(6)
    ledger.gate.release.set()
    assert await asyncio.gather(*tasks) == ["0 won", "2 won", "4 won"]
    await bridge.close()


async def test_closing_runs_what_was_accepted() -> None:
    """A stop in the middle of a deploy must answer the flips that it took, or their callers cannot know."""
    ledger = Ledger()
    bridge: Bridge[int, str] = Bridge(ledger.commit, no_documents)
    tasks = [asyncio.create_task(bridge.submit(0))]
    await wait_for(ledger.gate.began)
    tasks.append(asyncio.create_task(bridge.submit(2)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(bridge.close())
    await asyncio.sleep(0)
    ledger.gate.release.set()
    await closing
    assert await asyncio.gather(*tasks) == ["0 won", "2 won"]


async def test_an_unknown_outcome_reaches_the_whole_batch_and_marks_the_store_sealed() -> None:
    def commit(batch: Sequence[int]) -> Sequence[str | CasstoreError]:
        raise OutcomeUnknown("fsync failed")

    bridge: Bridge[int, str] = Bridge(commit, no_documents)
    results = await asyncio.gather(bridge.submit(1), bridge.submit(2), return_exceptions=True)
    assert [type(result) for result in results] == [OutcomeUnknown, OutcomeUnknown]
    assert bridge.sealed.is_set()
    await bridge.close()


async def test_an_unknown_outcome_of_one_submission_marks_the_store_sealed() -> None:
    def commit(batch: Sequence[int]) -> Sequence[str | CasstoreError]:
        return [OutcomeUnknown("fsync failed")]

    bridge: Bridge[int, str] = Bridge(commit, no_documents)
    with pytest.raises(OutcomeUnknown):
        await bridge.submit(1)
    assert bridge.sealed.is_set()
    await bridge.close()


async def test_documents_that_come_together_are_stored_together() -> None:
    """Else a hundred snapshots a minute are a hundred packs a minute, for ever."""
    gate, batches = Gate(), []

    def store(documents: Sequence[bytes]) -> Sequence[None]:
        batches.append(list(documents))
        if len(batches) == 1:
            gate()
        return [None] * len(documents)

    bridge: Bridge[int, str] = Bridge(Ledger().commit, store)
    first = asyncio.create_task(bridge.store_document(b"0"))
    await wait_for(gate.began)
    others = [asyncio.create_task(bridge.store_document(b"%d" % number)) for number in range(1, 5)]
    await asyncio.sleep(0)
    gate.release.set()
    await asyncio.gather(first, *others)
    assert batches == [[b"0"], [b"1", b"2", b"3", b"4"]]
    await bridge.close()
