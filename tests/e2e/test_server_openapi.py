"""Generated requests against the real server, held against the OpenAPI document.

If one of them is answered with another status, type or shape than the document says, a client that was written from the
document breaks; if one is answered with 500, someone can do that on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from casstore.config import ServerSettings
from casstore_server.settings import Bounds
from tests.support.acting import Signer, push
from tests.support.server import Running, make_store, run_in_thread
from tests.support.treebuild import build_blob

SCHEMA = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs" / "openapi.yaml")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@schemathesis.serializer("application/vnd.casstore.pack")
def send_as_it_is(ctx: schemathesis.SerializationContext, value: object) -> bytes:
    """Packs are bytes; what the generator made is sent as it is."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose store holds something."""
    directory = tmp_path_factory.mktemp("openapi") / "store"
    created = make_store(directory)
    # What the generator makes of the path of a backup must not become a directory of this machine.
    listen = ServerSettings(listen="127.0.0.1:0", metrics_listen="off", backups=str(directory.parent / "backups"))
    with run_in_thread(directory, created, settings=listen, bounds=Bounds(linger_s=0.01)) as running:
        push(running.http, build_blob(b"x" * 1000), "x")
        signer = Signer(running.http, created.operator_key, created.origin)
        assert signer.flip("prod/api", signer.release_of({b"a": b"1"}), None).status == 201
        yield running


@SCHEMA.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
def test_what_the_document_says_is_what_the_server_does(case: schemathesis.Case, filled: Running) -> None:
    response = case.call(base_url=filled.url, headers={"Authorization": f"Bearer {filled.token}"})
    case.validate_response(response, checks=CHECKS)
