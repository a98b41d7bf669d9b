"""What is believed of a log: against a server that holds the log's key and shows what it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from casstore.clock import ManualClock
from casstore.errors import Regression, VerificationError
from casstore.formats.entry import decode_entry, encode_entry
from casstore.wire import ProofBundle
from casstore_client.facts import Facts
from casstore_client.transport import Transport
from casstore_client.trust_store import TrustStore
from casstore_client.verified_log import VerifiedLog
from tests.support.bundles import CLOCK_KEY, Tree, bundle_of, trust_of
from tests.support.logworld import World, policy_document, rule
from tests.support.rogue import Answered, Asked, serve_answers

PTR = "prod/api"


class Shown:
    """A server that shows ``tree``, and of the policies those that ``policies`` lists."""

    def __init__(self, world: World) -> None:
        self.tree = Tree(world.entries, world.ts)
        self.policies: list[int] = [0]

    def show(self, world: World, *policies: int) -> None:
        self.tree = Tree(world.entries, world.ts)
        self.policies = [0, *policies]

    def answer(self, asked: Asked) -> Answered:
        parts = urlsplit(asked.path)
        query = {name: int(values[0]) for name, values in parse_qs(parts.query).items()}
        found: Any
        if parts.path == "/v1/log/proof/consistency":
            found = self.tree.consistency(query["from"], query["to"])
        else:
            assert parts.path == "/v1/log/policies"
            found = self.tree.list([index for index in self.policies if index > query.get("after", -1)])
        return Answered(200, {"Content-Type": "application/json"}, msgspec.json.encode(found))


@pytest.fixture
def world() -> World:
    world = World(policy_document(rule("**", ["alice"]), people=["alice", "bob"]), snapshots="AB")
    world.flip(PTR, "A", "init")
    return world


class Reader:
    """A user: each question is a command of its own, so everything is remembered on disk or not at all."""

    def __init__(self, url: str, directory: Path, clock: ManualClock) -> None:
        self.url = url
        self.store = TrustStore(trust_of(World()), directory)
        self.clock = clock

    def trusting(self, world: World) -> Reader:
        self.store = TrustStore(trust_of(world), self.store.directory)
        return self

    def ask(self, question: Callable[[VerifiedLog], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with Transport(self.url, token=None) as transport:
                return await question(VerifiedLog(transport, self.store, self.clock))

        return asyncio.run(run())

    def take(self, bundle: ProofBundle) -> Facts:
        async def question(log: VerifiedLog) -> Facts:
            return await log.take_bundle(bundle, await log.baseline())

        found = self.ask(question)
        assert isinstance(found, Facts)
        return found

    def note(self, note: bytes) -> None:
        async def question(log: VerifiedLog) -> None:
            await log.take_note(note, await log.baseline())

        self.ask(question)

    @property
    def alarms(self) -> list[Path]:
        return sorted(self.store.directory.glob("contradiction-*"))


@pytest.fixture
def shown(world: World) -> Shown:
    return Shown(world)


@pytest.fixture
def reader(world: World, shown: Shown, tmp_path: Path) -> Iterator[Reader]:
    with serve_answers(shown.answer) as url:
        yield Reader(url, tmp_path / "state", ManualClock(world.ts)).trusting(world)


def test_an_answer_is_verified_and_remembered(world: World, shown: Shown, reader: Reader) -> None:
    """The thin path: believed, with its author, and the next answer continues it."""
    facts = reader.take(bundle_of(world, PTR))
    assert facts.principals == {3: ["alice"]}
    state = reader.store.load()
    assert state is not None
    assert (state.note, state.flips) == (Tree(world.entries, world.ts).note, {PTR: 3})
    world.flip(PTR, "B")
    shown.show(world)
    reader.take(bundle_of(world, PTR))
    state = reader.store.load()
    assert state is not None
    assert state.flips == {PTR: 4}


def test_an_older_log_is_a_regression(world: World, shown: Shown, reader: Reader) -> None:
    """A replayed checkpoint would take a host back to what was rolled back from: alarm, and both notes kept."""
    old = bundle_of(world, PTR)
    world.flip(PTR, "B")
    shown.show(world)
    new = bundle_of(world, PTR)
    reader.take(new)
    with pytest.raises(Regression, match="it had 5 before"):
        reader.take(old)
    (alarm,) = reader.alarms
    assert (alarm / "held.note").read_bytes() == new.checkpoint.encode()
    assert (alarm / "shown.note").read_bytes() == old.checkpoint.encode()
    reader.take(new)


@pytest.mark.parametrize("more", [0, 1, 3])
def test_a_fork_is_a_regression(world: World, shown: Shown, reader: Reader, more: int) -> None:
    """One key, two histories: whoever saw one of them is not taken in by the other, be it as long or longer."""
    other = World(policy_document(rule("**", ["alice"]), people=["alice", "bob"]), snapshots="AB")
    other.flip(PTR, "B", "init")
    reader.take(bundle_of(world, PTR))
    for number in range(more):
        other.flip(PTR, "AB"[number % 2])
    shown.show(other)
    with pytest.raises(Regression, match="REGRESSION"):
        reader.take(bundle_of(other, PTR))
    assert len(reader.alarms) == 1


def test_a_log_that_contradicts_the_trust_file_is_a_regression(world: World, reader: Reader) -> None:
    """The first contact is held against the pinned minimum."""
    tree = Tree(world.entries)
    trust = trust_of(world)._replace(minimum_size=len(world.entries), minimum_root=b"\1" * 32)
    reader.store = TrustStore(trust, reader.store.directory)
    with pytest.raises(Regression):
        reader.note(tree.note)
    (alarm,) = reader.alarms
    assert (alarm / "held.note").read_text().split("\n")[1] == str(len(world.entries))


def test_a_checkpoint_without_a_fresh_time_is_not_believed(world: World, reader: Reader) -> None:
    """A frozen view of the log is an attack as well: it must be at most as old as the trust file says."""
    tree = Tree(world.entries, world.ts)
    reader.clock.advance(reader.store.trust.max_age_s * 1000 + 1000)
    with pytest.raises(VerificationError, match="s old"):
        reader.note(tree.note)
    unsigned = tree.note.split(f"— {CLOCK_KEY.name}".encode())[0]
    with pytest.raises(VerificationError, match="nobody vouches"):
        reader.note(unsigned)
    assert reader.store.load() is None
    with pytest.raises(VerificationError):
        reader.note(b"not a note")


def test_another_logs_genesis_is_refused(world: World, shown: Shown, reader: Reader) -> None:
    """The same key under the same origin with another first entry: another first policy, and so other rulers."""
    usurped = World(policy_document(rule("**", ["bob"]), people=["bob"]), snapshots="")
    shown.show(usurped)
    with pytest.raises(VerificationError, match="first entry"):
        reader.take(bundle_of(usurped))


def test_a_policy_change_is_walked(world: World, shown: Shown, reader: Reader) -> None:
    """Flips before and after it are judged by the policy of their time."""
    reader.take(bundle_of(world, PTR))
    document = policy_document(rule("**", ["bob"]), people=["alice", "bob"], version=2)
    policy = world.set_policy(document)
    shown.show(world, policy.idx)
    assert reader.take(bundle_of(world, PTR)).principals == {3: ["alice"]}
    world.flip(PTR, "B", who=["bob"])
    shown.show(world, policy.idx)
    assert reader.take(bundle_of(world, PTR)).principals == {5: ["bob"]}
    assert reader.ask(lambda log: log.policy_version()) == 2
    reader.ask(lambda log: log.check_policy(policy.idx, document))
    with pytest.raises(VerificationError):
        reader.ask(lambda log: log.check_policy(policy.idx, {**document, "version": 3}))


@pytest.mark.parametrize("policies", [(), (2,), (4, 4), (4, 1)])
def test_hidden_or_invented_policies_are_caught(
    world: World, shown: Shown, reader: Reader, policies: tuple[int, ...]
) -> None:
    """A policy that is kept from a reader would let a revoked key go on signing."""
    policy = world.set_policy(policy_document(rule("**", ["bob"]), people=["alice", "bob"], version=2))
    assert policy.idx == 4
    shown.show(world, *policies)
    if policies:
        shown.policies = [0, *policies]
    with pytest.raises(VerificationError):
        reader.take(bundle_of(world, PTR))


def test_a_policy_by_who_may_not_make_it_is_refused(world: World, shown: Shown, reader: Reader) -> None:
    """The log's key can append what it likes; it cannot sign for the root threshold."""
    document = policy_document(rule("**", ["bob"]), people=["alice", "bob"], version=2)
    honest = world.set_policy(document)
    assert honest.entry is not None
    stolen = decode_entry(world.entries[4])._replace(auth=world.sign(honest.args, ["bob"], policy=1).envelope)
    world.entries[4] = encode_entry(stolen)
    shown.show(world, 4)
    with pytest.raises(VerificationError, match="not made by who may make it"):
        reader.take(bundle_of(world, PTR))


