"""Clients of a server under test, as its operator has them."""

from __future__ import annotations

from pathlib import Path

from casstore.clock import Clock
from casstore_client.blocking import Client
from casstore_client.trust_store import TrustStore
from tests.support.server import Running


def client_of(
    running: Running,
    state: Path,
    *,
    url: str | None = None,
    trust: bool = True,
    key: bool = True,
    clock: Clock | None = None,
) -> Client:
    """A client with the operator's token.

    Args:
        running: the server.
        state: where what it verifies is kept.
        url: another way to reach the server.
        trust: whether it has the trust file.
        key: whether it has the operator's key.
        clock: the client's.
    """
    store = TrustStore(running.created.trust, state) if trust else None
    return Client(
        url or running.url,
        token=running.token,
        trust=store,
        key=running.created.operator_key if key else None,
        clock=clock,
    )


def release(client: Client, directory: Path, name: str, files: dict[str, bytes]) -> str:
    """Push files as a tree, publish a snapshot of it; gives the snapshot's digest."""
    source = directory / name
    for path, data in files.items():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    pushed = client.push(source, name=name)
    _, digest = client.snapshot_create([("app", "tree", str(pushed.digest))], labels={"release": name})
    return str(digest)
