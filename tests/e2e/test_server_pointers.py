"""Pointers over HTTP: compare-and-swap, permissions of intents, rollback, what retries get."""

from __future__ import annotations

import concurrent.futures
import json
from typing import Any

import pytest

from casstore.ids import PointerName, SnapshotDigest
from tests.support.acting import Signer, push, snapshot_document
from tests.support.server import Http, Reply, Running
from tests.support.treebuild import build_tree


@pytest.fixture
def signer(server: Running) -> Signer:
    return Signer(server.http, server.created.operator_key, server.created.origin)


def release(signer: Signer, content: bytes) -> SnapshotDigest:
    return signer.release_of({b"app": content})


def token_with(http: Http, *permissions: str) -> str:
    return str(http.post_json("/v1/tokens", {"name": "ci", "permissions": list(permissions)}).json["secret"])


def flip_of(reply: Reply) -> int:
    assert reply.status in (200, 201), reply.body
    return int(reply.json["pointers"][0]["flip"])


def test_a_flip_comes_with_its_proof_and_is_seen_at_once(signer: Signer) -> None:
    one = release(signer, b"1")
    reply = signer.flip("prod/api", one, None)
    assert reply.status == 201
    answer = reply.json
    assert answer["proof"]["size"] == answer["entry"] + 1
    assert reply.headers["ETag"] == f'"f{answer["entry"]}.e{answer["entry"]}"'
    got = signer.http.get("/v1/pointers/prod/api")
    assert (got.json["snapshot"], got.headers["ETag"]) == (str(one), reply.headers["ETag"])
    assert got.headers["Cache-Control"] == "no-cache"
    assert got.json["proof"] is None
    assert signer.http.get("/v1/pointers/prod/api?proof=1").json["proof"]["size"] == answer["entry"] + 1
    unchanged = signer.http.get("/v1/pointers/prod/api", {"If-None-Match": got.headers["ETag"]})
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert signer.http.get(f"/v1/flips/{answer['entry']}").json["pointers"][0]["snapshot"] == str(one)


def test_a_lost_race_shows_where_the_pointer_is(signer: Signer) -> None:
    one, two = release(signer, b"1"), release(signer, b"2")
    first = flip_of(signer.flip("prod/api", one, None))
    flip_of(signer.flip("prod/api", two, first))
    for expect in (first, None):
        reply = signer.flip("prod/api", one, expect)
        assert (reply.status, reply.code) == (412, "precondition-failed")
        assert reply.json["current"]["snapshot"] == str(two)


def test_the_retry_of_a_success_is_that_success(signer: Signer) -> None:
    """The answer was lost on the way: the client sends the very same intent again, long after others have flipped."""
    one, two = release(signer, b"1"), release(signer, b"2")
    body = {"intent": signer.flip_intent("prod/api", one, None)}
    first = signer.http.post_json("/v1/flips", body)
    flip_of(signer.flip("prod/api", two, flip_of(first)))
    again = signer.http.post_json("/v1/flips", body)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert again.json["entry"] == first.json["entry"]
    assert signer.http.get("/v1/pointers/prod/api").json["snapshot"] == str(two)


def test_a_flip_to_where_it_is_logs_nothing(signer: Signer) -> None:
    one = release(signer, b"1")
    flip = flip_of(signer.flip("prod/api", one, None))
    size = signer.http.get("/v1/status").json["log_size"]
    reply = signer.flip("prod/api", one, flip)
    assert (reply.status, reply.headers["Casstore-No-Op"]) == (200, "true")
    assert signer.http.get("/v1/status").json["log_size"] == size


def test_an_unknown_and_an_incomplete_snapshot(signer: Signer) -> None:
    unknown = signer.flip("prod/api", SnapshotDigest(b"\1" * 32), None)
    assert unknown.code in ("snapshot-not-found", "snapshot-incomplete")
    never_pushed = build_tree({b"app": b"never pushed"})
    reply = signer.publish(snapshot_document({"app": str(never_pushed.digest)}))
    assert (reply.status, reply.code) == (409, "snapshot-incomplete")
    assert reply.json["missing"] == [str(never_pushed.digest)]