def test_a_flip_by_who_may_not_make_it_is_refused(world: World, shown: Shown, reader: Reader) -> None:
    """A server that invents a flip has no key that the policy names."""
    signed = world.sign(world.flip_args(PTR, "B"), ["bob"])
    planned = world.flip(PTR, "B")
    assert planned.entry is not None
    world.entries[4] = encode_entry(planned.entry._replace(auth=signed.envelope))
    shown.show(world)
    with pytest.raises(VerificationError, match="was not allowed"):
        reader.take(bundle_of(world, PTR))


def test_a_state_with_an_older_flip_is_a_regression(world: World, shown: Shown, reader: Reader) -> None:
    """A log key can sign a newer checkpoint whose state says that a pointer is where it was: the client knows better."""
    world.flip(PTR, "B")
    shown.show(world)
    reader.take(bundle_of(world, PTR))
    older = World(policy_document(rule("**", ["alice"]), people=["alice", "bob"]), snapshots="AB")
    older.flip(PTR, "A", "init")
    world.hold(PTR)
    world.entries[-1] = encode_entry(world.entry()._replace(state=older.machine.root))
    world.machine.state = older.machine.state
    shown.show(world)
    with pytest.raises(Regression, match="it was at f4 before"):
        reader.take(bundle_of(world, PTR))


def test_the_states_policy_must_be_the_walks(world: World, shown: Shown, reader: Reader) -> None:
    """Which policy is in force is a claim of the state; the walk from the genesis decides."""
    other = World(policy_document(rule("**", ["bob"]), people=["alice", "bob"]), snapshots="AB")
    world.entries[-1] = encode_entry(world.entry()._replace(state=other.machine.root))
    world.machine.state = other.machine.state
    shown.show(world)
    with pytest.raises(VerificationError, match="does not lead there"):
        reader.take(bundle_of(world, entries=[]))
