"""Levels 1 to 6 of the audit, against a server that serves whatever log a test makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from casstore.clock import ManualClock
from casstore.errors import ConfigurationError, Unavailable, VerificationError
from casstore.formats.entry import decode_entry, encode_entry
from casstore.formats.note import sign_note
from casstore.merkle import Frontier, leaf_hash
from casstore.signing import SigningKey
from casstore.tiles import ENTRIES, TilePath, encode_entries_tile, encode_hash_tile, parse_tile_path
from casstore.transitions.authority import act_of
from casstore_client.audit_report import AuditLevel, AuditProgress, AuditReport
from casstore_client.client import AsyncClient
from casstore_client.trust_store import TrustStore
from tests.support.bundles import Tree, trust_of
from tests.support.logworld import ORIGIN, START_MS, World, policy_document, rule, snap
from tests.support.rogue import Answered, Asked, serve_answers

PTR = "prod/api"


class TileServer:
    """Serves a log in its public form.

    ``entries`` and ``leaves`` are what the tiles hold; a test may make them disagree.  ``lost`` are tiles that are not there.
    """

    def __init__(self, world: World) -> None:
        self.tree = Tree(world.entries, world.ts)
        self.note = self.tree.note
        self.entries = list(world.entries)
        self.leaves = [leaf_hash(entry) for entry in world.entries]
        self.uppers = self.leaves
        """What the tiles of level 1 and above are computed from."""
        self.lost: set[str] = set()
        self.busy = False

    def answer(self, asked: Asked) -> Answered:
        if self.busy:
            return _problem(503, "overloaded")
        if asked.path == "/log/checkpoint":
            return Answered(200, {"Content-Type": "text/plain; charset=utf-8"}, self.note)
        if asked.path.startswith("/v1/log/proof/consistency"):
            query = parse_qs(urlsplit(asked.path).query)
            proof = self.tree.consistency(int(query["from"][0]), int(query["to"][0]))
            return Answered(200, {"Content-Type": "application/json"}, msgspec.json.encode(proof))
        path = asked.path.removeprefix("/log/")
        if not path.startswith("tile/") or path in self.lost:
            return _problem(404, "snapshot-not-found" if "snapshots" in path else "entry-not-found")
        return Answered(200, {"Content-Type": "application/octet-stream"}, self._tile(parse_tile_path(path)))

    def _tile(self, tile: TilePath) -> bytes:
        run = slice(tile.n * 256, tile.n * 256 + tile.width)
        if tile.level == ENTRIES:
            return encode_entries_tile(self.entries[run])
        hashes = self.uppers if tile.level else self.leaves
        for _ in range(int(tile.level)):
            hashes = [_root(hashes[start : start + 256]) for start in range(0, len(hashes) // 256 * 256, 256)]
        return encode_hash_tile(hashes[run])


def _root(hashes: list[bytes]) -> bytes:
    frontier = Frontier()
    for value in hashes:
        frontier.append(value)
    return frontier.root


def _problem(status: int, code: str) -> Answered:
    body = f'{{"type":"about:blank","title":"t","status":{status},"detail":"no","code":"{code}"}}'
    return Answered(status, {"Content-Type": "application/problem+json"}, body.encode())


def make_world(flips: int = 4) -> World:
    world = World(policy_document(rule("**", ["alice"]), people=["alice", "bob"]), snapshots="AB")
    for number in range(flips):
        world.flip(PTR, "AB"[number % 2], "deploy" if number else "init")
    return world


class Auditor:
    """Runs audits, each as a command of its own."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.server = TileServer(world)
        self.store = TrustStore(trust_of(world), directory)
        self.clock = ManualClock(world.ts)
        self.url = ""
        self.told: list[AuditProgress] = []

    def show(self, world: World) -> None:
        self.server = TileServer(world)

    def audit(self) -> AuditReport:
        async def run() -> AuditReport:
            async with AsyncClient(self.url, trust=self.store, clock=self.clock) as client:
                return await client.audit(progress=self.told.append)

        return asyncio.run(run())

    def levels(self) -> dict[int, AuditLevel]:
        """The levels of an audit; level 7 fails always here, there being no content."""
        return {level.level: level for level in self.audit().levels}

    def bad(self) -> dict[int, int | None]:
        """The levels below 7 that do not hold, with the first bad index."""
        return {number: level.first_bad_index for number, level in self.levels().items() if not level.ok and number < 7}


