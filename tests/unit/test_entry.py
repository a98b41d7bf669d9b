"""Log entries: the leaves of the log, hashed for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore.errors import InvalidDigest, InvalidName, MalformedDocument, TooLarge, VerificationError
from casstore.formats.canonical import encode_canonical
from casstore.formats.entry import (
    ENVELOPE_KEYS,
    Entry,
    GcBody,
    GcCounts,
    StateRoot,
    TokenAuth,
    decode_entry,
    encode_entry,
    flips_of,
    gc_body,
    gc_of,
    members_of,
)
from casstore.formats.intent import keys_by_id, verify_envelope
from casstore.ids import BlobDigest
from casstore.limits import ENTRY_SIZE_MAX_BYTES
from casstore.merkle import Frontier, leaf_hash
from casstore.transitions.replay import Replay
from casstore.wire import Envelope
from tests.support.logworld import ORIGIN, START_MS, World, key, ptr, snap

GOLDEN = Path(__file__).parent.parent / "golden" / "entry.json"


def flipped() -> Entry:
    world = World()
    world.flip("prod/api", "A", "init")
    return world.entry()


def changed(entry: Entry, **changes: Any) -> bytes:
    """The bytes of an entry with fields changed behind the encoder's back; Ellipsis takes a field away."""
    fields = json.loads(encode_entry(entry))
    fields.update(changes)
    return encode_canonical({k: v for k, v in fields.items() if v is not ...}, also_keys=ENVELOPE_KEYS)


def test_golden_vectors_replay() -> None:
    """A log written by the first release replays in every later one, to the same roots, byte for byte."""
    vectors = json.loads(GOLDEN.read_text())
    frontier, roots = Frontier(), [Frontier().root]
    replay = Replay(lambda size: roots[size])
    for vector in vectors:
        data = vector["entry"].encode()
        entry = decode_entry(data)
        assert encode_entry(entry) == data
        assert leaf_hash(data).hex() == vector["leaf_hash"]
        planned = replay.take(data)
        assert planned.draft.after.root.hex() == vector["state_root"] == entry.state.root.hex()
        frontier.append(leaf_hash(data))
        roots.append(frontier.root)
        assert frontier.root.hex() == vector["log_root_after"]
    assert {vector["type"] for vector in vectors} >= {
        "genesis",
        "policy",
        "snapshot",
        "flip",
        "mark",
        "hold",
        "release",
    }


def test_the_envelope_in_an_entry_is_dsse_as_it_stands() -> None:
    """Any DSSE verifier can take `auth` out of an entry and check it without knowing anything of casstore."""
    entry = flipped()
    auth = json.loads(encode_entry(entry))["auth"]
    assert set(auth) == {"payload", "payloadType", "signatures"}
    assert isinstance(entry.auth, Envelope)
    verified = verify_envelope(entry.auth, keys_by_id([key("alice").verifier]))
    assert verified.payload == entry.payload
    assert verified.id == entry.intent_id


def test_flips_of_reads_payload_and_body_together() -> None:
    (flip,) = flips_of(flipped())
    assert (flip.pointer, flip.expect, flip.from_, flip.to, flip.seq) == (ptr("prod/api"), None, None, snap("A"), 1)


def test_unsigned_and_server_entries_round_trip() -> None:
    entry = flipped()
    payload = entry.payload
    assert payload is not None
    token = entry._replace(auth=TokenAuth(payload, "00ff", "alice"))
    assert decode_entry(encode_entry(token)) == token
    assert token.intent_id == entry.intent_id
    body = GcBody(GcCounts(bytes=2, objects=1), BlobDigest(bytes(32)), "nothing needs it")
    server = Entry("gc", 5, START_MS, ORIGIN, None, gc_body(body), StateRoot(1, bytes(32)))
    assert decode_entry(encode_entry(server)) == server
    assert gc_of(server) == body
    assert server.payload is None
    assert server.intent_id is None
    with pytest.raises(VerificationError):
        server.intent()
    with pytest.raises(MalformedDocument):
        members_of(server)


