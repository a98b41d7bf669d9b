"""Policies: an unfit document must never come into force, for it cannot be undone by those it locks out."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import InvalidName, MalformedDocument, NotPermitted
from casstore.formats.canonical import encode_b64
from casstore.formats.policy import (
    Policy,
    Verb,
    check_threshold,
    decode_policy,
    first_policy,
    glob_matches,
    validate_glob,
    witness_keys,
)
from casstore.ids import PrincipalName
from casstore.signing import SignatureType, SigningKey, key_id
from tests.support.logworld import LOG_KEY, key, policy_document, ptr, rule

GOLDEN = Path(__file__).parent.parent / "golden" / "policy.json"


def vkey(name: str) -> str:
    return key(name).verifier.encode()


def test_golden_vectors() -> None:
    """SHA-256 of these bytes stands in state leaves: it must not change."""
    for vector in json.loads(GOLDEN.read_text()):
        policy = decode_policy(vector["policy"].encode())
        assert policy.data == vector["policy"].encode()
        assert policy.sha256.hex() == vector["sha256"]
        assert {keyid: min(policy.principals_of([v.public])) for keyid, v in policy.keys.items()} == vector["keys"]


def test_the_first_policy_lets_the_operator_do_everything_by_signature() -> None:
    policy = Policy(first_policy("operator", vkey("operator"), LOG_KEY.verifier.encode()))
    applied = policy.rule_for(ptr("any/pointer/at/all"))
    assert applied is not None
    assert not applied.unsigned
    for verb in (applied.deploy, applied.rollback, applied.mark, policy.fields.root):
        check_threshold(verb, frozenset(["operator"]), name="verb")
    assert policy.principals_of([key("operator").verifier.public, LOG_KEY.verifier.public]) == {"operator"}
    assert policy.has_principal("operator")
    assert not policy.has_principal("mallory")


def test_the_first_match_wins() -> None:
    policy = Policy(policy_document(rule("prod/api", ["alice"]), rule("prod/**", ["bob"]), rule("*", ["carol"])))

    def deployers(name: str) -> list[str] | None:
        applied = policy.rule_for(ptr(name))
        return None if applied is None or applied.deploy is None else list(applied.deploy.who)

    assert deployers("prod/api") == ["alice"]
    assert deployers("prod/api/eu") == ["bob"]
    assert deployers("stage") == ["carol"]
    assert deployers("stage/api") is None


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("**", ["a", "a/b", "a/b/c/d"], []),
        ("*", ["a"], ["a/b"]),
        ("prod/*", ["prod/a"], ["prod", "prod/a/b", "xprod/a", "prod.a"]),
        ("prod/**", ["prod/a", "prod/a/b/c"], ["prod", "prodx/a"]),
        ("**/api", ["api", "prod/api", "a/b/c/api"], ["prod/apix", "xapi", "api/x"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a", "z", "a/zz"]),
        ("*/api", ["prod/api"], ["api", "a/b/api"]),
        ("prod.x", ["prod.x"], ["prodyx"]),
    ],
)
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    """A glob that matches more than it says gives away prod."""
    assert [name for name in (*yes, *no) if glob_matches(glob, name)] == yes


@pytest.mark.parametrize(
    "glob", ["", "/", "a/", "/a", "a//b", "***", "a*", "A", "a/../b", "[ab]", "a\n", "?", "/".join("a" * 9)]
)
def test_what_is_no_glob(glob: str) -> None:
    with pytest.raises(MalformedDocument):
        validate_glob(glob)


def test_counting() -> None:
    """k of n counts principals of the verb, whoever else signed too."""
    who = [PrincipalName("alice"), PrincipalName("bob"), PrincipalName("carol")]
    verb = Verb(threshold=2, who=who)
    check_threshold(verb, frozenset(["alice", "carol", "mallory"]), name="deploy", on="x")
    for signed in ([], ["alice"], ["alice", "mallory", "eve"]):
        with pytest.raises(NotPermitted) as error:
            check_threshold(verb, frozenset(signed), name="deploy", on="prod/api")
        assert error.value.permission == "deploy:prod/api"
    with pytest.raises(NotPermitted, match="lets no one"):
        check_threshold(None, frozenset(["alice"]), name="freeze", on="x")


def unfit(**changes: Any) -> dict[str, Any]:
    return policy_document(**changes)


def weak_key(y: int) -> str:
    public = y.to_bytes(32, "little")
    return f"weak+{key_id('weak', 1, public).hex()}+{encode_b64(bytes([1]) + public)}"


def people(**keys: list[str]) -> list[dict[str, Any]]:
    return [{"keys": sorted(keys.get(name, [vkey(name)])), "name": name} for name in ("alice", "bob", "carol")]


COSIGNER = SigningKey("w", bytes(32), SignatureType.COSIGNATURE).verifier.encode()


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (unfit(version=0), "version"),
        (unfit(version=True), "version"),
        (unfit(extra=1), "extra"),
        (unfit(root={"threshold": 0, "who": ["alice"]}), "threshold"),
        (unfit(root={"threshold": 2, "who": ["alice"]}), "asks for 2 of 1"),
        (unfit(root={"threshold": 1, "who": []}), "asks for 1 of 0"),
        (unfit(root={"threshold": 1, "who": ["mallory"]}), "'mallory'"),
        (unfit(root={"threshold": 2, "who": ["alice", "alice"]}), "sorted and distinct"),
        (unfit(publishers=["bob", "alice"]), "sorted and distinct"),
        (unfit(publishers=["mallory"]), "'mallory'"),
        (unfit(principals=list(reversed(people()))), "sorted and distinct"),
        (unfit(principals=[*people(), people()[2]]), "sorted and distinct"),
        (unfit(principals=people(bob=[vkey("alice")])), "also a key of principal alice"),
        (
            unfit(
                principals=people(bob=[vkey("bob"), SigningKey("x", bytes(31) + b"\1").verifier.encode()][::-1][:1] * 2)
            ),
            "sorted",
        ),
        (unfit(principals=people(alice=[LOG_KEY.verifier.encode()])), "log key"),
        (unfit(principals=people(alice=[COSIGNER])), "Ed25519 signing key"),
        (unfit(principals=people(alice=["alice"])), "unfit"),
        (unfit(principals=people(alice=[vkey("alice").replace("alice+", "alicf+")])), "unfit"),
        (unfit(principals=people(alice=[weak_key(1)])), "small order"),
        (unfit(principals=people(alice=[weak_key(0)])), "small order"),
        (unfit(principals=people(alice=[weak_key(2**255 - 18)])), "canonical"),
        (unfit(principals=people(alice=[weak_key(2)])), "unfit"),
        (unfit(log_keys=[]), "no log key"),
        (unfit(log_keys=[COSIGNER]), "Ed25519 signing key"),
        (unfit(hosts=[{"keys": [vkey("alice")], "name": "h1"}]), "host key"),
        (unfit(hosts=[{"keys": [LOG_KEY.verifier.encode()], "name": "h1"}]), "log key"),
        (unfit(hosts=[{"keys": [], "name": "H1"}]), "name"),
        (unfit(hosts=[{"keys": [], "name": "h2"}, {"keys": [], "name": "h1"}]), "sorted"),
        (unfit(witnesses=f"witness w {vkey('alice')} https://w.example/\n"), "witness key"),
        (unfit(witnesses="witness w"), "verifier key"),
        (unfit(witnesses="wittness w x"), "not one of a witness policy"),
    ],
)
def test_documents_that_are_unfit(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MalformedDocument) as error:
        Policy(document)
    assert sentence in error.value.detail


@pytest.mark.parametrize(
    "change",
    [
        {"pointers": "prod/"},
        {"gating": "maybe"},
        {"gating": "hosts:0"},
        {"gating": "hosts:101"},
        {"gating": "hosts:07"},
        {"gating": "none\n"},
        {"deploy": {"threshold": 1, "who": ["mallory"]}},
        {"deploy": {"threshold": 0, "who": []}},
        {"deploy": {"threshold": 1}},
        {"rollback": {"threshold": 1, "who": ["alice"]}},
        {"rollback": {"confirmed_good_only": False, "max_age_days": 0, "threshold": 1, "who": ["alice"]}},
        {"unsigned": 1},
        {"unsigned": None},
        {"max_intent_ms": 0},
        {"max_intent_ms": 10**12},
        {"witness": {"deploy": "none"}},
        {"witness": {"deploy": "perhaps", "rollback": "none"}},
        {
            "require": [
                {"predicate": "b", "threshold": 1, "who": ["alice"]},
                {"predicate": "a", "threshold": 1, "who": ["alice"]},
            ]
        },
        {"require": [{"predicate": "", "threshold": 1, "who": ["alice"]}]},
        {"extra": 1},
    ],
)
def test_rules_that_are_unfit(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocument):
        Policy(policy_document(rule("**", ["alice"], **change)))


def test_names_keep_their_rule() -> None:
    document = policy_document()
    document["principals"][0]["name"] = "Alice"
    with pytest.raises(InvalidName):
        Policy(document)
    document = policy_document()
    document["publishers"] = [7]
    with pytest.raises(MalformedDocument):
        Policy(document)
    for data in (b"[]", b"{}", b"7"):
        with pytest.raises(MalformedDocument):
            decode_policy(data)


def test_a_principal_may_have_no_key() -> None:
    """Machines that only ever speak by token."""
    policy = Policy(policy_document(principals=people(bob=[])))
    assert policy.has_principal("bob")
    assert len(policy.keys) == 2


def test_witness_policies() -> None:
    text = f"# ours\n\nlog {LOG_KEY.verifier.encode()} https://x/\nwitness w {vkey('w')} https://w/\ngroup g 1 w\nquorum g\n"
    assert witness_keys(text) == [LOG_KEY.verifier.public, key("w").verifier.public]
    assert witness_keys("") == []


def test_the_examples_in_the_documentation_run() -> None:
    from casstore.formats import intent, policy

    for module in (intent, policy):
        results = doctest.testmod(module)
        assert results.attempted > 0
        assert results.failed == 0