@pytest.fixture
def make_auditor(tmp_path: Path) -> Iterator[Callable[[World], Auditor]]:
    made: list[Auditor] = []

    def answer(asked: Asked) -> Answered:
        return made[-1].server.answer(asked)

    with serve_answers(answer) as url:

        def make(world: World) -> Auditor:
            made.append(Auditor(world, tmp_path / "state"))
            made[-1].url = url
            return made[-1]

        yield make


@pytest.fixture
def auditor(make_auditor: Callable[[World], Auditor]) -> Auditor:
    return make_auditor(make_world())


def test_a_log_of_many_tiles_holds(make_auditor: Callable[[World], Auditor]) -> None:
    """Full and partial tiles of two levels; the audit is remembered, so a later one must continue it."""
    world = make_world(600)
    auditor = make_auditor(world)
    report = auditor.audit()
    assert [level.ok for level in report.levels] == [True] * 6 + [False]
    assert [level.checked for level in report.levels[3:6]] == [603] * 3
    assert (report.size, report.root) == (603, world.roots[-1].hex())
    state = auditor.store.load()
    assert state is not None
    assert state.note == auditor.server.note
    assert [told.done for told in auditor.told if told.level == 1] == [603]

    auditor.show(world)
    auditor.server.uppers = auditor.server.leaves.copy()
    auditor.server.leaves[300] = b"\7" * 32
    report = auditor.audit()
    # The bytes of the entries lead to the signed root, so it is the tile that is wrong.
    (finding,) = [finding for finding in report.findings if finding.level == 1]
    assert (finding.code, finding.object) == ("tile-mismatch", "leaf hash of entry 300")
    assert auditor.bad() == {1: 300}

    auditor.show(world)
    auditor.server.uppers = [*auditor.server.leaves[:10], b"\7" * 32, *auditor.server.leaves[11:]]
    (finding,) = [finding for finding in auditor.audit().findings if finding.level == 1]
    assert finding.object == "hash 0 of tile/1/000.p/2, over the entries from 0 on"


def test_an_edited_entry_is_named(auditor: Auditor) -> None:
    """The tree was not touched: only hashing the bytes shows it.  The levels behind are judged all the same."""
    data = auditor.server.entries[4]
    auditor.server.entries[4] = data.replace(b'"ts":', b'"ts":1', 1)
    report = auditor.audit()
    (finding,) = [finding for finding in report.findings if finding.level == 1]
    assert (finding.code, finding.object, finding.where) == (
        "entry-mismatch",
        "entry 4",
        "position 4 of tile/entries/000.p/7",
    )
    assert finding.expected == leaf_hash(data).hex()
    assert {level.level: level.first_bad_index for level in report.levels if not level.ok and level.level < 7} == {
        1: 4,
        4: 4,
        5: 4,
    }
    assert report.levels[3].checked == 7
    assert auditor.store.load() is None


def test_an_edited_entry_whose_tree_was_edited_too(auditor: Auditor) -> None:
    """Whoever rewrites the tree as well has the signed root against them, and everyone who signed later."""
    auditor.server.entries[4] = auditor.server.entries[4][:-1] + b"]"
    auditor.server.leaves = [leaf_hash(entry) for entry in auditor.server.entries]
    assert auditor.bad() == {1: None, 4: 4, 5: 4, 6: 5}


@pytest.mark.parametrize("lost", ["tile/entries/000.p/7", "tile/0/000.p/7"])
def test_a_lost_tile_is_named(auditor: Auditor, lost: str) -> None:
    """Entries without a tree are still judged, a tree without entries is still hashed."""
    auditor.server.lost = {lost}
    report = auditor.audit()
    assert [finding.object for finding in report.findings if finding.level == 1] == [lost]
    assert report.levels[1].ok
    assert report.levels[4].ok == ("/0/" in lost)


def test_a_log_of_which_nothing_is_left(auditor: Auditor) -> None:
    """Nothing can be said of it, and that is no pass."""
    auditor.server.lost = {"tile/entries/000.p/7", "tile/0/000.p/7"}
    report = auditor.audit()
    assert not report.ok
    assert not report.levels[0].ok


def test_a_checkpoint_of_another_key(auditor: Auditor) -> None:
    """Right hashes, signed by nobody whom the user trusts."""
    text = auditor.server.note.split(b"\n\n")[0].decode() + "\n"
    auditor.server.note = sign_note(text, [SigningKey.generate(ORIGIN, b"\5" * 32)])
    assert set(auditor.bad()) == {2, 3}
    auditor.server.note = b"nothing of the kind"
    with pytest.raises(VerificationError, match="not one"):
        auditor.audit()


def test_an_old_checkpoint(auditor: Auditor) -> None:
    """All of it holds, and it is of last week."""
    auditor.clock.advance(7 * 24 * 3600 * 1000)
    assert auditor.bad() == {3: None}


