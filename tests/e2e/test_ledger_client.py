"""The ledger's half of the SDK against the real server, honest and not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore.clock import ManualClock, SystemClock
from casstore.errors import (
    ConfigurationError,
    DigestMismatch,
    Held,
    InvalidDigest,
    InvalidInput,
    NoRollbackTarget,
    NotFound,
    PreconditionFailed,
    Regression,
    SnapshotBad,
    SnapshotNotFound,
    Superseded,
    TokenNotFound,
    VerificationError,
)
from casstore.wire import RollbackTo
from casstore_client.blocking import Client
from casstore_client.facts import ProvenEntry
from tests.support.clients import client_of, release
from tests.support.rogue import Asked, Meddler, meddle
from tests.support.server import Running, make_store, run_in_thread

PTR = "prod/api"


@pytest.fixture
def client(server: Running, tmp_path: Path) -> Iterator[Client]:
    with client_of(server, tmp_path / "verified") as client:
        yield client


@pytest.fixture
def two(client: Client, tmp_path: Path) -> tuple[str, str]:
    """Two published snapshots."""
    first = release(client, tmp_path, "one", {"bin/app": b"1", "etc/conf": b"x"})
    return first, release(client, tmp_path, "two", {"bin/app": b"2", "etc/conf": b"x"})


def test_a_release_from_push_to_rollback_and_back(client: Client, two: tuple[str, str]) -> None:
    """The main job, each answer verified before it is returned."""
    first, second = two
    assert client.pointer_or_none(PTR) is None
    made = client.flip(PTR, first, expect=None, reason="CHG-1")
    (pointer,) = made.pointers
    assert (pointer.snapshot, pointer.by, pointer.kind, pointer.seq) == (first, "operator", "init", 1)
    assert client.flip(PTR, first, expect=pointer.flip).no_op
    moved = client.flip(PTR, second, expect="any", reason="CHG-2")
    assert client.pointer(PTR).previous is not None

    back = client.rollback(PTR, expect=moved.entry, reason="errors")
    assert back.pointers[0].snapshot == first
    assert back.pointers[0].hold is not None
    with pytest.raises(NoRollbackTarget):
        client.rollback(PTR, expect="any")
    with pytest.raises(SnapshotBad):
        client.flip(PTR, second, expect="any")
    client.mark(PTR, second, "good")
    with pytest.raises(Held):
        client.flip(PTR, second, expect="any")
    client.release(PTR)
    client.flip(PTR, second, expect="any")
    assert client.rollback(PTR, to=RollbackTo(flip=made.entry), expect="any", leave_hold=False).pointers[0].hold is None
    assert [item.kind for item in client.history(PTR, limit=3).items] == ["rollback", "deploy", "rollback"]
    assert {candidate.snapshot for candidate in client.rollback_candidates(PTR).candidates} == {second}


def test_promote_hold_and_retire(client: Client, two: tuple[str, str]) -> None:
    """Production gets exactly what was tested; a name that is retired names nothing, and says so."""
    client.flip("test/api", two[0], expect=None)
    assert client.promote("test/api", PTR, expect=None).pointers[0].snapshot == two[0]
    until = SystemClock().now_ms() + 60_000
    hold = client.hold(PTR, until_ms=until, reason="freeze").pointers[0].hold
    assert hold is not None
    assert hold.until is not None
    gone = client.retire("test/api", expect="any")
    assert gone.pointers[0].snapshot is None
    with pytest.raises(InvalidInput, match="retired"):
        client.promote("test/api", PTR, expect="any")
    with pytest.raises(InvalidInput, match="retired"):
        client.resolve("test/api")
    assert [pointer.pointer for pointer in client.pointers("test/").pointers] == ["test/api"]


def test_a_beaten_deployer_is_told_who_won(client: Client, two: tuple[str, str]) -> None:
    """Compare-and-swap names flips: the loser learns where the pointer is, and nothing changed."""
    won = client.flip(PTR, two[0], expect=None)
    for expect in (None, won.entry + 1000):
        with pytest.raises(PreconditionFailed, match="Nothing changed"):
            client.flip(PTR, two[1], expect=expect)
    assert client.pointer(PTR).snapshot == two[0]


def test_what_was_live_when(client: Client, two: tuple[str, str]) -> None:
    """Before the first flip, between two, and now; by time and by log index."""
    first = client.flip(PTR, two[0], expect=None)
    second = client.flip(PTR, two[1], expect=first.entry)
    then = client.was_live(PTR, first.pointers[0].since)
    assert (then.snapshot, then.valid_until) == (two[0], second.pointers[0].since)
    assert client.was_live(PTR, f"f{second.entry}").snapshot == two[1]
    assert client.was_live(PTR, "2020-01-01T00:00:00Z").snapshot is None


def test_the_policy_changes_hands(client: Client, two: tuple[str, str]) -> None:
    """A new policy is walked to; flips before it are still judged by the old one."""
    flipped = client.flip(PTR, two[0], expect=None)
    policy = client.policy()
    document = {**policy.policy, "version": 2, "publishers": []}
    client.set_policy(document, reason="no more snapshots")
    assert client.policy().version == 2
    assert client.pointer(PTR).flip == flipped.entry
    assert client.flip(PTR, two[1], expect=flipped.entry).pointers[0].snapshot == two[1]
    for wrong in ({}, {**document, "version": True}, {**document, "rules": 7}):
        with pytest.raises(InvalidInput):
            client.set_policy(wrong)


def test_names_and_shortened_digests(client: Client, two: tuple[str, str]) -> None:
    """What a person types means one thing, or is refused."""
    client.flip(PTR, two[0], expect=None)
    assert client.resolve(two[1]) == two[1]
    assert client.resolve(two[1][7:19], "snapshot") == two[1]
    assert client.resolve(PTR, "snapshot") == two[0]
    tree = client.resolve("one")
    assert client.resolve_artifact("one") == ("tree", tree)
    for wrong, error in (("nothing/here", SnapshotNotFound), (tree[7:27], SnapshotNotFound), ("blake3:zz", NotFound)):
        with pytest.raises(error):
            client.resolve(wrong, "snapshot" if error is SnapshotNotFound else None)
    with pytest.raises(InvalidDigest):
        client.resolve("blake3:" + "G" * 64)


def test_snapshots_entries_proofs_and_tokens(client: Client, two: tuple[str, str]) -> None:
    """The smaller reads, each held against what it must be."""
    document = client.snapshot_document(two[0])
    assert [(component.name, component.kind) for component in document.components] == [("app", "tree")]
    assert [info.digest for info in client.snapshots().snapshots] == [two[1], two[0]]
    entries = client.entries(0, 10)
    assert [entry.entry.type for entry in entries] == ["genesis", "snapshot", "snapshot"]
    assert isinstance(entries[1], ProvenEntry)
    assert client.entry(1) == entries[1]
    assert client.inclusion_proof(1).startswith(b"c2sp.org/tlog-proof@v1\nindex 1\n")
    made = client.token_create("ci", ["content:push"], expires_in_s=60)
    assert made.secret
    assert made.id in {token.id for token in client.token_list().tokens}
    client.token_revoke(made.id)
    with pytest.raises(TokenNotFound):
        client.token_revoke(made.id)
    assert client.fsck().ok
    assert client.status()["log_size"] == 3
    with pytest.raises(NotFound):
        client.entry(99)


def test_without_trust_reading_works_and_signing_does_not(
    server: Running, client: Client, two: tuple[str, str], tmp_path: Path
) -> None:
    """Nobody signs over what they have not verified."""
    client.flip(PTR, two[0], expect=None)
    with client_of(server, tmp_path / "none", trust=False) as blind:
        assert not blind.verifies
        assert blind.pointer(PTR).snapshot == two[0]
        assert blind.was_live(PTR, "f3").snapshot == two[0]
        assert blind.entry(0).entry.type == "genesis"
        for needs_trust in (
            lambda: blind.flip(PTR, two[1], expect="any"),
            blind.checkpoint,
            lambda: blind.inclusion_proof(0),
        ):
            with pytest.raises(ConfigurationError, match="trust file"):
                needs_trust()
    with client_of(server, tmp_path / "other", key=False) as reader, pytest.raises(ConfigurationError, match="key"):
        reader.flip(PTR, two[1], expect="any")


# --- a server, or somebody on the way, that lies ---------------------------------------------------------------------


@pytest.fixture
def meddled(server: Running, client: Client, two: tuple[str, str], tmp_path: Path) -> Iterator[tuple[Meddler, Client]]:
    """A second user of the same server, behind a meddler; there are two pointers."""
    client.flip(PTR, two[0], expect=None)
    client.flip("prod/web", two[1], expect=None)
    with meddle(server.url) as (meddler, url), client_of(server, tmp_path / "meddled", url=url) as user:
        yield meddler, user


def change(path: str, edit: Callable[[dict[str, Any]], None]) -> Callable[[Asked, bytes], bytes]:
    """A lie in the JSON answers of one path."""

    def lie(asked: Asked, body: bytes) -> bytes:
        if not asked.path.startswith(path):
            return body
        document = json.loads(body)
        edit(document)
        return json.dumps(document).encode()

    return lie


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(name, value)


POINTER_LIES = {
    "another flip": set_field("flip", 2),
    "another author": set_field("by", "mallory"),
    "another reason": set_field("reason", "all is well"),
    "no proof": set_field("proof", None),
    "another pointer": set_field("pointer", "prod/web"),
    "no state": lambda document: document["proof"].__setitem__("state", document["proof"]["state"][1:]),
    "no policy": lambda document: document["proof"].__setitem__("state", document["proof"]["state"][:1]),
    "no entry": lambda document: document["proof"].__setitem__("entries", []),
    "another entry": lambda document: document["proof"]["entries"][0].__setitem__("index", 1),
    "an older head": lambda document: document["proof"].__setitem__("head", document["proof"]["entries"][0]),
    "an unsigned checkpoint": lambda document: document["proof"].__setitem__(
        "checkpoint", document["proof"]["checkpoint"].split("\n— ")[0] + "\n"
    ),
}


def test_lies_about_a_pointer(meddled: tuple[Meddler, Client]) -> None:
    """Whatever is changed in the answer, the user hears of it, and nothing of it is remembered."""
    meddler, user = meddled
    honest = user.pointer(PTR)
    for name, lie in POINTER_LIES.items():
        meddler.lie = change(f"/v1/pointers/{PTR}", lie)
        with pytest.raises(VerificationError):
            pytest.fail(f"{name} was believed: {user.pointer(PTR)}")
    meddler.lie = lambda _, body: body
    assert user.pointer(PTR).flip == honest.flip


def test_another_pointers_proof(meddled: tuple[Meddler, Client]) -> None:
    """A valid proof of something else proves nothing."""
    meddler, user = meddled
    other = user.pointer("prod/web")
    assert other.proof is not None
    proof = msgspec.to_builtins(other.proof)
    meddler.lie = change(f"/v1/pointers/{PTR}", set_field("proof", proof))
    with pytest.raises(VerificationError, match="no proof of the state"):
        user.pointer(PTR)


def test_a_replayed_answer_is_a_regression(
    meddled: tuple[Meddler, Client], client: Client, two: tuple[str, str], tmp_path: Path
) -> None:
    """The network replays yesterday's answer, all of it genuine."""
    meddler, user = meddled
    kept: list[bytes] = []

    def keep(asked: Asked, body: bytes) -> bytes:
        if asked.path.startswith(f"/v1/pointers/{PTR}"):
            kept.append(body)
        return body

    meddler.lie = keep
    user.pointer(PTR)
    client.flip(PTR, two[1], expect="any")
    user.pointer(PTR)
    meddler.lie = lambda asked, body: kept[0] if asked.path.startswith(f"/v1/pointers/{PTR}") else body
    with pytest.raises(Regression):
        user.pointer(PTR)
    (alarm,) = (tmp_path / "meddled").glob("contradiction-*")
    assert (alarm / "held.note").read_bytes() != (alarm / "shown.note").read_bytes()


