"""Making and opening a store: what is there afterwards, who may read it, and what a restart finds."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.admin import Created, create_store, fsck_directory
from casstore.clock import ManualClock
from casstore.config import Address, ServerSettings, decode_settings, load_settings, parse_address
from casstore.engine.pointers import SignedSubmission
from casstore.engine.tokens import ALL_PERMISSIONS
from casstore.errors import (
    ClockUntrusted,
    ConfigurationError,
    DamagedObject,
    DestinationExists,
    InvalidName,
    LogUnavailable,
    MalformedDocument,
    NotInitialised,
    ReadOnly,
    SnapshotNotFound,
    StoreBusy,
    StoreNotFound,
)
from casstore.formats.acts import Member, SnapshotArgs, args_of, flip_args
from casstore.formats.canonical import decode_b64
from casstore.formats.checkpoint import open_checkpoint
from casstore.formats.entry import decode_entry
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.snapshot import Snapshot, encode_snapshot, snapshot_digest
from casstore.formats.state import LeafProof, PointerLeaf, verify_leaf
from casstore.formats.trust import decode_trust
from casstore.ids import PointerName, SnapshotDigest
from casstore.merkle import leaf_hash, verify_inclusion
from casstore.store import Store

API = PointerName("prod/api")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def created(tmp_path: Path, clock: ManualClock) -> Created:
    return create_store(tmp_path / "store", clock=clock)


@pytest.fixture
def store(tmp_path: Path, created: Created, clock: ManualClock) -> Iterator[Store]:
    with Store.open(tmp_path / "store", clock=clock) as opened:
        yield opened


def sign(store: Store, created: Created, act: str, args: object) -> SignedSubmission:
    now, published = store.clock.now_ms(), store.log.published()
    intent = Intent(
        act=act,
        args=args_of(args),  # type: ignore[arg-type]
        exp=now + 60_000,
        iat=now,
        log=created.origin,
        nonce=os.urandom(16).hex(),
        policy=1,
        seen_root=published.root,
        seen_size=published.size,
        why="because",
    )
    return SignedSubmission(sign_intent(encode_intent(intent), [created.operator_key]))


def publish(store: Store, created: Created, name: str) -> SnapshotDigest:
    document = encode_snapshot(Snapshot(metadata={"name": name}))
    digest = snapshot_digest(document)
    args = SnapshotArgs(digest=digest, parents=[], size=len(document))
    store.publish_snapshot(document, sign(store, created, "snapshot", args))
    return digest


def flip(store: Store, created: Created, to: SnapshotDigest, expect: int | None) -> int:
    kind = "init" if expect is None else "deploy"
    args = flip_args(kind, [Member(expect=expect, pointer=API, to=to)])  # type: ignore[arg-type]
    return store.submit(sign(store, created, "flip", args)).entry


# --- creating ------------------------------------------------------------------------------------------------------------


def test_new_store_hands_out_what_its_owner_needs(tmp_path: Path, created: Created, store: Store) -> None:
    trust = decode_trust(created.trust_file)
    assert trust == created.trust
    genesis = decode_b64(store.log_reader.entry(0).entries[0].entry)
    trust.check_genesis(genesis)
    assert store.genesis_sha256 == hashlib.sha256(genesis).hexdigest()
    opened = open_checkpoint(store.log.checkpoint, trust.log_verifier, trust.origin, [trust.clock_verifier])
    assert (opened.checkpoint.size, opened.checkpoint.root) == (trust.minimum_size, trust.minimum_root)
    assert len(opened.cosignatures) == 1
    identity = store.tokens.authenticate(created.token.secret or "")
    assert (identity.principal, identity.permissions) == ("operator", tuple(sorted(ALL_PERMISSIONS)))
    assert store.pointers.read.policy().policy["principals"][0]["name"] == "operator"
    assert store.fsck(full=True).ok


def test_secrets_are_their_owners_alone(tmp_path: Path, created: Created) -> None:
    """The server's keys can be read by the server's user; the operator's key and token are nowhere in the store."""
    root = tmp_path / "store"
    keys = sorted((root / "keys").iterdir())
    assert [path.name for path in keys] == ["clock", "log"]
    assert stat.S_IMODE((root / "keys").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)
    secret, token = created.operator_key.encode(), (created.token.secret or "").split("_", 2)[2]
    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_size < 1 << 30:
            data = path.read_bytes()
            assert secret.encode() not in data
            assert token.encode() not in data
    assert secret not in repr(created)