def test_a_log_that_lost_its_end_or_forked(auditor: Auditor) -> None:
    """What was verified before binds the auditor's next audit, and both notes are kept."""
    assert auditor.bad() == {}
    held = auditor.server.note
    shorter = make_world(2)
    auditor.show(shorter)
    assert set(auditor.bad()) == {2}
    forked = make_world(3)
    forked.flip(PTR, "A")
    forked.flip(PTR, "B")
    auditor.show(forked)
    assert auditor.bad() == {2: 7}
    alarms = sorted(auditor.store.directory.glob("contradiction-*"))
    assert [(alarm / "held.note").read_bytes() for alarm in alarms] == [held, held]


def test_another_logs_genesis(auditor: Auditor) -> None:
    """The same key and origin, other first rulers."""
    auditor.show(World(policy_document(rule("**", ["bob"]), people=["bob"]), snapshots=""))
    assert auditor.bad() == {2: 0}


def _rewrite(world: World, index: int, **changes: Any) -> None:
    """What a holder of the log's key can do: any entry, with a tree and a signature that fit."""
    world.entries[index] = encode_entry(decode_entry(world.entries[index])._replace(**changes))


def test_a_signature_that_no_policy_allows(auditor: Auditor) -> None:
    """A flip by bob, whom the rule does not name, in a log that is sound otherwise."""
    world = make_world(2)
    args = world.flip_args(PTR, "A")
    signed = world.sign(args, ["bob"])
    planned = world.flip(PTR, "A")
    assert planned.entry is not None
    _rewrite(world, planned.idx, auth=signed.envelope)
    world.hold(PTR)
    auditor.show(world)
    # Whoever signed later had seen the log before it was rewritten, and their word stands in it.
    assert auditor.bad() == {4: 5, 5: 5, 6: 6}
    assert auditor.levels()[4].checked == 7


def test_a_state_that_does_not_follow(auditor: Auditor) -> None:
    """The log key signs a state of its own making: replay computes another."""
    world = make_world(2)
    _rewrite(world, 4, state=world.entry(3).state)
    auditor.show(world)
    assert auditor.bad() == {5: 4}


def test_a_signer_who_saw_another_log(auditor: Auditor) -> None:
    """Somebody was shown a fork and signed over it: their entry says so for ever."""
    world = make_world(2)
    args = world.flip_args(PTR, "A")
    signed = world.sign(args, seen_root=b"\3" * 32)
    planned = world.flip(PTR, "A")
    assert planned.entry is not None
    _rewrite(world, planned.idx, auth=signed.envelope)
    auditor.show(world)
    assert auditor.bad() == {5: 5, 6: 5}


def test_an_intent_that_is_carried_out_twice(auditor: Auditor) -> None:
    """One signature, two flips: the second was never asked for."""
    world = World(policy_document(rule("**", ["alice"]), people=["alice", "bob"]), snapshots="AB")
    world.flip(PTR, "A", "init")
    held = world.hold(PTR)
    world.release(PTR)
    assert held.entry is not None
    act = world.plan(world.sign(world.flip_args(PTR, "B")))
    assert act.entry is not None
    world.commit(world.plan(act_of(held.entry)))
    auditor.show(world)
    assert auditor.bad() == {4: 6, 5: 6}


def test_a_server_that_does_not_answer_is_no_finding(auditor: Auditor) -> None:
    """Unavailable is not wrong."""
    auditor.server.busy = True

    async def once() -> None:
        async with AsyncClient(auditor.url, trust=auditor.store, clock=auditor.clock) as client:
            client.transport.repeat = _once  # type: ignore[method-assign]  # no pauses between attempts
            with pytest.raises(Unavailable):
                await client.audit()

    asyncio.run(once())

    async def untrusting() -> None:
        async with AsyncClient(auditor.url) as client:
            with pytest.raises(ConfigurationError, match="trust file"):
                await client.audit()

    asyncio.run(untrusting())


async def _once(once, repeatable):  # type: ignore[no-untyped-def]
    return await once()


def test_published_snapshots_are_found_in_a_log_that_does_not_hold(auditor: Auditor) -> None:
    """Level 7 looks at what the entries publish, also behind the entry where the replay ended."""
    world = make_world(2)
    _rewrite(world, 1, state=world.entry(0).state._replace(n=9))
    auditor.show(world)
    report = auditor.audit()
    assert [finding.object for finding in report.findings if finding.level == 7] == [
        f"snapshot {snap('A')}",
        f"snapshot {snap('B')}",
    ]
    assert world.ts > START_MS