def test_an_act_that_was_not_carried_out(meddled: tuple[Meddler, Client], two: tuple[str, str]) -> None:
    """The answer to an earlier flip is not the answer to this one."""
    meddler, user = meddled
    kept: list[bytes] = []

    def keep(asked: Asked, body: bytes) -> bytes:
        if asked.path == "/v1/flips":
            kept.append(body)
            return kept[0]
        return body

    meddler.lie = keep
    user.flip(PTR, two[1], expect="any", clear_bad=True)
    with pytest.raises(VerificationError):
        user.flip(PTR, two[0], expect="any")


def test_a_pointer_that_is_said_never_to_have_been(meddled: tuple[Meddler, Client], tmp_path: Path) -> None:
    """A deployer who is told so would flip with `expect none`; who has seen the pointer knows better."""
    meddler, user = meddled
    user.pointer(PTR)
    created = make_store(tmp_path / "empty")
    with run_in_thread(tmp_path / "empty", created) as empty:
        honest = meddler.upstream
        meddler.upstream = empty.url
        meddler.token = empty.token
        for question in (lambda: user.pointer_or_none(PTR), lambda: user.was_live(PTR, "f3")):
            with pytest.raises(Regression, match="never was"):
                question()
        meddler.upstream, meddler.token = honest, None
        assert user.pointer_or_none("prod/none") is None


