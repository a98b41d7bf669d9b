"""A real server under the load of real clients, which is killed and started again, and what its clients were told.

One process holds the clients: build agents that push, a host that pulls, deployers that publish, flip and roll back.  The server
is ``casstore serve``, a process of its own.  It ends in three ways: ``kill -9`` under load, ``kill -9`` while it opens the
store, and SIGTERM.  A part of the clients outlive it and go on asking the next one, as they do on a real machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from casstore.admin import fsck_directory
from casstore.errors import CasstoreError
from casstore_client.client import AsyncClient
from casstore_client.trust_store import TrustStore
from tests.support.server import ServerProcess, make_store, token_of
from tests.support.treebuild import read_directory

POINTERS: Final = ("prod/api", "prod/web")
PUSHERS: Final = 2
LOAD_MAX_S: Final = 0.6
"""The longest time that a server is under load before it ends."""
RETRY_MAX_S: Final = 60
"""How long a client that outlives the server is waited for; its own retries end before."""
FSCK_EVERY: Final = 20
"""Restarts between two runs of fsck."""
PULLED_EACH_TIME: Final = 3
"""Of what was acknowledged since the restart before, pulled and compared after this one."""
PULLERS_AT_THE_END: Final = 4
SETTINGS: Final = """
[gc]
interval_s = 0
[retention]
history_days = 0
snapshot_days = 0
artifact_days = 0
keep_artifacts = 0
"""
"""Everything that no pointer names is condemned at once, and revived when it is pushed or published again; its grace is longer
than any siege, so what was acknowledged must be there all the same."""
_LIST_MAX: Final = 1000


class KilledWhileOpening(ServerProcess):
    """A server that is killed at a given moment before, in, or just after the opening of the store."""

    def __init__(self, directory: Path, *arguments: Any, after_s: float) -> None:
        self._after_s = after_s
        super().__init__(directory, *arguments)

    def _wait_until_listening(self) -> str:
        try:
            ended = self.process.wait(self._after_s)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            raise AssertionError(f"the server ended by itself with {ended}:\n{self.log_file.read_text('utf-8')}")
        return "http://127.0.0.1:1"


class Journal:
    """Everything that was acknowledged, in memory and line by line in a file."""

    def __init__(self, path: Path) -> None:
        self.pushed: dict[str, str] = {}
        """Every acknowledged push: digest → hash of what was pushed."""
        self.unchecked: list[str] = []
        self.flipped: dict[str, dict[int, str]] = {name: {} for name in POINTERS}
        """Every acknowledged flip: pointer → flip → snapshot."""
        self.asked: dict[str, set[str]] = {name: set() for name in POINTERS}
        """Every snapshot that a pointer was asked to name, acknowledged or not."""
        self.published: list[str] = []
        self.noted = asyncio.Event()
        """Set whenever something is acknowledged."""
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def _write(self, *words: object) -> None:
        self._file.write(json.dumps(words) + "\n")
        self.noted.set()

    def note_push(self, digest: str, content: str) -> None:
        self.pushed[digest] = content
        self.unchecked.append(digest)
        self._write("pushed", digest)

    def note_published(self, snapshot: str) -> None:
        self.published.append(snapshot)
        self._write("published", snapshot)

    def note_flip(self, name: str, flip: int, snapshot: str) -> int:
        self.flipped[name][flip] = snapshot
        self._write("flipped", name, flip, snapshot)
        return flip

    def close(self) -> None:
        self._file.close()


class Siege:
    """A store, its clients, and the ends of its servers.

    Args:
        scratch: where store, sources and pulled copies lie.
        chance: draws everything that is left to chance but the machine's timing.
    """

    def __init__(self, scratch: Path, chance: random.Random) -> None:
        self.random = chance
        scratch.mkdir(exist_ok=True)
        self.scratch = scratch
        self.store = scratch / "store"
        self.created = make_store(self.store)
        self.journal = Journal(scratch / "journal")
        self.trust = TrustStore(self.created.trust, scratch / "trust")
        self.counts = dict.fromkeys(
            (
                "kills under load",
                "kills while opening",
                "stops",
                "pulls",
                "in doubt",
                "outlived",
                "fsck runs",
                "collections",
            ),
            0,
        )
        self._is_over = False
        self._number = 0
        self._newest = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._listen = f"127.0.0.1:{probe.getsockname()[1]}"
        settings = scratch / "settings.toml"
        settings.write_text(SETTINGS)
        self._arguments = ("--listen", self._listen, "--settings", str(settings))

    @property
    def kills(self) -> int:
        """How often a server was killed, with ``kill -9``."""
        return self.counts["kills under load"] + self.counts["kills while opening"]

    def start(self) -> ServerProcess:
        return ServerProcess(self.store, self.created, *self._arguments)

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
        (path / "lib" / "shared").write_bytes(shared.randbytes(100_000))
        for number in range(self.random.randrange(1, 8)):
            (path / "lib" / f"f{number}").write_bytes(self.random.randbytes(self.random.randrange(4_000)))
        if self.random.random() < 0.05:
            (path / "large").write_bytes(self.random.randbytes(2_000_000))
        (path / "tool").write_bytes(b"#!/bin/sh\n")
        (path / "tool").chmod(0o755)
        (path / "link").symlink_to("lib/shared")
        return path

    async def push_one(self, client: AsyncClient) -> None:
        path = self.write_release()
        content = hash_directory(path)
        done = await client.push(path, name=f"build/n{path.name}")
        self.journal.note_push(str(done.digest), content)
        shutil.rmtree(path)

    async def push(self) -> None:
        """A build agent; what was cut off is pushed again in the end, as a build does."""
        async with self.client() as client:
            while not self._is_over:
                await self.push_one(client)

    async def pull(self) -> None:
        """A host."""
        async with self.client() as client:
            while not self._is_over:
                await self.pull_one(client, self.random.choice(list(self.journal.pushed)))

    async def pull_one(self, client: AsyncClient, digest: str) -> None:
        """Pull, and compare bit for bit."""
        self._number += 1
        found = self.scratch / "pulled" / str(self._number)
        found.parent.mkdir(exist_ok=True)
        await client.pull(digest, found, sync=False)
        assert hash_directory(found) == self.journal.pushed[digest], f"{digest} came back as something else"
        shutil.rmtree(found)
        self.counts["pulls"] += 1

    async def flip(self, name: str) -> None:
        """A deployer: publishes, flips, and sometimes rolls back."""
        journal = self.journal
        async with self.client() as client:
            current = await client.pointer_or_none(name)
            expect = None if current is None else current.flip
            while not self._is_over:
                tree = self.random.choice(list(journal.pushed))
                self._number += 1
                _, snapshot = await client.snapshot_create([("app", "tree", tree)], metadata={"n": self._number})
                journal.note_published(str(snapshot))
                journal.asked[name].add(str(snapshot))
                answer = await client.flip(name, str(snapshot), expect=expect, reason="siege")
                expect = journal.note_flip(name, answer.entry, str(snapshot))
                if self.random.random() < 0.3 and len(journal.flipped[name]) > 1:
                    answer = await client.rollback(name, expect=expect, leave_bad=False, leave_hold=False)
                    expect = journal.note_flip(name, answer.entry, str(answer.pointers[0].snapshot))

    async def collect(self) -> None:
        """An operator who is impatient."""
        async with self.client() as client:
            while not self._is_over:
                await client.gc()
                self.counts["collections"] += 1
                await asyncio.sleep(self.random.uniform(0, 0.1))

    # --- the ends ----------------------------------------------------------------------------------------------------

    async def besiege(self, server: ServerProcess) -> ServerProcess | None:
        """Load the server and end it in the middle.

        Returns:
            The next server, where clients have gone on asking and so one was started.
        """
        self._is_over = False
        outlives = self.random.random() < 0.2
        stops = self.random.random() < 0.1
        flippers = [asyncio.create_task(self._until_over(self.flip(name))) for name in POINTERS]
        others = [asyncio.create_task(self._until_over(self.push())) for _ in range(PUSHERS)]
        others += [asyncio.create_task(self._until_over(work)) for work in (self.pull(), self.collect())]
        tasks = [*flippers, *others]
        # Nobody ends before the server does, unless something is wrong.
        moment = asyncio.create_task(self._wait_for_the_moment())
        await asyncio.wait([*tasks, moment], return_when=asyncio.FIRST_COMPLETED)
        moment.cancel()
        for task in tasks:
            if task.done():
                task.result()
        self._is_over = True
        if stops:
            assert await asyncio.to_thread(server.stop, signal.SIGTERM) == 0
            self.counts["stops"] += 1
        else:
            server.kill()
            self.counts["kills under load"] += 1
        for task in others if outlives else tasks:
            task.cancel()
        await asyncio.wait(others if outlives else tasks)
        following: ServerProcess | None = None
        if outlives:
            self.counts["outlived"] += 1
            following = await asyncio.to_thread(self.start)
            await asyncio.wait(flippers, timeout=RETRY_MAX_S)
        for task in tasks:
            assert task.done()
            if not task.cancelled():
                task.result()
        return following

    async def _wait_for_the_moment(self) -> None:
        """Some time; and in a third of the cases on from there until something is acknowledged, to the millisecond."""
        await asyncio.sleep(self.random.uniform(0.02, LOAD_MAX_S))
        if self.random.random() < 1 / 3:
            self.journal.noted.clear()
            await self.journal.noted.wait()

    async def _until_over(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CasstoreError:
            # What a client that lost its server is told is not of interest here; while the server lives it is.
            if not self._is_over:
                raise

    # --- the judgement -----------------------------------------------------------------------------------------------

    async def judge(self, server: ServerProcess, digests: list[str]) -> None:
        """Hold the restarted server against what was acknowledged.

        Args:
            server: it.
            digests: what is pulled and compared.
        """
        known = await asyncio.to_thread(self.trust.load)
        async with self.client() as client:
            opened = await client.checkpoint()
            if known is not None:
                assert client.log is not None
                assert opened.checkpoint.size >= client.log.open_note(known.note).checkpoint.size
            await self.judge_artifacts(client)
            for digest in digests:
                await self.pull_one(client, digest)
            for name in POINTERS:
                await self.judge_pointer(client, name)
            if self.journal.published:
                await client.snapshot_document(self.journal.published[-1])
        assert not list((self.scratch / "trust").glob("contradiction-*"))

    async def judge_artifacts(self, client: AsyncClient) -> None:
        """Every push that was acknowledged since the last time is listed."""
        wanted, self.journal.unchecked = set(self.journal.unchecked), []
        newest, after = 0, None
        while True:
            page = await client.artifacts(after=after, limit=100)
            newest = newest or (page.artifacts[0].number if page.artifacts else 0)
            wanted -= {artifact.digest for artifact in page.artifacts}
            after = page.next
            if after is None or page.artifacts[-1].number <= self._newest:
                break
        assert not wanted, f"acknowledged and not there: {wanted}"
        self._newest = newest

    async def judge_pointer(self, client: AsyncClient, name: str, *, whole: bool = False) -> None:
        """The pointer names what its history says, and history has every flip that was acknowledged."""
        flipped = self.journal.flipped[name]
        pointer = await client.pointer_or_none(name)
        if pointer is None:
            assert not flipped
            return
        found: dict[int, str | None] = {}
        limit = _LIST_MAX if whole else 100
        while True:
            page = await client.history(name, limit=limit, before=min(found, default=None))
            found.update((item.flip, item.to) for item in page.items)
            if len(page.items) < limit or not whole:
                break
        assert {flip: to for flip, to in flipped.items() if flip >= min(found)}.items() <= found.items()
        assert set(found.values()) <= self.journal.asked[name]
        assert pointer.flip == max(found)
        assert not whole or pointer.seq == len(found)
        assert pointer.snapshot == found[pointer.flip]
        doubtful = found.keys() - flipped.keys()
        # Each pointer has one deployer, who asks for one flip at a time: an end leaves one in doubt at most.
        assert len(doubtful) <= 1
        self.counts["in doubt"] += len(doubtful)
        flipped.update({flip: str(found[flip]) for flip in doubtful})

    async def judge_whole(self, server: ServerProcess) -> None:
        """Everything, and not a sample."""
        self._newest = 0
        self.journal.unchecked = list(self.journal.pushed)
        await self.judge(server, [])
        waiting = list(self.journal.pushed)

        async def pull_them() -> None:
            async with self.client() as client:
                while waiting:
                    await self.pull_one(client, waiting.pop())

        await asyncio.gather(*(pull_them() for _ in range(PULLERS_AT_THE_END)))
        async with self.client() as client:
            for name in POINTERS:
                await self.judge_pointer(client, name, whole=True)
            report = await client.audit(full=True)
            assert report.ok, report.findings

    async def _fsck(self, server: ServerProcess) -> None:
        report = await asyncio.to_thread(server.http.post, "/v1/fsck?full=1", b"")
        assert report.json["ok"], report.json["findings"]
        self.counts["fsck runs"] += 1

    async def run(self, kills: int) -> None:
        """End servers until so many of them were killed."""
        server = await asyncio.to_thread(self.start)
        restarts = 0
        try:
            async with self.client() as client:
                await self.push_one(client)
            while self.kills < kills:
                following = await self.besiege(server)
                if following is None:
                    while self.random.random() < 0.2:
                        await self._kill_while_opening()
                    following = await asyncio.to_thread(self.start)
                server = following
                restarts += 1
                fresh = self.journal.unchecked
                sample = self.random.sample(fresh, min(len(fresh), PULLED_EACH_TIME))
                await self.judge(server, [*sample, self.random.choice(list(self.journal.pushed))])
                if restarts % FSCK_EVERY == 0:
                    await self._fsck(server)
            await self._fsck(server)
            await self.judge_whole(server)
            assert await asyncio.to_thread(server.stop) == 0
        finally:
            server.kill()
            self.journal.close()
        assert fsck_directory(self.store, full=True).ok
        assert not list((self.store / "tmp").iterdir())

    async def _kill_while_opening(self) -> None:
        after_s = self.random.uniform(0.1, 0.8)
        await asyncio.to_thread(KilledWhileOpening, self.store, self.created, "--listen", self._listen, after_s=after_s)
        self.counts["kills while opening"] += 1

    def say(self) -> str:
        """What it came to, in a line."""
        journal = self.journal
        flips = sum(len(flips) for flips in journal.flipped.values())
        told = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        return f"{told}; acknowledged: {len(journal.pushed)} pushes, {len(journal.published)} snapshots, {flips} flips"


def hash_directory(path: Path) -> str:
    """The same for directories in which everything is the same: names, modes, links and bytes."""
    whole = hashlib.sha256()
    for name, item in sorted(read_directory(path).items()):
        whole.update(repr((name, item)).encode())
    return whole.hexdigest()
