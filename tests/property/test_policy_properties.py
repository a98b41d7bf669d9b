"""Counting and globs under every combination of keys."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import CasstoreError, NotPermitted
from casstore.formats.canonical import encode_canonical
from casstore.formats.policy import Policy, check_threshold, decode_policy, glob_matches
from tests.support.logworld import key, policy_document, rule

PEOPLE = ["alice", "bob", "carol"]
KEYS = {name: [key(name).verifier, key(name + "-2").verifier] for name in PEOPLE}
PARTS = st.sampled_from(["a", "b", "prod"])


def document(threshold: int, who: list[str]) -> dict[str, Any]:
    made = policy_document(rule("**", PEOPLE, deploy={"threshold": threshold, "who": sorted(who)}))
    for principal in made["principals"]:
        principal["keys"] = sorted(verifier.encode() for verifier in KEYS[principal["name"]])
    return made


@given(
    st.integers(1, 3),
    st.sets(st.sampled_from(PEOPLE), min_size=1),
    st.sets(st.tuples(st.sampled_from([*PEOPLE, "mallory"]), st.integers(0, 1))),
)
@settings(deadline=None)
def test_principals_are_counted_and_not_keys(threshold: int, who: set[str], signed: set[tuple[str, int]]) -> None:
    """However many keys someone signs with, they are one; strangers are none."""
    try:
        policy = Policy(document(threshold, sorted(who)))
    except CasstoreError:
        assert threshold > len(who)
        return
    keys = [key("mallory").verifier.public if name == "mallory" else KEYS[name][n].public for name, n in signed]
    people = {name for name, _ in signed if name != "mallory"}
    assert policy.principals_of(keys) == people
    applied = policy.fields.rules[0]
    try:
        check_threshold(applied.deploy, policy.principals_of(keys), name="deploy", on="x")
    except NotPermitted:
        assert len(people & who) < threshold
    else:
        assert len(people & who) >= threshold


def matches(glob: list[str], parts: list[str]) -> bool:
    """The meaning of a glob, said the slow way."""
    if not glob:
        return not parts
    if glob[0] == "**":
        least = 1 if len(glob) == 1 else 0
        return any(matches(glob[1:], parts[taken:]) for taken in range(least, len(parts) + 1))
    return bool(parts) and glob[0] in ("*", parts[0]) and matches(glob[1:], parts[1:])


@given(st.lists(PARTS | st.sampled_from(["*", "**"]), min_size=1, max_size=5), st.lists(PARTS, min_size=1, max_size=4))
def test_globs_mean_what_they_say(glob: list[str], parts: list[str]) -> None:
    assert glob_matches("/".join(glob), "/".join(parts)) == matches(glob, parts)


@given(st.data())
@settings(deadline=None)
def test_a_document_with_a_part_replaced_is_refused_or_a_policy(data: st.DataObject) -> None:
    """Whatever someone sends as a policy: our own error, or a policy that encodes to the same bytes."""
    made = json.loads(json.dumps(document(1, PEOPLE)))
    node: Any = made
    while True:
        names = list(node) if isinstance(node, dict) else list(range(len(node)))
        at = data.draw(st.sampled_from(names))
        if isinstance(node[at], dict | list) and node[at] and data.draw(st.booleans()):
            node = node[at]
            continue
        node[at] = data.draw(
            st.none() | st.booleans() | st.integers(-2, 5) | st.text(max_size=5) | st.just([]) | st.just({})
        )
        break
    try:
        encoded = encode_canonical(made)
        assert decode_policy(encoded).data == encoded
    except CasstoreError:
        return
