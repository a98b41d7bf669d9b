"""``kill -9`` of the real server under the real client's load, again and again, without a repair step in between.

The promise under test: what was acknowledged before a kill is there after it.  Every push pulls back bit for bit, every flip
is in history, fsck finds nothing, and a client that verifies sees one log that only grows.

The moments are random: the seed is printed, and ``CASSTORE_SEED`` sets it (the load is then the same, the machine's timing is
not).  ``CASSTORE_KILLS`` says how often the long run kills.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import pytest

from casstore.admin import fsck_directory
from casstore.errors import CasstoreError
from casstore_client.client import AsyncClient
from casstore_client.trust_store import TrustStore
from tests.support.server import ServerProcess, make_store, token_of
from tests.support.treebuild import read_directory

KILLS: Final = 8
KILLS_SLOW: Final = int(os.environ.get("CASSTORE_KILLS", "60"))
POINTERS: Final = ("prod/api", "prod/web")
PUSHERS: Final = 3
LOAD_MAX_S: Final = 0.7
"""The longest time that a server is under load before it is killed."""
RETRY_MAX_S: Final = 60
"""How long a client that outlives the server is waited for; its own retries end before."""


class KilledWhileOpening(ServerProcess):
    """A server that is killed at a random moment before, in, or just after the opening of the store."""

    def _wait_until_listening(self) -> str:
        with pytest.raises(subprocess.TimeoutExpired):
            self.process.wait(random.uniform(0.3, 1.1))
        self.kill()
        return "http://127.0.0.1:1"


class Siege:
    """A store, what its clients were told, and the kills."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.scratch = scratch
        self.store = scratch / "store"
        self.created = make_store(self.store)
        self.trust = TrustStore(self.created.trust, scratch / "trust")
        self.pushed: dict[str, Path] = {}
        """Every acknowledged push: digest → what was pushed."""
        self.unchecked: list[str] = []
        self.flipped: dict[str, dict[int, str]] = {name: {} for name in POINTERS}
        """Every acknowledged flip: pointer → flip → snapshot."""
        self.asked: dict[str, set[str]] = {name: set() for name in POINTERS}
        """Every snapshot that a pointer was asked to name, acknowledged or not."""
        self.published: list[str] = []
        self.is_over = False
        self.counts = dict.fromkeys(("kills", "kills while opening", "pulls", "in doubt", "outlived"), 0)
        self._number = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._listen = f"127.0.0.1:{probe.getsockname()[1]}"

    def start(self) -> ServerProcess:
        return ServerProcess(self.store, self.created, "--listen", self._listen)

    def client(self) -> AsyncClient:
        return AsyncClient(
            f"http://{self._listen}", token=token_of(self.created), trust=self.trust, key=self.created.operator_key
        )

    # --- the load ----------------------------------------------------------------------------------------------------

    def write_release(self) -> Path:
        """A new directory with something of its own, and something that others have too."""
        self._number += 1
        path = self.scratch / "source" / str(self._number)
        (path / "lib").mkdir(parents=True)
        shared = random.Random(self._number % 5)
        (path / "lib" / "shared").write_bytes(shared.randbytes(200_000))
        for number in range(self.random.randrange(1, 12)):
            (path / "lib" / f"f{number}").write_bytes(self.random.randbytes(self.random.randrange(5_000)))
        if self.random.random() < 0.2:
            (path / "large").write_bytes(self.random.randbytes(4_000_000))
        (path / "tool").write_bytes(b"#!/bin/sh\n")
        (path / "tool").chmod(0o755)
        (path / "link").symlink_to("lib/shared")
        return path

    async def push(self) -> None:
        """A build agent; what was cut off is pushed again in the end, as a build does."""
        async with self.client() as client:
            while not self.is_over:
                path = self.write_release()
                done = await client.push(path, name=f"build/n{self._number}")
                self.pushed[str(done.digest)] = path
                self.unchecked.append(str(done.digest))

    async def pull(self) -> None:
        """A host."""
        async with self.client() as client:
            while not self.is_over:
                await self.pull_one(client, self.random.choice(list(self.pushed)))

    async def pull_one(self, client: AsyncClient, digest: str) -> None:
        """Pull, and compare bit for bit."""
        self._number += 1
        found = self.scratch / "pulled" / str(self._number)
        found.parent.mkdir(exist_ok=True)
        await client.pull(digest, found, sync=False)
        assert read_directory(found) == read_directory(self.pushed[digest])
        shutil.rmtree(found)
        self.counts["pulls"] += 1

    async def flip(self, name: str) -> None:
        """A deployer: publishes, flips, and sometimes rolls back."""
        async with self.client() as client:
            current = await client.pointer_or_none(name)
            expect = None if current is None else current.flip
            while not self.is_over:
                tree = self.random.choice(list(self.pushed))
                self._number += 1
                _, snapshot = await client.snapshot_create([("app", "tree", tree)], metadata={"n": self._number})
                self.published.append(str(snapshot))
                self.asked[name].add(str(snapshot))
                answer = await client.flip(name, str(snapshot), expect=expect, reason="siege")
                expect = self.note_flip(name, answer.entry, str(snapshot))
                if self.random.random() < 0.3 and len(self.flipped[name]) > 1:
                    answer = await client.rollback(name, expect=expect, leave_bad=False, leave_hold=False)
                    expect = self.note_flip(name, answer.entry, str(answer.pointers[0].snapshot))

    def note_flip(self, name: str, flip: int, snapshot: str) -> int:
        self.flipped[name][flip] = snapshot
        return flip

    async def besiege(self, server: ServerProcess) -> None:
        """Load the server, kill it in the middle, and start another one for those clients that go on asking."""
        self.is_over = False
        outlives = self.random.random() < 0.25
        flippers = [asyncio.create_task(self._until_killed(self.flip(name))) for name in POINTERS]
        others = [asyncio.create_task(self._until_killed(self.push())) for _ in range(PUSHERS)]
        others.append(asyncio.create_task(self._until_killed(self.pull())))
        tasks = [*flippers, *others]
        # Nobody ends before the server does, unless something is wrong.
        await asyncio.wait(tasks, timeout=self.random.uniform(0.02, LOAD_MAX_S), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
        self.is_over = True
        server.kill()
        self.counts["kills"] += 1
        for task in others if outlives else tasks:
            task.cancel()
        await asyncio.wait(others if outlives else tasks)
        if outlives:
            self.counts["outlived"] += 1

            next_server = await asyncio.to_thread(self.start)
            try:
                await asyncio.wait(flippers, timeout=RETRY_MAX_S)
            finally:
                next_server.kill()
        for task in tasks:
            assert task.done()
            if not task.cancelled():
                task.result()

    async def _until_killed(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CasstoreError:
            # What a client that lost its server is told is not of interest here; while the server lives it is.
            if not self.is_over:
                raise

    # --- the judgement -----------------------------------------------------------------------------------------------

    async def judge(self, server: ServerProcess, digests: list[str]) -> None:
        """Hold the restarted server against everything that was acknowledged."""
        report = await asyncio.to_thread(server.http.post, "/v1/fsck?full=1", b"")
        assert report.json["ok"], report.json["findings"]
        known = await asyncio.to_thread(self.trust.load)
        async with self.client() as client:
            opened = await client.checkpoint()
            assert known is None or opened.checkpoint.size >= client_size(client, known)
            for digest in digests:
                await self.pull_one(client, digest)
            for name in POINTERS:
                await self.judge_pointer(client, name)
            if self.published:
                await client.snapshot_document(self.published[-1])
        assert not list((self.scratch / "trust").glob("contradiction-*"))

    async def judge_pointer(self, client: AsyncClient, name: str) -> None:
        pointer = await client.pointer_or_none(name)
        if pointer is None:
            assert not self.flipped[name]
            return
        found: dict[int, str | None] = {}
        while True:
            page = await client.history(name, limit=1000, before=min(found, default=None))
            found.update((item.flip, item.to) for item in page.items)
            if len(page.items) < 1000:
                break
        assert self.flipped[name].items() <= found.items()
        assert set(found.values()) <= self.asked[name]
        assert (pointer.flip, pointer.seq) == (max(found), len(found))
        assert pointer.snapshot == found[pointer.flip]
        doubtful = found.keys() - self.flipped[name].keys()
        # Each pointer has one deployer, who asks for one flip at a time: a kill leaves one in doubt at most.
        assert len(doubtful) <= self.counts["kills"]
        self.counts["in doubt"] += len(doubtful)
        self.flipped[name].update({flip: str(found[flip]) for flip in doubtful})

    async def run(self, kills: int) -> None:
        first = self.write_release()
        server = self.start()
        try:
            async with self.client() as client:
                done = await client.push(first)
            self.pushed[str(done.digest)] = first
            for _ in range(kills):
                await self.besiege(server)
                if self.random.random() < 0.25:
                    await asyncio.to_thread(KilledWhileOpening, self.store, self.created, "--listen", self._listen)
                    self.counts["kills while opening"] += 1
                server = await asyncio.to_thread(self.start)
                digests, self.unchecked = self.unchecked, []
                await self.judge(server, digests)
            await self.judge(server, list(self.pushed))
            async with self.client() as client:
                report = await client.audit(full=True)
                assert report.ok, report.findings
            assert await asyncio.to_thread(server.stop) == 0
        finally:
            server.kill()
        assert fsck_directory(self.store, full=True).ok
        assert not list((self.store / "tmp").iterdir())

    def say(self) -> str:
        flips = sum(len(flips) for flips in self.flipped.values())
        told = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        return f"{told}; acknowledged: {len(self.pushed)} pushes, {len(self.published)} snapshots, {flips} flips"


def client_size(client: AsyncClient, known: Any) -> int:
    """How large the log was that this user verified last."""
    assert client.log is not None
    return client.log.open_note(known.note).checkpoint.size


def besiege(scratch: Path, kills: int) -> None:
    seed = int(os.environ.get("CASSTORE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"\nCASSTORE_SEED={seed}")
    siege = Siege(scratch, seed)
    try:
        asyncio.run(siege.run(kills))
    finally:
        print(siege.say())
    assert siege.counts["kills"] == kills
    assert siege.published


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    besiege(tmp_path, KILLS)


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    besiege(tmp_path, KILLS_SLOW)
