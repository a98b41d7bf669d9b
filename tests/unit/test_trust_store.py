"""What a user trusts and has verified: never lost in a race, never passed over when damaged, evidence never overwritten."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from casstore.errors import ConfigurationError
from casstore.formats.trust import VerifiedState, encode_trust
from casstore_client.trust_store import TrustStore, read_trust
from tests.support.bundles import Tree, trust_of
from tests.support.logworld import LOG_KEY, World


def state_of(world: World, **flips: int) -> VerifiedState:
    policy = world.machine.policy
    assert policy is not None
    return VerifiedState(Tree(world.entries).note, 0, policy.document, (LOG_KEY.verifier.encode(),), flips)


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    file = tmp_path / "trust.json"
    file.write_bytes(encode_trust(trust_of(World())))
    return TrustStore.open(file, tmp_path / "state")


def test_the_state_lies_apart_for_each_log(store: TrustStore, tmp_path: Path) -> None:
    """Two logs of one user must not overwrite what was verified of the other."""
    assert store.directory == tmp_path / "state" / store.trust.genesis_sha256.hex()[:32]
    assert store.load() is None


def test_a_trust_file_that_is_none(tmp_path: Path) -> None:
    """Trust that cannot be read is no trust: nothing is checked against half of it."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_trust(tmp_path / "missing")
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a trust file"):
        read_trust(tmp_path / "bad")


def test_what_was_verified_comes_back_and_only_moves_from_what_was_known(store: TrustStore) -> None:
    """Two commands at once: the second must look again, else it would put back what is older."""
    first = state_of(World(), **{"prod/api": 3})
    assert store.replace(None, first)
    assert store.load() == first
    second = state_of(World(), **{"prod/api": 5})
    assert not store.replace(None, second)
    assert store.load() == first
    assert store.replace(first, second)
    assert store.load() == second
    assert {path.name for path in store.directory.iterdir()} == {"verified.json", "lock"}
    assert (store.directory.stat().st_mode & 0o777) == 0o700


def test_a_damaged_state_is_an_error(store: TrustStore) -> None:
    """Without it a regression would go unseen: it is never begun anew in silence."""
    assert store.replace(None, state_of(World()))
    path = store.directory / "verified.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigurationError, match="damaged"):
        store.load()


def test_a_state_that_cannot_be_written_is_an_error(store: TrustStore, tmp_path: Path) -> None:
    """A full or read-only disk: what was verified is not remembered, and the user hears of it."""
    (tmp_path / "state").write_text("a file where a folder belongs")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        store.replace(None, state_of(World()))
    with pytest.raises(ConfigurationError, match="cannot be kept"):
        store.keep_contradiction(b"held", b"shown")


def test_contradictions_are_kept_side_by_side(store: TrustStore) -> None:
    """Evidence against a server: each pair once, none overwritten."""
    first = store.keep_contradiction(b"held", b"shown")
    second = store.keep_contradiction(b"held", b"shown again")
    assert first != second
    assert store.keep_contradiction(b"held", b"shown") == first
    assert (first / "held.note").read_bytes() == b"held"
    assert (second / "shown.note").read_bytes() == b"shown again"


def test_many_writers_lose_nothing(store: TrustStore) -> None:
    """Eight commands at once, each with its own pointer: in the end all of them are known."""

    def remember(name: str) -> None:
        while True:
            known = store.load()
            flips = {} if known is None else dict(known.flips)
            if store.replace(known, state_of(World(), **flips, **{name: 1})):
                return

    threads = [threading.Thread(target=remember, args=(f"p{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = store.load()
    assert state is not None
    assert sorted(state.flips) == [f"p{number}" for number in range(8)]