def test_a_shortened_digest_made_into_another(meddled: tuple[Meddler, Client], two: tuple[str, str]) -> None:
    """Whoever types `flip prod/api 93254aabe5c8` signs what the server makes of it."""
    meddler, user = meddled
    for other in (two[1], two[0][:-1], two[0] + "0", f"BLAKE3:{two[0][7:]}", ""):
        meddler.lie = change("/v1/resolve", set_field("digests", [other]))
        for question in (
            lambda: user.resolve(two[0][7:19], "snapshot"),
            lambda: user.resolve(two[0][7:19]),
            lambda: user.resolve_artifact(two[0][7:19]),
        ):
            with pytest.raises(DigestMismatch, match="is short for"):
                question()


ROLLBACKS = {
    "what never was live": ("previous", {"target": 1}),
    "a flip of another pointer": ("previous", {"target": 1, "target_flip": 4}),
    "no flip": ("previous", {"target_flip": 1}),
    "another snapshot": ("snapshot", {"target": 2, "target_flip": 5}),
    "another flip": ("flip", {"target": 2, "target_flip": 5}),
    "another number": ("seq", {"target": 2, "target_flip": 5}),
    "another time": ("before", {"target": 2, "target_flip": 5}),
}


@pytest.mark.parametrize("name", ROLLBACKS)
def test_a_rollback_that_the_server_takes_elsewhere(
    name: str, meddled: tuple[Meddler, Client], two: tuple[str, str], client: Client, tmp_path: Path
) -> None:
    """The target is the server's answer, and is signed: it was live on this pointer, and is what was asked for."""
    meddler, user = meddled
    third = release(client, tmp_path, "three", {"bin/app": b"3"})
    client.flip(PTR, third, expect="any")
    last = client.flip(PTR, two[0], expect="any").pointers[0]
    assert user.pointer(PTR).flip == last.flip
    how, lie = ROLLBACKS[name]
    first = client.history(PTR).items[-1]
    ways = {
        "snapshot": RollbackTo(snapshot=two[0]),
        "flip": RollbackTo(flip=first.flip),
        "seq": RollbackTo(seq=1),
        "before": RollbackTo(before=client.history(PTR).items[1].at),
    }
    digests = (*two, third)
    told = {key: digests[value] if key == "target" else value for key, value in lie.items()}
    flips = {item.to: item.flip for item in client.history(PTR).items}
    if how != "previous":
        told["target_flip"] = flips[third]
    honest = user.rollback_target(PTR, ways.get(how, "previous"))
    assert honest.target == (third if how == "previous" else two[0])
    meddler.lie = change(f"/v1/pointers/{PTR}/rollback-target", lambda document: document.update(told))
    with pytest.raises(VerificationError):
        user.rollback(PTR, to=ways.get(how, "previous"), expect=last.flip)
    assert client.pointer(PTR).flip == last.flip


