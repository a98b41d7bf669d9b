"""A machine that went back in time: the whole store restored from an old image, its record of signed heads with it.

Nothing on that machine knows better.  The first client that does shows the checkpoint it holds, and the server stops writing before it
signs a second history under the same key.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from casstore.errors import Regression
from casstore.store import Store
from casstore_client import Client
from casstore_client.trust_store import TrustStore
from tests.support.acting import Signer
from tests.support.server import make_store, run_in_thread, token_of


def test_a_restored_image_is_found_out_by_the_first_client_that_knows_better(tmp_path: Path) -> None:
    store, image = tmp_path / "store", tmp_path / "image"
    created = make_store(store)
    with run_in_thread(store, created) as server:
        snapshot = Signer(server.http, created.operator_key, created.origin).release_of({b"a": b"1"})
    shutil.copytree(store, image)
    trust = TrustStore(created.trust, tmp_path / "state")
    with run_in_thread(store, created) as server:
        held = server.http.get("/log/checkpoint").body
        assert server.http.post("/v1/log/heads", held, "text/plain").status == 204, (
            "a head of its own is no contradiction"
        )
        Signer(server.http, created.operator_key, created.origin).flip("prod/api", snapshot, None)
        newer = server.http.get("/log/checkpoint").body
        with Client(server.url, token=token_of(created), trust=trust) as client:
            assert client.pointer("prod/api").snapshot == str(snapshot)
    with run_in_thread(image, created) as server:
        assert server.http.post("/v1/log/heads", newer.replace(b"casstore/", b"elsewhere/"), "text/plain").status == 422
        signer = Signer(server.http, created.operator_key, created.origin)
        assert signer.hold("prod/api").status == 404, "no one has said anything yet"
        with Client(server.url, token=token_of(created), trust=trust) as client, pytest.raises(Regression):
            client.checkpoint()
        refused = signer.http.post_json("/v1/tokens", {"name": "ci", "permissions": ["operate"]})
        assert (refused.status, refused.code) == (503, "read-only")
        assert "older copy" in refused.json["detail"]
        assert "older copy" in server.http.get("/v1/status").json["read_only"]
        assert server.http.get("/log/checkpoint").code == "log-unavailable"
    with Store.open(image) as reopened:
        assert reopened.read_only is not None, "a restart does not forget it"
