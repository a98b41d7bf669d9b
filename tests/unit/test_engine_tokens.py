"""Bearer tokens: who gets in, what they may do, and what a thief of the database does not learn."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.engine.tokens import (
    ALL_PERMISSIONS,
    Identity,
    demand_permission,
    format_token,
    permits,
    validate_permission,
)
from casstore.errors import DamagedObject, InvalidInput, InvalidName, NotPermitted, TokenNotFound, Unauthenticated
from casstore.storage.roles import Table
from tests.support.ledgerworld import LedgerWorld


@pytest.fixture(scope="module")
def world() -> LedgerWorld:
    return LedgerWorld()


def secret_of(text: str | None) -> str:
    assert text is not None
    return text


def test_token_identifies_its_principal(world: LedgerWorld) -> None:
    made = world.tokens.create("ci", ["content:push", "flip:test/**", "content:push"])
    assert re.fullmatch(r"cas_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", secret_of(made.secret))
    assert made.permissions == ["content:push", "flip:test/**"]
    found = world.tokens.authenticate(secret_of(made.secret))
    assert found == Identity(made.id, "ci", ("content:push", "flip:test/**"))


def test_secret_is_not_in_the_ledger(world: LedgerWorld) -> None:
    """Whoever steals a backup of the ledger cannot log in with what is in it."""
    made = world.tokens.create("ci", ["operate"])
    secret = secret_of(made.secret).split("_", 2)[2]
    with world.ledger.read() as view:
        rows = view.scan(Table.TOKENS, limit=1000)
    assert all(secret.encode() not in row for _, row in rows)
    assert all(token.secret is None for token in world.tokens.list().tokens)


def test_everything_else_is_refused_with_one_sentence(world: LedgerWorld) -> None:
    """An attacker does not learn which ids exist."""
    made = secret_of(world.tokens.create("ci", ["operate"]).secret)
    flipped = made[:-2] + ("B" if made[-2] != "B" else "C") + made[-1]
    respelled = made[:-1] + chr(ord(made[-1]) + 1) if made[-1] in "048AEIMQUYcgkosw" else made[:-1] + "B"
    bad = ["", "cas_", made[:-1], made + "A", made.upper(), f" {made}", made + "\n", flipped, respelled]
    bad += [format_token("0" * 16, bytes(32)), made.replace("cas_", "tok_")]
    for text in bad:
        with pytest.raises(Unauthenticated, match=r"^the bearer token is not valid$"):
            world.tokens.authenticate(text)


@given(st.text())
def test_no_text_gets_in_or_breaks_anything(text: str) -> None:
    with pytest.raises(Unauthenticated):
        LedgerWorldOnce.get().tokens.authenticate(text)


class LedgerWorldOnce:
    """One world for all examples."""

    world: LedgerWorld | None = None

    @classmethod
    def get(cls) -> LedgerWorld:
        if cls.world is None:
            cls.world = LedgerWorld()
        return cls.world


def test_token_expires(world: LedgerWorld) -> None:
    made = world.tokens.create("ci", ["operate"], expires_in_s=60)
    world.clock.advance(59_999)
    world.tokens.authenticate(secret_of(made.secret))
    world.clock.advance(1)
    with pytest.raises(Unauthenticated, match="expired at"):
        world.tokens.authenticate(secret_of(made.secret))


def test_revoked_token_is_forgotten(world: LedgerWorld) -> None:
    made = world.tokens.create("ci", ["operate"])
    world.tokens.revoke(made.id)
    with pytest.raises(Unauthenticated):
        world.tokens.authenticate(secret_of(made.secret))
    for token in (made.id, "", "x" * 600, "\0"):
        with pytest.raises(TokenNotFound):
            world.tokens.revoke(token)


def test_malformed_requests_make_no_token(world: LedgerWorld) -> None:
    count = len(world.tokens.list().tokens)
    for permissions in (
        [],
        ["everything"],
        ["flip"],
        ["flip:"],
        ["flip:Prod/*"],
        ["admin:**"],
        ["operate"] * 0 + ["x:y"],
    ):
        with pytest.raises(InvalidInput):
            world.tokens.create("ci", permissions)
    for expires in (0, -1, 2**40):
        with pytest.raises(InvalidInput):
            world.tokens.create("ci", ["operate"], expires_in_s=expires)
    with pytest.raises(InvalidName):
        world.tokens.create("C I", ["operate"])
    assert len(world.tokens.list().tokens) == count


def test_permission_covers_its_verb_and_scope_alone() -> None:
    """Deploying is another right than pushing, rolling back another than both; a scope ends where its glob ends."""
    someone = Identity("0" * 16, "ci", ("content:push", "flip:test/*", "pointer:read:**", "rollback:prod/**"))
    allowed = [("content:push", None), ("flip", "test/api"), ("pointer:read", "a/b/c"), ("rollback", "prod/eu/api")]
    refused = [
        ("content:read", None),
        ("flip", "test/eu/api"),
        ("flip", "test"),
        ("flip", "prod/api"),
        ("rollback", "test/api"),
        ("flip", None),
        ("admin", None),
        ("operate", None),
    ]
    for verb, pointer in allowed:
        assert permits(someone, verb, pointer)
        demand_permission(someone, verb, pointer)
    for verb, pointer in refused:
        assert not permits(someone, verb, pointer)
        with pytest.raises(NotPermitted) as caught:
            demand_permission(someone, verb, pointer)
        assert caught.value.permission == (verb if pointer is None else f"{verb}:{pointer}")


def test_first_token_may_do_everything() -> None:
    someone = Identity("0" * 16, "operator", ALL_PERMISSIONS)
    for permission in ALL_PERMISSIONS:
        validate_permission(permission)
    assert permits(someone, "admin")
    assert permits(someone, "freeze", "a/b/c/d")


def test_damaged_row_is_named(world: LedgerWorld) -> None:
    made = world.tokens.create("ci", ["operate"])
    with world.ledger.write() as tx:
        tx.put(Table.TOKENS, made.id.encode(), b"{")
    with pytest.raises(DamagedObject, match=made.id):
        world.tokens.authenticate(secret_of(made.secret))
    assert any(made.id in finding.object for finding in world.fsck().findings)
    world.tokens.revoke(made.id)