def test_a_rollback_goes_where_it_was_agreed(client: Client, two: tuple[str, str]) -> None:
    """What a person saw and agreed to is what is signed, or nothing is."""
    client.flip(PTR, two[0], expect=None)
    flip = client.flip(PTR, two[1], expect="any").pointers[0].flip
    with pytest.raises(Superseded, match="Nothing changed"):
        client.rollback(PTR, expect=flip, agreed=two[1])
    assert client.pointer(PTR).flip == flip
    assert client.rollback(PTR, expect=flip, agreed=two[0]).pointers[0].snapshot == two[0]


def test_a_name_that_looks_like_a_digest(client: Client, two: tuple[str, str], tmp_path: Path) -> None:
    """Who may push could name their artifact with the first digits of somebody else's digest."""
    _, tree = client.resolve_artifact("one")
    short = tree[7:19]
    (tmp_path / "mine").write_bytes(b"mine")
    client.push(tmp_path / "mine", name=short)
    with pytest.raises(InvalidDigest, match="may mean the artifact"):
        client.resolve_artifact(short)
    assert client.resolve_artifact(f"blake3:{short}") == ("tree", tree)
    client.flip(two[0][7:19], two[1], expect=None)
    with pytest.raises(InvalidDigest, match="or the pointer"):
        client.resolve(two[0][7:19], "snapshot")
    assert client.resolve(f"blake3:{two[0][7:19]}", "snapshot") == two[0]