def test_rollback_hold_and_mark(signer: Signer) -> None:
    one, two, three = (release(signer, bytes([n])) for n in (1, 2, 3))
    flip = flip_of(signer.flip("prod/api", one, None))
    nothing = signer.http.get("/v1/pointers/prod/api/rollback-target")
    assert (nothing.status, nothing.code) == (409, "no-rollback-target")
    flip = flip_of(signer.flip("prod/api", two, flip))
    flip = flip_of(signer.flip("prod/api", three, flip))
    for wanted, left in ((two, three), (one, two)):  # a second rollback goes further back
        target = signer.http.get("/v1/pointers/prod/api/rollback-target?to=previous").json
        assert target["target"] == str(wanted)
        intent = signer.flip_intent("prod/api", wanted, flip, "rollback", left=(True, True))
        reply = signer.http.post_json("/v1/pointers/prod/api/rollback", {"intent": intent})
        flip = flip_of(reply)
        assert reply.json["pointers"][0]["previous"] == {
            "snapshot": str(left), "flip": target["current"]["flip"], "status": "bad"
        }  # fmt: skip
    assert (held := signer.flip("prod/api", release(signer, b"4"), flip)).status == 423, held.body
    bad = signer.flip("prod/api", three, flip, clear=(False, True))
    assert (bad.status, bad.code) == (409, "snapshot-bad")
    assert signer.release("prod/api").status == 201
    flip = flip_of(signer.flip("prod/api", three, flip, clear=(True, False)))
    assert signer.mark("prod/api", three, "good").status == 201
    assert signer.hold("prod/api").status == 201
    assert signer.http.get("/v1/pointers/prod/api").json["hold"]["by"] == "operator"
    candidates = signer.http.get("/v1/pointers/prod/api/rollback-candidates").json["candidates"]
    assert {candidate["snapshot"] for candidate in candidates} == {str(one), str(two)}
    history = signer.http.get("/v1/pointers/prod/api/history?limit=2").json
    assert [item["kind"] for item in history["items"]] == ["deploy", "rollback"]
    rest = signer.http.get(f"/v1/pointers/prod/api/history?before={history['next']}").json
    assert len(history["items"]) + len(rest["items"]) == 6
    lines = signer.http.get("/v1/pointers/prod/api/history?limit=2", {"Accept": "application/x-ndjson"})
    assert lines.headers.get_content_type() == "application/x-ndjson"
    assert [json.loads(line) for line in lines.body.splitlines()] == history["items"]
    assert f"before={history['next']}" in lines.headers["Link"]
    was = signer.http.get(f"/v1/pointers/prod/api?at=f{flip}&proof=1").json
    assert was["snapshot"] == str(three)


def test_an_intent_needs_the_permission_of_what_it_says(server: Running, signer: Signer) -> None:
    """A build agent that may push and publish must not flip, whoever signed; a deployer must not change the policy."""
    one = release(signer, b"1")
    flip = signer.flip_intent("prod/api", one, None)
    for permissions, wanted in (
        (["snapshot:publish", "content:push", "flip:dev/**", "rollback:**"], "flip:prod/api"),
        (["admin"], "flip:prod/api"),
    ):
        reply = server.http.post_json("/v1/flips", {"intent": flip}, token=token_with(server.http, *permissions))
        assert (reply.status, reply.json["permission"]) == (403, wanted)
    token = token_with(server.http, "flip:prod/**")
    number = flip_of(server.http.post_json("/v1/flips", {"intent": flip}, token=token))
    back = signer.flip_intent("prod/api", one, number, "rollback")
    for path in ("/v1/flips", "/v1/pointers/prod/api/rollback"):
        reply = server.http.post_json(path, {"intent": back}, token=token)
        assert (reply.status, reply.json["permission"]) == (403, "rollback:prod/api")
    assert server.http.get(f"/v1/flips/{number}", token=token).json["permission"] == "pointer:read:prod/api"
    hold: Any = {"intent": signer.intent("hold", _hold("prod/api"))}
    assert server.http.post_json("/v1/pointers/prod/api/hold", hold, token=token).json["permission"] == "hold:prod/api"
    document = snapshot_document({"app": str(push(server.http, build_tree({b"x": b"y"}))["digest"])})
    reader = Signer(
        Http(server.url, token_with(server.http, "content:read", "content:push")), signer.key, signer.origin
    )
    reader.intent = signer.intent  # type: ignore[method-assign]
    assert reader.publish(document).json["permission"] == "snapshot:publish"


def _hold(pointer: str) -> Any:
    from casstore.formats.acts import HoldArgs

    return HoldArgs(pointer=PointerName(pointer), until=None)


def test_an_intent_goes_where_it_belongs(signer: Signer) -> None:
    one = release(signer, b"1")
    flip_of(signer.flip("prod/api", one, None))
    hold = {"intent": signer.intent("hold", _hold("prod/api"))}
    for path in ("/v1/flips", "/v1/policy", "/v1/pointers/prod/api/marks", "/v1/pointers/prod/web/hold"):
        assert signer.http.post_json(path, hold).code == "invalid-request"
    assert signer.http.post_json("/v1/pointers/prod/api/hold", hold).status == 201
    reserved = signer.flip("prod/rollback", one, None)
    assert (reserved.status, reserved.code) == (400, "invalid-name")