def test_create_refuses_what_is_there_already(tmp_path: Path, created: Created) -> None:
    with pytest.raises(DestinationExists):
        create_store(tmp_path / "store")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DestinationExists):
        create_store(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    create_store(tmp_path / "empty")


def test_create_refuses_names_that_no_log_can_have(tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        create_store(tmp_path / "a", operator="Bob Smith")
    for origin in ("", "with space", "plus+sign", "x" * 256):
        with pytest.raises(MalformedDocument):
            create_store(tmp_path / "b", origin=origin)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    made = create_store(tmp_path / "c", operator="bob", origin="example.com/log")
    assert (made.origin, made.operator, made.token.name) == ("example.com/log", "bob", "bob")


# --- opening -------------------------------------------------------------------------------------------------------------


def test_acknowledged_flip_is_there_after_reopen(tmp_path: Path, created: Created, clock: ManualClock) -> None:
    with Store.open(tmp_path / "store", clock=clock) as store:
        one = publish(store, created, "one")
        number = flip(store, created, one, None)
        note = store.log.checkpoint
    with Store.open(tmp_path / "store", clock=clock) as store:
        assert store.pointers.read.pointer(API, proof=True).flip == number
        assert store.log.checkpoint == note
        assert store.snapshots.has(one)
        assert store.fsck(full=True).ok


def test_store_is_open_once(tmp_path: Path, store: Store) -> None:
    with pytest.raises(StoreBusy, match=str(os.getpid())):
        Store.open(tmp_path / "store")
    with pytest.raises(StoreBusy):
        fsck_directory(tmp_path / "store")
    store.close()
    store.close()
    Store.open(tmp_path / "store").close()


def test_what_is_not_a_store_is_refused(tmp_path: Path, created: Created) -> None:
    with pytest.raises(StoreNotFound):
        Store.open(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(NotInitialised):
        Store.open(tmp_path / "other")


@pytest.mark.parametrize("damage", ["missing", "garbage", "swapped"])
def test_key_that_is_not_the_stores_is_named(tmp_path: Path, created: Created, damage: str) -> None:
    key = tmp_path / "store" / "keys" / "log"
    if damage == "missing":
        key.unlink()
    else:
        key.write_bytes(b"\xff" if damage == "garbage" else (tmp_path / "store" / "keys" / "clock").read_bytes())
    with pytest.raises(DamagedObject, match="key"):
        Store.open(tmp_path / "store")
    report = fsck_directory(tmp_path / "store")
    assert [finding.object for finding in report.findings if "key" in finding.object]


def test_restored_ledger_opens_read_only(tmp_path: Path, created: Created, clock: ManualClock) -> None:
    """The ledger comes back from a backup, the signed heads do not: reading goes on, nothing is signed, nothing written."""
    ledger = tmp_path / "store" / "ledger" / "data.mdb"
    with Store.open(tmp_path / "store", clock=clock) as store:
        one = publish(store, created, "one")
        number = flip(store, created, one, None)
    backup = ledger.read_bytes()
    with Store.open(tmp_path / "store", clock=clock) as store:
        flip(store, created, publish(store, created, "two"), number)
    ledger.write_bytes(backup)
    with Store.open(tmp_path / "store", clock=clock) as store:
        assert "older copy" in (store.read_only or "")
        assert store.pointers.read.pointer(API).flip == number
        with pytest.raises(LogUnavailable):
            store.log.published()
        with pytest.raises(ReadOnly):
            store.pointers.submit([])
        with pytest.raises(ReadOnly):
            store.tokens.create("ci", ["operate"])
        assert not store.fsck().ok
    assert "wrong-head" in {finding.code for finding in fsck_directory(tmp_path / "store").findings}


def test_clock_can_be_confirmed(store: Store, created: Created, clock: ManualClock) -> None:
    one = publish(store, created, "one")
    clock.jump(10 * 60_000)
    assert "jumped forward by 600 s" in (store.clock_trouble or "")
    with pytest.raises(ClockUntrusted):
        store.refresh_clock()
    with pytest.raises(ClockUntrusted):
        flip(store, created, one, None)
    store.confirm_clock()
    assert store.clock_trouble is None
    assert flip(store, created, one, None) == 2
    store.refresh_clock()


def test_snapshot_document_is_stored_before_it_is_published(store: Store, created: Created) -> None:
    document = encode_snapshot(Snapshot())
    args = SnapshotArgs(digest=snapshot_digest(document), parents=[], size=len(document))
    with pytest.raises(SnapshotNotFound):
        store.submit(sign(store, created, "snapshot", args))
    store.publish_snapshot(document, sign(store, created, "snapshot", args))
    assert store.pointers.read.snapshots().snapshots[0].digest == str(args.digest)


# --- settings --------------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_judged(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('store = "/srv/s"\nlisten = "[::1]:0"\nprivate_log = true\n[limits]\nreader_threads = 8\n')
    settings = load_settings(path)
    assert (settings.address, settings.private_log, settings.limits.reader_threads) == (Address("::1", 0), True, 8)
    assert settings.override(listen=None, metrics_listen="off").metrics_address is None
    assert str(parse_address("[::1]:7433")) == "[::1]:7433"
    assert str(ServerSettings().address) == "127.0.0.1:7433"


@pytest.mark.parametrize(
    "text",
    [
        "listne = 'x'",
        "listen = 7433",
        "listen = '0.0.0.0:7433'",
        "listen = 'example.com:7433'",
        "listen = '127.0.0.1'",
        "listen = '127.0.0.1:99999'",
        "listen = '::1:80'",
        "metrics_listen = 'x'",
        "clock_refresh_s = 0",
        "[limits]\ngroup_commit = 100000",
        "[limits]\nreader_threads = 0",
        "[tls]\ncert = 'x'",
        "not toml",
    ],
)
def test_wrong_settings_are_named(text: str) -> None:
    """A server that starts with a misread setting is found out when it is too late."""
    with pytest.raises(ConfigurationError):
        decode_settings(text)


def test_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# caf\xe9\n")
    (tmp_path / "big").write_bytes(b"#" * 100_000)
    for name in ("missing", "latin", "big"):
        with pytest.raises(ConfigurationError, match=name):
            load_settings(tmp_path / name)


def test_open_address_must_be_asked_for_by_name() -> None:
    wide = ServerSettings(listen="0.0.0.0:7433")
    with pytest.raises(ConfigurationError, match="without TLS"):
        wide.check()
    wide.override(insecure_listen=True)
    decode_settings("listen = '0.0.0.0:1'\n[tls]\ncert = 'c'\nkey = 'k'")


# --- readers beside the writer ---------------------------------------------------------------------------------------------


def test_readers_never_see_a_flip_that_no_checkpoint_covers(store: Store, created: Created) -> None:
    """While flips go on, every answer with a proof is of one moment, and nothing is shown before it is signed."""
    verifier = store.log.verifier
    digests = [publish(store, created, name) for name in ("one", "two")]
    flips = [flip(store, created, digests[0], None)]
    stop = threading.Event()
    seen: list[set[int]] = [set(), set()]

    def read(mine: set[int]) -> None:
        while not stop.is_set() or not mine:
            pointer = store.pointers.read.pointer(API, proof=True)
            assert pointer.proof is not None
            head = pointer.proof.head
            checkpoint = open_checkpoint(pointer.proof.checkpoint.encode(), verifier, created.origin).checkpoint
            assert checkpoint.size == pointer.proof.size == head.index + 1 > pointer.flip
            hashes = [decode_b64(value) for value in head.proof]
            verify_inclusion(leaf_hash(decode_b64(head.entry)), head.index, checkpoint.size, hashes, checkpoint.root)
            state = pointer.proof.state[0]
            proof = LeafProof(
                state.index, state.n, decode_b64(state.leaf), [decode_b64(value) for value in state.proof]
            )
            leaf = verify_leaf(proof, decode_entry(decode_b64(head.entry)).state)
            assert isinstance(leaf, PointerLeaf)
            assert (leaf.flip, str(leaf.snapshot)) == (pointer.flip, pointer.snapshot)
            assert store.pointers.read.history(API, limit=1).items[0].flip >= pointer.flip
            assert store.pointers.read.at(API, f"f{pointer.flip}").snapshot == pointer.snapshot
            mine.add(pointer.flip)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, mine) for mine in seen]
        for number in range(60):
            flips.append(flip(store, created, digests[(number + 1) % 2], flips[-1]))
        stop.set()
        for reader in readers:
            reader.result()
    assert seen[0] | seen[1] <= set(flips)
    assert store.fsck().ok
