"""The OpenAPI document and the server say the same: who writes a client from the document meets what it reads there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiohttp import web

from casstore import wire
from casstore_server.routes import care, collection, content, health, log, operate, pointers, snapshots, upkeep

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "docs" / "openapi.yaml").read_text("utf-8"))
METHODS = {"get", "put", "post", "delete"}
OPERATIONS = {
    (method, path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if method in METHODS
}


def routes() -> set[tuple[str, str]]:
    found = set()
    for module in (content, snapshots, pointers, log, operate, care, upkeep, collection, health):
        for route in module.ROUTES:
            assert isinstance(route, web.RouteDef)
            found.add((route.method.lower(), re.sub(r"\{(\w+):[^/]*\}", r"{\1}", route.path.replace("[^{}]+", ".+"))))
    return found


def test_every_route_is_in_the_document_and_the_other_way_round() -> None:
    assert routes() == set(OPERATIONS)


def wire_schemas() -> dict[str, Any]:
    bases = (wire.Request, wire.Answer)
    types = [
        value
        for value in vars(wire).values()
        if inspect.isclass(value) and issubclass(value, msgspec.Struct) and value not in bases
    ]
    return dict(msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")[1])


@pytest.mark.parametrize(("name", "schema"), sorted(wire_schemas().items()))
def test_every_body_is_described_as_it_is(name: str, schema: dict[str, Any]) -> None:
    """A field that was renamed in the code and not in the document would mislead every client that is not ours."""
    described = dict(DOCUMENT["components"]["schemas"][name])
    for document in (schema, described):
        document.pop("description", None)
    if name == "Problem":
        described.pop("additionalProperties")  # the typed fields of an error stand beside its members
    assert described == schema


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        node: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


@pytest.mark.parametrize(("key", "operation"), sorted(OPERATIONS.items()), ids=str)
def test_every_operation_is_complete(key: tuple[str, str], operation: dict[str, Any]) -> None:
    parameters = [
        DOCUMENT["components"]["parameters"][parameter["$ref"].rpartition("/")[2]] if "$ref" in parameter else parameter
        for parameter in operation.get("parameters", [])
    ]
    in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", key[1]))
    assert operation["summary"]
    assert "default" in operation["responses"]
    public = operation.get("security") == []
    assert ("401" in operation["responses"]) != public
    assert ("403" in operation["responses"]) == ("x-permission" in operation)


def test_operation_ids_are_distinct() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(ids) == len(set(ids))