def test_wrong_intents_have_codes_of_their_own(server: Running, signer: Signer) -> None:
    one = release(signer, b"1")
    other_log = signer.flip_intent("prod/api", one, None, log="casstore/other")
    assert (wrong := server.http.post_json("/v1/flips", {"intent": other_log})).code == "wrong-log", wrong.body
    expired = signer.flip_intent("prod/api", one, None, iat=1, exp=2)
    assert server.http.post_json("/v1/flips", {"intent": expired}).code == "intent-expired"
    changed = signer.flip_intent("prod/api", one, None)
    changed["payload"] = signer.flip_intent("prod/api", one, None)["payload"]
    assert (server.http.post_json("/v1/flips", {"intent": changed})).code == "signature-invalid"
    forked = signer.flip_intent("prod/api", one, None, seen_root=b"\7" * 32)
    assert server.http.post_json("/v1/flips", {"intent": forked}).code == "seen-mismatch"
    for nonsense in ({"intent": {}}, {"intent": {**changed, "x": 1}}, {}, [], {"intent": changed, "extra": 1}):
        assert server.http.post_json("/v1/flips", nonsense).code == "invalid-request"
    assert server.http.get("/v1/pointers").json["pointers"] == []


def test_an_unsigned_flip_needs_a_precondition_and_a_rule_that_allows_it(signer: Signer) -> None:
    http, one = signer.http, release(signer, b"1")
    body = json.dumps({"snapshot": str(one), "reason": "x"}).encode()

    def put(**headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return http.request("PUT", "/v1/pointers/prod/api", body, {"Content-Type": "application/json", **named})

    assert (put().status, put().code) == (428, "precondition-required")
    assert put(If_Match="*").code == "invalid-request"
    assert put(If_Match='"f1.e1", "f2.e2"').code == "invalid-request"
    assert put(If_Match="f1").code == "invalid-request"
    assert put(If_None_Match='"f1.e1"').code == "invalid-request"
    assert put(If_None_Match="*", If_Match='"f1.e1"').code == "invalid-request"
    assert put(If_Match='"something"').code == "precondition-failed"
    assert put(If_Match='W/"f1.e1"').code == "precondition-failed"
    refused = put(If_None_Match="*")
    assert refused.status in (403, 422), "the first policy wants signatures"
    assert http.get("/v1/pointers").json["pointers"] == []


def allow_unsigned(signer: Signer) -> None:
    from casstore.formats.acts import PolicyArgs

    policy = signer.http.get("/v1/policy").json["policy"]
    policy["version"] += 1
    for rule in policy["rules"]:
        rule["unsigned"] = True
    reply = signer.http.post_json(
        "/v1/policy", {"intent": signer.intent("policy", PolicyArgs(policy=policy, version=policy["version"]))}
    )
    assert reply.status == 201, reply.body


def test_unsigned_flips_and_rollbacks(signer: Signer) -> None:
    """For curl: bearer token, ETag, Idempotency-Key."""
    allow_unsigned(signer)
    http, one, two = signer.http, release(signer, b"1"), release(signer, b"2")

    def put(snapshot: SnapshotDigest, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps({"snapshot": str(snapshot), "reason": "x"}).encode()
        return http.request("PUT", "/v1/pointers/dev/api", body, {"Content-Type": "application/json", **named})

    first = put(one, If_None_Match="*", Idempotency_Key="k1")
    assert first.status == 201, first.body
    assert put(one, If_None_Match="*", Idempotency_Key="k1").headers["Idempotent-Replayed"] == "true"
    assert put(two, If_None_Match="*", Idempotency_Key="k1").code == "idempotency-key-reused"
    assert put(two, If_None_Match="*").code == "precondition-failed"
    second = put(two, If_Match=first.headers["ETag"])
    assert second.status == 201
    assert put(one, If_Match=first.headers["ETag"]).status == 412
    rollback = http.request(
        "POST",
        "/v1/pointers/dev/api/rollback",
        json.dumps({"to": "previous", "reason": "broken"}).encode(),
        {"Content-Type": "application/json", "If-Match": second.headers["ETag"]},
    )
    assert rollback.status == 201, rollback.body
    assert rollback.json["pointers"][0]["snapshot"] == str(one)
    for body in ({"reason": "x"}, {"to": "next"}, {"to": {"flip": 1, "seq": 2}}):
        reply = http.request(
            "POST",
            "/v1/pointers/dev/api/rollback",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "If-Match": rollback.headers["ETag"]},
        )
        assert reply.code == "invalid-request", reply.body


def test_racing_flippers_have_one_winner_a_round(signer: Signer) -> None:
    """Two deploys in the same second: one is live, the other was told so."""
    first, second = release(signer, b"1"), release(signer, b"2")
    expect, racers = flip_of(signer.flip("prod/api", first, None)), 8
    with concurrent.futures.ThreadPoolExecutor(racers) as pool:
        for number in range(5):
            target = second if number % 2 == 0 else first
            bodies = [{"intent": signer.flip_intent("prod/api", target, expect)} for _ in range(racers)]
            replies = list(pool.map(lambda body: signer.http.post_json("/v1/flips", body), bodies))
            winners = [reply for reply in replies if reply.status == 201]
            assert len(winners) == 1
            for reply in replies:
                assert reply.status == 201 or reply.code == "precondition-failed", reply.body
            expect = flip_of(winners[0])
    assert signer.http.get("/v1/pointers/prod/api").json["seq"] == 6