def test_another_document_for_a_snapshot(meddled: tuple[Meddler, Client], two: tuple[str, str]) -> None:
    """What is pulled next hangs on it."""
    meddler, user = meddled
    meddler.lie = lambda asked, body: body.replace(b"one", b"six") if "/v1/snapshots/" in asked.path else body
    with pytest.raises(DigestMismatch):
        user.snapshot_document(two[0])


def test_a_proof_file_of_another_entry(meddled: tuple[Meddler, Client]) -> None:
    """What is handed on to other people's programs is checked first."""
    meddler, user = meddled
    other = user.inclusion_proof(2)
    meddler.lie = lambda asked, body: other if "/proof/inclusion" in asked.path else body
    with pytest.raises(VerificationError):
        user.inclusion_proof(1)


def test_a_clock_that_stands_still(server: Running, client: Client, two: tuple[str, str], tmp_path: Path) -> None:
    """A genuine answer that is too old is refused: somebody may be keeping the newer ones back."""
    client.flip(PTR, two[0], expect=None)
    clock = ManualClock(SystemClock().now_ms())
    clock.advance(3_600_000)
    with client_of(server, tmp_path / "late", clock=clock) as late, pytest.raises(VerificationError, match="s old"):
        late.pointer(PTR)


def test_two_servers_with_one_key(tmp_path: Path) -> None:
    """A fork: a copy of the store goes its own way.  Who saw one branch does not follow the other, and keeps both notes."""
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created) as running, client_of(running, tmp_path / "setup") as client:
        first = release(client, tmp_path, "one", {"app": b"1"})
        second = release(client, tmp_path, "two", {"app": b"2"})
    shutil.copytree(tmp_path / "store", tmp_path / "fork")
    with (
        run_in_thread(tmp_path / "store", created) as honest,
        run_in_thread(tmp_path / "fork", created) as forked,
        meddle(honest.url) as (meddler, url),
        client_of(honest, tmp_path / "user", url=url) as user,
        client_of(forked, tmp_path / "setup") as accomplice,
    ):
        user.flip(PTR, first, expect=None)
        accomplice.flip(PTR, second, expect=None)
        accomplice.flip(PTR, first, expect="any")
        meddler.upstream = forked.url
        meddler.deaf_to = "/v1/log/heads"  # an honest server would stop writing when it is shown what it signed
        with pytest.raises(Regression, match="does not continue"):
            user.pointer(PTR)
        with pytest.raises(Regression):
            user.flip(PTR, second, expect=3)
        assert [level.ok for level in user.audit().levels] == [True, False, True, True, True, True, True]
        folders = sorted((tmp_path / "user").glob("contradiction-*"))
        assert folders
        assert all((folder / name).stat().st_size for folder in folders for name in ("held.note", "shown.note"))
        meddler.upstream = honest.url
        assert user.pointer(PTR).snapshot == first