@pytest.mark.parametrize(
    "body",
    [{}, {"anything": [1]}, {"counts": {"bytes": 1}, "digest": f"blake3:{'0' * 64}", "reason": "x"}],
)
def test_a_collection_says_what_it_dropped(body: dict[str, Any]) -> None:
    """A record that leaves out how much, or what, is none; nor is one that somebody signed."""
    server = Entry("gc", 5, START_MS, ORIGIN, None, body, StateRoot(1, bytes(32)))
    with pytest.raises(MalformedDocument):
        decode_entry(encode_entry(server))
    whole = gc_body(GcBody(GcCounts(bytes=2, objects=1), BlobDigest(bytes(32)), "x"))
    with pytest.raises(MalformedDocument):
        decode_entry(encode_entry(flipped()._replace(type="gc", body=whole)))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"v": 2}, MalformedDocument),
        ({"extra": None}, MalformedDocument),
        ({"ts": ...}, MalformedDocument),
        ({"ts": -1}, MalformedDocument),
        ({"idx": "7"}, MalformedDocument),
        ({"type": "flop"}, MalformedDocument),
        ({"log": "a b"}, MalformedDocument),
        ({"state": {"n": 1, "root": "00"}}, MalformedDocument),
        ({"state": {"n": 1}}, MalformedDocument),
        ({"auth": {}}, MalformedDocument),
        ({"auth": {"payload": "", "token": {"id": "x", "principal": "Alice"}}}, InvalidName),
        ({"auth": {"payload": "", "token": {"id": "", "principal": "alice"}}}, MalformedDocument),
        ({"auth": {"payload": "A", "token": {"id": "x", "principal": "alice"}}}, MalformedDocument),
        ({"auth": {"payload": "", "token": {"id": "x", "principal": "alice"}, "payloadType": "x"}}, MalformedDocument),
        ({"body": {}}, MalformedDocument),
        ({"body": {"members": []}}, MalformedDocument),
        ({"body": {"members": [{"from": None, "seq": 0, "to": None}]}}, MalformedDocument),
        ({"body": {"members": [{"from": None, "seq": 1, "to": "A"}]}}, InvalidDigest),
        ({"body": {"members": [{"from": None, "seq": 1, "to": None, "x": 1}]}}, MalformedDocument),
        ({"type": "hold"}, MalformedDocument),
    ],
)
def test_entries_that_are_none(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_entry(changed(flipped(), **changes))


def test_an_envelope_in_another_form_is_not_an_entry() -> None:
    """One act must not have two leaves."""
    entry = flipped()
    assert isinstance(entry.auth, Envelope)
    world = World()
    both = world.sign(world.flip_args("prod/api", "A", "init"), ("alice", "bob")).envelope
    backwards = msgspec.structs.replace(both, signatures=list(reversed(both.signatures)))
    with pytest.raises(MalformedDocument, match="normal form"):
        decode_entry(encode_entry(entry._replace(auth=backwards)))
    decode_entry(encode_entry(entry._replace(auth=both)))


def test_an_intent_for_another_act_or_log_is_not_this_entrys() -> None:
    entry = flipped()
    for lie in (entry._replace(type="hold", body={}), entry._replace(log="casstore/other")):
        with pytest.raises(VerificationError):
            lie.intent()
    with pytest.raises(VerificationError):
        entry._replace(auth=TokenAuth(b"{}", "x", "alice")).intent()
    with pytest.raises(VerificationError):
        flips_of(entry._replace(body={"members": entry.body["members"] * 2}))


def test_the_bound_on_an_entry() -> None:
    """It must fit the 16-bit length of an entries tile, with room."""
    entry = Entry("gc", 5, START_MS, ORIGIN, None, {}, StateRoot(1, bytes(32)))
    room = ENTRY_SIZE_MAX_BYTES - len(encode_entry(entry._replace(body={"x": ""})))
    assert len(encode_entry(entry._replace(body={"x": "y" * room}))) == ENTRY_SIZE_MAX_BYTES < 1 << 16
    with pytest.raises(TooLarge) as error:
        encode_entry(entry._replace(body={"x": "y" * (room + 1)}))
    assert error.value.limit == ENTRY_SIZE_MAX_BYTES
    with pytest.raises(TooLarge):
        decode_entry(b" " * (ENTRY_SIZE_MAX_BYTES + 1))


def test_every_changed_bit_is_refused_or_changes_the_leaf() -> None:
    """An edited stored entry is found by its hash, whatever it still parses as."""
    data = encode_entry(flipped())
    for position in range(len(data)):
        mutated = bytearray(data)
        mutated[position] ^= 1
        try:
            entry = decode_entry(bytes(mutated))
        except (MalformedDocument, InvalidDigest, InvalidName):
            continue
        assert encode_entry(entry) == bytes(mutated)
        assert leaf_hash(bytes(mutated)) != leaf_hash(data)
